"""Reading tiles: DAC, analog product, noise, ADC and bound management, as a card describes them.

Twice: in torch, for any processor, any floating type and gradients, and by the fused kernels of
`analog_grasp.kernels.cpu` for float32 on a CPU where no gradient is asked. Both draw the same
noise and agree up to the rounding of a sum in another order.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from analog_grasp.devices.schema import Converters
from analog_grasp.kernels import cpu as kernels
from analog_grasp.kernels.matmul import Packed, multiply
from analog_grasp.kernels.programming import fits_kernel
from analog_grasp.kernels.rng import normal

# aihwkit's: inputs are scaled down by at most this, and to no fewer than two bits.
_LARGEST_REDUCTION = 1000.0
_COARSEST_INPUT = 0.25
_NONE = np.empty(0, np.float32)
_NO_MATRIX = np.empty((0, 0), np.float32)

type Variance = Tensor | float | None
"""The variance of every weight from read to read: a matrix ``(D_out, width)``, or one number."""


@dataclass(frozen=True)
class ReadSettings:
    """The converters of a tile in the units of its full scale.

    Attributes:
        dac_step: The DAC's step; 0 for an exact input.
        adc_step: The ADC's step; 0 for an exact output.
        output_bound: The ADC's largest output.
        output_noise: Standard deviation of the output noise.
        by_maximum: Whether each input vector is scaled by its largest magnitude.
        iterative: Whether a vector is read again at half the input while an output is clipped.

    Source:
        aihwkit's `IOParameters` (Rasch et al., AICAS 2021).

    Example:
        >>> from analog_grasp.devices.card import DeviceCard
        >>> settings = ReadSettings.of(DeviceCard.load("pcm-hermes-2").converters)
        >>> round(1 / settings.dac_step)
        127
    """

    dac_step: float = 0.0
    adc_step: float = 0.0
    output_bound: float = math.inf
    output_noise: float = 0.0
    by_maximum: bool = False
    iterative: bool = False

    @classmethod
    def of(cls, converters: Converters) -> Self:
        """The settings that a card's converters stand for: a range of b bits has 2^b - 2 steps."""
        bound = converters.output_range or math.inf
        return cls(
            dac_step=_step(converters.dac_bits, 1.0),
            adc_step=_step(converters.adc_bits, bound),
            output_bound=bound,
            output_noise=converters.output_noise,
            by_maximum=converters.input_scaling == "abs_max",
            iterative=converters.bound_management == "iterative",
        )

    def may_halve(self, reduction: float) -> bool:
        """Whether a vector that was clipped at this reduction of its inputs is read again."""
        coarsest = _COARSEST_INPUT / self.dac_step if self.dac_step else math.inf
        return self.iterative and reduction <= min(_LARGEST_REDUCTION, coarsest)


def _step(bits: int | None, bound: float) -> float:
    return 2.0 * bound / (2**bits - 2) if bits else 0.0


def read_exactly(x: Tensor, weight: Tensor, variance: Variance, key: int) -> Tensor:
    """Products without converters, under short-term read noise where there is some.

    Args:
        x: Inputs, ``(N, width)``.
        weight: Weights of the tiles, ``(D_out, width)``.
        variance: Of the weights from read to read.
        key: Names the noise.

    Returns:
        ``(N, D_out)``.
    """
    product = x @ weight.to(x.dtype).T
    spread = _spread(x, 0.0, variance)
    return product if spread is None else product + spread * _normal_like(product, key)


def read(
    x: Tensor,
    weight: Tensor,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    key: int,
    tiles: Sequence[slice],
) -> Tensor:
    """Read the tiles that share their inputs, through their converters.

    A tile of which an output is clipped reads that vector again by itself with half the inputs, as
    on the hardware and in aihwkit's compiled tile; its torch tile reads the whole batch again.

    Args:
        x: Inputs, ``(N, width)``.
        weight: Weights of the tiles, ``(D_out, width)``, the largest of a column being about 1, in
            the type that they are kept in.
        variance: Of the weights from read to read, in the same units.
        settings: The converters.
        input_range: The magnitude that is the DAC's full scale for every vector; None for the
            settings' own scaling.
        key: Names the noise of this read.
        tiles: The outputs of each tile.

    Returns:
        ``(N, D_out)``, in the units of the inputs times those of the weights.
    """
    y, over = _read_once(x, weight, variance, settings, input_range, 1.0, key)
    if settings.iterative:
        for tile in tiles:
            rows = over[:, tile].any(1).nonzero().squeeze(1)
            if len(rows):
                again = _read_again(
                    x[rows], weight[tile], of_tile(variance, tile), settings, input_range, key
                )
                columns = torch.arange(tile.start, tile.stop, device=x.device)
                y = y.index_put((rows[:, None], columns), again)
    return y


