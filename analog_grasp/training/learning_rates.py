"""Learning rates of parameters that cannot take that of the adapter.

GRASP's shifts add to inputs whose size differs between layers: with one rate for all of them, the
rate that suits large inputs destroys small ones. And the rate that suits a thousand scales destroys
a whole matrix, such as a hidden layer of the task head.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import cast

from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.adapters.frozen import head_names
from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.training.adapter_parameters import SAVED, adapter_parameters
from analog_grasp.utils.hooks import seen_inputs

WHOLE_RATE = 0.001
"""The highest learning rate of modules that are trained whole, but for the output layer.

Adam changes every weight of a matrix by about the learning rate, which adds up over its inputs. At
GRASP's rate, all-mpnet-base-v2 with its hidden layer of 768 x 768 can collapse to one class.
"""

SIZE_ROWS = 32
"""Rows on which the size of the inputs is measured, at most."""


def one_output(model: nn.Module) -> dict[str, int]:
    """Return the argument with which a causal language model computes the last token's logits only.

    Those of all tokens of several long texts take more memory than a step of training.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(base.forward).parameters else {}


def input_sizes(model: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """Return the root mean square of the inputs of GRASP's layers in a run of the model, by name.

    It is 1 for a layer without inputs, such as that of an expert that no token is routed to.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, GraspLinear)}
    sizes = dict.fromkeys(layers, 1.0)

    def measure(name: str, _: GraspLinear, x: Tensor) -> None:
        if x.numel():
            sizes[name] = x.float().square().mean().sqrt().item()

    with seen_inputs(layers, measure):
        if layers:
            run()
    return sizes


def rate_factors(
    model: nn.Module, sizes: Mapping[str, float], learning_rate: float, shift_lr_ratio: float = 1.0
) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each parameter that has one of its own.

    Args:
        model: The model that is trained.
        sizes: As `input_sizes` returns them, of a model whose layers have the same names.
        learning_rate: That of all other parameters.
        shift_lr_ratio: The factor of a shift where the root mean square of the inputs is 1.
    """
    layers = {cast(GraspLinear, model.get_submodule(name)): size for name, size in sizes.items()}
    factors = {
        shift: shift_lr_ratio * size
        for layer, size in layers.items()
        for adapter in layer.group_of
        # A layer without shifts has constant ones.
        if isinstance(shift := layer.means(adapter)[1], nn.Parameter)
    }
    if learning_rate > WHOLE_RATE and isinstance(model, PeftModel):
        factors |= dict.fromkeys(_whole_parameters(model), WHOLE_RATE / learning_rate)
    return factors


def _whole_parameters(model: PeftModel) -> list[nn.Parameter]:
    """Return the parameters of modules saved with the active adapter, but for the output layer."""
    whole = dict.fromkeys(each for name, each in adapter_parameters(model) if SAVED in name)
    linear = [
        layer
        for name in head_names(model)
        for layer in model.get_base_model().get_submodule(name).modules()
        if isinstance(layer, nn.Linear) and layer.weight in whole
    ]
    output = set(linear[-1].parameters()) if linear else set()
    return [each for each in whole if each not in output]
