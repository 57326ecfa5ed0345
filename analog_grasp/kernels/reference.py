"""Reading a tile in plain torch: DAC, analog product, noise, ADC, bound management, read-out.

The statement of the computation, for any processor, any floating type and gradients. The compiled
kernels draw the same noise and agree with it up to the rounding of a sum in another order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analog_grasp.kernels.rng import normal

# aihwkit's limits: inputs are divided by at most this, and reduced to no fewer than two bits.
_LARGEST_REDUCTION = 1000.0
_COARSEST_INPUT = 0.25

type Variance = Tensor | float | None
"""The variance of each weight from read to read: ``(D_out, width)``, or the same for all."""


@dataclass(frozen=True)
class ReadSettings:
    """The converters of a tile, in units of its full scale.

    Attributes:
        dac_step: The DAC's step; 0 for an exact input.
        adc_step: The ADC's step; 0 for an exact output.
        output_bound: The ADC's largest output.
        output_noise: Standard deviation of the output noise.
        by_maximum: Scale each input vector by its largest magnitude.
        iterative: Read a vector again at half the input while an output is clipped.

    Source:
        aihwkit's `IOParameters` (Rasch et al., AICAS 2021).
    """

    dac_step: float = 0.0
    adc_step: float = 0.0
    output_bound: float = math.inf
    output_noise: float = 0.0
    by_maximum: bool = False
    iterative: bool = False

    def may_halve(self, reduction: float) -> bool:
        """Return whether a vector clipped at this reduction of its inputs is read again."""
        coarsest = _COARSEST_INPUT / self.dac_step if self.dac_step else math.inf
        return self.iterative and reduction <= min(_LARGEST_REDUCTION, coarsest)


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
    std = _output_std(x, 0.0, variance)
    return product if std is None else product + std * _normal_like(product, key)


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
                again = read_again(
                    x[rows], weight[tile], of_tile(variance, tile), settings, input_range, key
                )
                columns = torch.arange(tile.start, tile.stop, device=x.device)
                y = y.index_put((rows[:, None], columns), again)
    return y


def column_readout(
    weight: Tensor, variance: Variance, settings: ReadSettings | None, key: int
) -> Tensor:
    """Return the mean magnitude of each column's outputs when its rows are driven one by one.

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
    extra = 0.0 if variance is None else variance
    std = (settings.output_noise**2 + torch.as_tensor(extra).to(weight)).sqrt()
    noisy = weight + std * _normal_like(weight, key) if bool(std.any()) else weight
    bound = settings.output_bound
    return _converted(noisy, settings.adc_step).clamp(-bound, bound).abs().mean(1)


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
    std = _output_std(inputs.detach(), settings.output_noise, variance)
    if std is not None:
        product = product + std * _normal_like(product, key)
    bound = settings.output_bound
    out = _converted(product, settings.adc_step)
    return out.clamp(-bound, bound) / gain, out.detach().abs() > bound


def read_again(
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


def _output_std(inputs: Tensor, noise: float, variance: Variance) -> Tensor | float | None:
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