def read_fast(
    x: Tensor,
    first: int,
    weight: Tensor,
    packed: Packed | None,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    key: int,
    tiles: Sequence[slice],
    scale: Tensor,
    start: Tensor | None,
    y: Tensor,
) -> None:
    """As `read`, by the fused kernels; float32 on a CPU, without gradient.

    Args:
        x: All inputs of the layer, ``(N, D)``, contiguous; those from ``first`` on are the tiles'.
        first: The tiles' first input.
        weight: As for `read`.
        packed: The same for a faster product; see `products.pack`.
        variance: As for `read`.
        settings: As for `read`.
        input_range: As for `read`.
        key: As for `read`.
        tiles: As for `read`.
        scale: The digital scale of each column, ``(D_out,)``.
        start: A digital bias, ``(D_out,)``, that the scaled outputs are added to; None for ``y``.
        y: ``(N, D_out)``; filled.
    """
    rows, width = len(x), weight.shape[1]
    inputs, product = _INPUTS.of(rows, width), _PRODUCTS.of(rows, len(weight))
    gain = x.new_full((rows,), 1.0 / (input_range or 1.0))
    by_row = isinstance(variance, float)
    squares = np.empty(rows if by_row else 0, np.float32)
    kernels.convert_inputs(
        rows,
        x.numpy(),
        first,
        gain.numpy(),
        settings.by_maximum and input_range is None,
        np.float32(settings.dac_step),
        inputs.numpy(),
        squares,
    )
    matrix = _NO_MATRIX
    if isinstance(variance, Tensor):
        matrix = (inputs.square() @ variance.float().T).numpy()
    clipped = np.empty((rows, len(tiles)), np.bool_)
    kernels.convert_outputs(
        rows,
        multiply(inputs, weight, packed, settings.dac_step, product).numpy(),
        gain.numpy(),
        scale.numpy(),
        np.float32(settings.output_noise),
        squares * np.float32(variance) if by_row else _NONE,
        matrix,
        np.float32(settings.adc_step),
        np.float32(settings.output_bound),
        settings.iterative,
        np.array([tile.start for tile in tiles] + [tiles[-1].stop]),
        np.uint64(key),
        _NONE if start is None else start.numpy(),
        y.numpy(),
        clipped,
    )
    if not (settings.iterative and clipped.any()):
        return
    for tile, held in zip(tiles, clipped.T, strict=True):
        if held.any():
            chosen = torch.from_numpy(held.nonzero()[0])
            part = x[chosen, first : first + width]
            again = _read_again(
                part, weight[tile], of_tile(variance, tile), settings, input_range, key
            )
            y[chosen, tile] += again * scale[tile]


class _Room(threading.local):
    """Memory that is used again: a process that asks for it anew each time waits for its pages."""

    def __init__(self) -> None:
        self._numbers = torch.empty(0)

    def of(self, rows: int, columns: int) -> Tensor:
        """A matrix of anything, whose contents last until the next is asked for."""
        if self._numbers.numel() < rows * columns:
            # One that is made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                self._numbers = torch.empty(rows * columns)
        return self._numbers[: rows * columns].view(rows, columns)


_INPUTS, _PRODUCTS = _Room(), _Room()


