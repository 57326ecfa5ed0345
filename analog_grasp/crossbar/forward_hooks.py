"""What goes on around each forward pass of a deployed model."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.crossbar.tile import chip_layer

# Magnitudes kept of each layer and pass: enough for a percentile, and few enough to hold.
_KEPT = 1 << 16


class Passes:
    """Makes a model's forward passes draw their noise from the chip, and sets its input ranges.

    Each model numbers its own passes, so that what it reads does not depend on which others share
    the chip; the caller's random state is left as it was.

    Args:
        model: The deployed model.
        layers: Its layers on tiles, by name.
        seed_of: Gives the seed of a pass from its number.
        shared: The parameters, by name, whose memory is the caller's: each pass raises
            RuntimeError where one has been changed in place.

    Attributes:
        input_ranges: The DAC's range of each layer for this model, by name; see `observed_ranges`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        seed_of: Callable[[int], int],
        shared: Mapping[str, Tensor],
    ) -> None:
        self.input_ranges: dict[str, float] = {}
        self._layers, self._seed_of = layers, seed_of
        self._shared = {name: (tensor, tensor._version) for name, tensor in shared.items()}
        self._callers: list[AbstractContextManager[None]] = []
        self.restart()
        # Generation calls the model inside peft's, whose own forward pass it goes around.
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        inner.register_forward_pre_hook(self._enter)
        # Also where the pass fails: the caller's random state must come back.
        inner.register_forward_hook(self._leave, always_call=True)

    def restart(self) -> None:
        """Number the passes anew, as the chip's state has changed."""
        self._numbers = itertools.count()

    def _check_shared(self) -> None:
        for name, (tensor, version) in self._shared.items():
            if tensor._version != version:
                raise RuntimeError(
                    f"The parameter {name} was changed in place after the model was deployed: "
                    "deploy the model again."
                )

    def _enter(self, *_: object) -> None:
        self._callers.append(torch.random.fork_rng())
        self._callers[-1].__enter__()
        self._check_shared()
        torch.manual_seed(self._seed_of(next(self._numbers)))
        for name, layer in self._layers.items():
            chip_layer(layer).input_range = self.input_ranges.get(name)

    def _leave(self, *_: object) -> None:
        self._callers.pop().__exit__(None, None, None)


def observed_ranges(
    layers: Mapping[str, nn.Module], observe: Callable[[], object], percentile: float
) -> dict[str, float]:
    """The percentile of the magnitudes of each layer's inputs, in digital passes of the model.

    Args:
        layers: Layers on tiles, by name.
        observe: Runs the model on data.
        percentile: 100 for the maximum.

    Returns:
        The ranges of the layers that were run and had an input other than 0, by name.

    Raises:
        ValueError: The percentile is not above 0 and at most 100.
    """
    if not 0 < percentile <= 100:
        raise ValueError(
            f"The percentile of the inputs is {percentile}: it should be above 0 and at most 100, "
            "which is the maximum."
        )
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes = inputs[0].detach().abs().flatten().float()
            if percentile == 100:
                sizes = sizes.max()[None]
            step = -(-len(sizes) // _KEPT)
            seen[name].append(sizes[::step])

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with computed_digitally(layers.values()), torch.no_grad():
            observe()
    finally:
        for handle in handles:
            handle.remove()
    ranges = {
        name: _percentile(torch.cat(sizes), percentile) for name, sizes in seen.items() if sizes
    }
    return {name: size for name, size in ranges.items() if size > 0}


def _percentile(sizes: Tensor, percentile: float) -> float:
    """By sorting: torch.quantile refuses tensors as large as these."""
    return float(sizes.kthvalue(max(math.ceil(len(sizes) * percentile / 100), 1)).values)


@contextmanager
def computed_digitally(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block the layers compute with their frozen weights, exactly."""
    chosen = [chip_layer(layer) for layer in layers]
    before = [layer.digital for layer in chosen]
    for layer in chosen:
        layer.digital = True
    try:
        yield
    finally:
        for layer, digital in zip(chosen, before, strict=True):
            layer.digital = digital
