"""Hooks around the forward passes of a deployed model: noise seeds, input ranges and checks."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers import PreTrainedModel

from analog_grasp.crossbar.chip_layer import ChipLayer, version_of
from analog_grasp.crossbar.first_tokens import first_tokens
from analog_grasp.utils.seed import derive_seed


@dataclass
class ChipState:
    """The state of a chip, shared by the models that compute on it.

    Attributes:
        seed: The chip instance; None before it is programmed.
        time_s: Seconds since programming.
        changes: How often the chip was programmed or aged.
        passes: How many forward passes were run on it.
        rescalings: How often its weights were rescaled.
    """

    seed: int | None = None
    time_s: float = 0.0
    changes: int = 0
    passes: int = 0
    rescalings: int = 0


class ForwardHooks:
    """Hooks of one deployed model.

    The noise of a forward pass is seeded by the chip and by the number of the pass since the chip
    was last programmed or aged. Each model counts its own passes, so that its outputs do not
    depend on which others share the chip. The caller's random state is restored after a pass.

    Args:
        model: The deployed model.
        layers: Its layers on tiles, by name, with those of a programmed adapter.
        chip: The state of the chip.
        shared: The parameters, by name, whose memory is the caller's. A pass raises RuntimeError
            if one has been changed in place since.
        first_exact: Compute the first token of each sequence exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, ChipLayer],
        chip: ChipState,
        shared: Mapping[str, Tensor],
        first_exact: bool = False,
    ) -> None:
        self._first_exact = first_exact
        self.layers, self._chip = layers, chip
        self.set_ranges({}, {})
        self._shared = {name: (tensor, version_of(tensor)) for name, tensor in shared.items()}
        self._random_states: list[AbstractContextManager[None]] = []
        self._changes = chip.changes
        # `generate` calls the model inside peft's, and so bypasses the forward pass of the latter.
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        inner.register_forward_pre_hook(self._enter, with_kwargs=True)
        # Also after a pass that fails, so that the caller's random state is restored.
        inner.register_forward_hook(self._leave, always_call=True)
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.register_load_state_dict_pre_hook(_use_own_memory)
            if isinstance(module, BaseTuner):
                module.__dict__["_check_merge_allowed"] = _reject_merge
                module.__dict__["unload"] = _reject_merge
        if isinstance(model, PreTrainedModel):
            model.__dict__["save_pretrained"] = _reject_save

    def set_ranges(self, inputs: dict[str, float], outputs: dict[str, list[list[float]]]) -> None:
        """Set the ranges of the converters for this model, and number the passes from 0 again."""
        self._inputs, self._outputs = inputs, outputs
        self._rescalings = self._chip.rescalings
        self.restart()

    @property
    def input_ranges(self) -> dict[str, float]:
        """The DAC's range of each layer, by name; none for weights rescaled since."""
        return self._inputs if self._rescalings == self._chip.rescalings else {}

    @property
    def output_ranges(self) -> dict[str, list[list[float]]]:
        """The ADC's range of each tile, by layer; none for weights rescaled since."""
        return self._outputs if self._rescalings == self._chip.rescalings else {}

    def restart(self) -> None:
        """Number the passes from 0 again."""
        self._pass = 0

    @contextmanager
    def first_passes(self) -> Iterator[None]:
        """Number the passes within the block from 0, and go on afterwards as if it had none.

        So that two blocks have the same noise.
        """
        before, self._pass = self._pass, 0
        try:
            yield
        finally:
            self._pass = before

    def __getstate__(self) -> dict[str, Any]:
        # A copy has memory of its own.
        return {**vars(self), "_shared": {}, "_random_states": []}

    @torch.compiler.disable
    def _enter(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._random_states.append(torch.random.fork_rng())
        self._random_states[-1].__enter__()
        for name, (tensor, version) in self._shared.items():
            if version_of(tensor) != version:
                raise RuntimeError(
                    f"The parameter {name} was changed in place after the model was deployed: "
                    "deploy the model again, or fit its adapter to the chip by recalibrate."
                )
        if self._changes != self._chip.changes:
            self._changes = self._chip.changes
            self.restart()
        seed = derive_seed(self._chip.seed or 0, "forward", self._chip.time_s, self._pass)
        torch.manual_seed(seed)
        self._pass += 1
        self._chip.passes += 1
        first = first_tokens(module, inputs, named) if self._first_exact else None
        ranges, outputs = self.input_ranges, self.output_ranges
        for name, layer in self.layers.items():
            layer.input_range, layer.output_ranges = ranges.get(name), outputs.get(name)
            layer.exact = first

    @torch.compiler.disable
    def _leave(self, *_: object) -> None:
        self._random_states.pop().__exit__(None, None, None)
        # Gradient checkpointing runs layers again in the backward pass.
        for layer in () if torch.is_grad_enabled() else self.layers.values():
            layer.exact = None


def _use_own_memory(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give the parameters that are about to be loaded memory that is not the caller's."""
    for name, parameter in module._parameters.items():
        if parameter is not None and prefix + name in state:
            module._parameters[name] = nn.Parameter(parameter.detach().clone(), False)


def _reject_merge() -> None:
    raise ValueError(
        "The adapter of a deployed model cannot be merged or unloaded, as its frozen weights are "
        "on tiles: do so with the digital model, or deploy it with placement='folded'."
    )


def _reject_save(*_: object, **__: object) -> None:
    raise ValueError(
        "A deployed model cannot be saved by save_pretrained, as its frozen weights are on tiles: "
        "use Deployment.save, or save the digital model."
    )


def hooks_of(model: nn.Module) -> ForwardHooks:
    """Return the hooks of a deployed model.

    Raises:
        ValueError: The model is not deployed.
    """
    hooks = vars(model).get("forward_hooks")
    if not isinstance(hooks, ForwardHooks):
        raise ValueError(
            f"The {type(model).__name__} is not on a chip: give deployment.model, or a model from "
            "attach."
        )
    return hooks
