"""Learning rates of GRASP's shifts, which add to inputs whose size differs between layers.

With one rate for all of them, the rate that suits large inputs destroys small ones.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import cast

from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.utils.hooks import seen_inputs

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


def shift_rates(
    model: nn.Module, sizes: Mapping[str, float], ratio: float = 1.0
) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each shift: `ratio` times the size of the inputs.

    Args:
        model: A model with GRASP adapters; any other one has no shifts.
        sizes: As `input_sizes` returns them, of a model whose layers have the same names.
        ratio: The factor where the root mean square of the inputs is 1.
    """
    layers = {cast(GraspLinear, model.get_submodule(name)): size for name, size in sizes.items()}
    return {
        shift: ratio * size
        for layer, size in layers.items()
        for adapter in layer.group_of
        # A layer without shifts has constant ones.
        if isinstance(shift := layer.means(adapter)[1], nn.Parameter)
    }