def readout(weight: Tensor, variance: Variance, settings: ReadSettings | None, key: int) -> Tensor:
    """What the columns of a tile give when its rows are driven one by one: the mean magnitude.

    Args:
        weight: Weights of one tile, ``(D_out, width)``.
        variance: Of the weights from read to read.
        settings: The converters; None for exact arithmetic.
        key: Names the noise.

    Returns:
        ``(D_out,)``.

    Source:
        Global drift compensation: Joshi et al., Nat. Commun. 11, 2473 (2020); with aihwkit's
        read-out vectors, the rows of the identity.
    """
    settings = settings or ReadSettings()
    if fits_kernel(weight):
        means = torch.empty(len(weight))
        kernels.column_readout(
            len(weight),
            weight.numpy(),
            np.float32(settings.output_noise),
            _as_array(variance, weight),
            np.float32(settings.adc_step),
            np.float32(settings.output_bound),
            np.uint64(key),
            means.numpy(),
        )
        return means
    extra = 0.0 if variance is None else variance
    spread = settings.output_noise**2 + torch.as_tensor(extra).to(weight)
    noisy = weight + spread.sqrt() * _normal_like(weight, key) if bool(spread.any()) else weight
    return _converted(noisy, settings.adc_step).clamp(
        -settings.output_bound, settings.output_bound
    ).abs().mean(1)  # fmt: skip


def _read_once(
    x: Tensor,
    weight: Tensor,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    reduction: float,
    key: int,
) -> tuple[Tensor, Tensor]:
    """The outputs ``(N, D_out)``, and which of them were clipped."""
    gain: Tensor | float = 1.0 / ((input_range or 1.0) * reduction)
    if settings.by_maximum and input_range is None:
        largest = x.detach().abs().amax(1, keepdim=True)
        gain = torch.where(largest > 0, 1.0 / (largest * reduction), 1.0)
        # Nothing lies beyond the range, and the largest at its edge has a gradient like the others.
        inputs = _converted(x * gain, settings.dac_step)
    else:
        inputs = _converted(x * gain, settings.dac_step).clamp(-1.0, 1.0)
    product = inputs @ weight.to(x.dtype).T
    spread = _spread(inputs.detach(), settings.output_noise, variance)
    if spread is not None:
        product = product + spread * _normal_like(product, key)
    bound = settings.output_bound
    out = _converted(product, settings.adc_step)
    return out.clamp(-bound, bound) / gain, out.detach().abs() > bound


def _read_again(
    x: Tensor,
    weight: Tensor,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    key: int,
) -> Tensor:
    """Read vectors of which an output was clipped, with smaller and smaller inputs."""
    y = x.new_zeros(len(x), len(weight))
    rows, reduction = torch.arange(len(x), device=x.device), 1.0
    while len(rows) and settings.may_halve(reduction):
        reduction *= 2.0
        again = _next_key(key, reduction)
        out, over = _read_once(x[rows], weight, variance, settings, input_range, reduction, again)
        y = y.index_copy(0, rows, out)
        rows = rows[over.any(1)]
    return y


def of_tile(variance: Variance, tile: slice) -> Variance:
    """The variance of the weights of one tile, from that of all."""
    return variance[tile] if isinstance(variance, Tensor) else variance


def _spread(inputs: Tensor, noise: float, variance: Variance) -> Tensor | float | None:
    """Standard deviation of the outputs: of the converters, and of the weights at this read."""
    if variance is None:
        return noise or None
    squares = inputs.square()
    if isinstance(variance, Tensor):
        return (squares @ variance.to(inputs.dtype).T + noise**2).sqrt()
    return (squares.sum(1, keepdim=True) * variance + noise**2).sqrt()


def _converted(v: Tensor, step: float) -> Tensor:
    """Round to the steps of a converter; the gradient passes straight through."""
    if not step:
        return v
    rounded = (v.detach() / step).round() * step
    return v + (rounded - v.detach()) if v.requires_grad else rounded


def _normal_like(like: Tensor, key: int) -> Tensor:
    return normal(key, like.shape, device=like.device, dtype=like.dtype)


def _next_key(key: int, reduction: float) -> int:
    """The key of a further read: far from those of the rows of this one."""
    return (key + (int(math.log2(reduction)) << 48)) % 2**64


def _as_array(variance: Variance, weight: Tensor) -> np.ndarray:
    if variance is None:
        return _NO_MATRIX
    if isinstance(variance, float):
        return np.full((1, 1), variance, np.float32)
    return variance.to(weight).numpy()
