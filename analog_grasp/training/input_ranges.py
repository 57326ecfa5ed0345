"""Input ranges of the DACs that are learned in training, beside the adapter."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from analog_grasp.utils.types import RANGES_FILE

# Of the first range, in standard deviations of the layer's inputs, as in Analog Foundation Models.
_FIRST_STDS = 18.0
# A range shrinks while a larger one would reduce the loss by less than this per factor of e ...
_DECAY = 0.01
# ... and at least this share of the inputs is within it.
_LEAST_SHARE = 0.95


class LearnedRanges:
    """The input range of each layer, clipped to and learned by gradient and decay.

    The logarithms of the ranges are learned. The gradient of a range is that of the clipping, as
    far as it asks for a larger range; the decay asks for a smaller one, with finer steps of the
    DAC, while less than a twentieth of the inputs is clipped. Inputs that are clipped have no
    gradient.

    Args:
        names: The layers, by name.

    Attributes:
        log: The logarithms of the ranges, ``(L,)`` for L layers.

    Source:
        Input range learning with decay: Rasch et al., Nat. Commun. 14, 5282 (2023), and aihwkit's
        `InputRangeParameter`; first ranges: Analog Foundation Models (NeurIPS 2025).

    Example:
        >>> ranges = LearnedRanges(["dense"])
        >>> ranges.begin({"dense": torch.tensor([0.1, -0.1])})
        >>> round(ranges.values()["dense"], 3)
        0.1
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._index = {name: index for index, name in enumerate(names)}
        self.log = nn.Parameter(torch.zeros(len(self._index)))
        # Inputs beyond the range of each layer, and all, since the last decay.
        self._counts = torch.zeros(len(self._index), 2, dtype=torch.float64)

    @torch.no_grad()
    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        """Set the first range of each layer from inputs: 18 standard deviations, or the largest."""
        for name, x in inputs.items():
            if not x.numel():
                # Of an expert that no token is routed to; the range stays 1.
                continue
            size = torch.minimum(_FIRST_STDS * x.float().std(), x.abs().max().float())
            # Without an input other than 0 the range stays 1.
            self.log[self._index[name]] = size.log() if size > 0 else 0.0

    def values(self) -> dict[str, float]:
        """Return the present range of each layer, in the units of its inputs."""
        # In float64, from which `restore` returns the same bits.
        sizes = self.log.detach().double().exp().tolist()
        return {name: sizes[index] for name, index in self._index.items()}

    @torch.no_grad()
    def restore(self, values: Mapping[str, float]) -> None:
        """Set the ranges to those that `values` returned."""
        for name, size in values.items():
            self.log[self._index[name]] = math.log(size)

    def clip(self, name: str, x: Tensor) -> tuple[Tensor, float]:
        """Return a layer's inputs within its range, and the range."""
        index = self._index[name]
        log = self.log[index]
        clipped: Tensor = _Clip.apply(x, log.to(x.device), self._counts[index])
        return clipped, math.exp(log.item())

    @torch.no_grad()
    def add_decay(self) -> None:
        """Add the decay to the gradient, once per layer however many passes have read it.

        The share of clipped inputs is that of all backward passes since the last call, in all
        processes of a distributed training.
        """
        beyond, total = mean_over_processes(self._counts).unbind(1)
        # A layer without inputs has no share, and no decay.
        decaying = 1 - beyond / total > _LEAST_SHARE
        self._counts.zero_()
        if self.log.grad is not None:
            self.log.grad += _DECAY * decaying.to(self.log.grad)

    def clear(self) -> None:
        """Forget the gradient and the counts of clipped inputs."""
        self.log.grad = None
        self._counts.zero_()


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes of a distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
        values /= torch.distributed.get_world_size()
    return values


class _Clip(torch.autograd.Function):
    """Inputs clipped to a range, which is given by its logarithm.

    The backward pass adds the number of clipped inputs, and of all, to `counts`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log: Tensor, counts: Tensor) -> Tensor:
        size = math.exp(log.item())
        ctx.save_for_backward(x, log)
        ctx.counts = counts
        return x.clamp(-size, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, log = ctx.saved_tensors
        size = math.exp(log.item())
        beyond = x.abs() >= size
        # Of the loss in the range: the sign of the input, times the gradient of its output.
        growth = (grad * x.sign()).masked_select(beyond).float().clamp(max=0).sum() * size
        ctx.counts += torch.tensor([int(beyond.sum()), beyond.numel()])
        return grad.masked_fill(beyond, 0.0), growth.to(log), None


def save_ranges(ranges: Mapping[str, float], folder: str | Path) -> None:
    """Write the range of each layer, by name, beside an adapter, as input_ranges.safetensors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_ranges({"dense": 2.0}, folder)
        ...     load_ranges(folder)
        {'dense': 2.0}
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(
        {name: torch.tensor(size, dtype=torch.float64) for name, size in ranges.items()},
        Path(folder) / RANGES_FILE,
    )


def load_ranges(folder: str | Path) -> dict[str, float]:
    """Return the ranges that `save_ranges` wrote into a folder; none if it did not.

    Raises:
        ValueError: The file is damaged.
    """
    file = Path(folder) / RANGES_FILE
    if not file.is_file():
        return {}
    try:
        return {name: size.item() for name, size in load_file(file).items()}
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"The file {file} is damaged ({error}): train the adapter again."
        ) from None
