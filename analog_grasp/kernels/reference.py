"""Read a tile, in plain torch: DAC, analog product, noise, ADC, bound management, column read-out.

This is the statement of the computation. It runs on any processor in any floating type and is
differentiable with respect to the inputs; the compiled kernels are checked against it. Both draw
the same noise and agree up to the rounding of sums in another order.

With inputs x, weights W whose largest magnitude per column is about 1, a gain a per input vector
(the reciprocal of its largest magnitude, or of a fixed input range), round_s rounding to steps of
s, and z ~ N(0, 1):

    x' = clip(round_dac(a x), -1, 1)
    v  = x' W^T + std z,   std^2 = output_noise^2 + sum_d x'_d^2 var(W_od)
    y  = clip(round_adc(v), -output_bound, output_bound) / a

Where an output of a tile is clipped and bound management is iterative, the tile reads that vector
again with a halved, until no output is clipped or a limit is reached.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from analog_grasp.kernels import ReadSettings
from analog_grasp.kernels.matmul import Limbs, analog_product
from analog_grasp.kernels.rng import has_triton, normal

type Variance = Tensor | float | None
"""The variance of each weight from read to read: ``(D_out, width)``, or the same for all."""


def read_exactly(x: Tensor, weight: Tensor, variance: Variance, key: int) -> Tensor:
    """Return products without converters, ``(N, D_out)``; arguments as for `read`.

    Example:
        >>> read_exactly(torch.ones(1, 2), torch.tensor([[0.5, -1.0]]), None, 0)
        tensor([[-0.5000]])
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
    limbs: Limbs | None = None,
    output_ranges: Sequence[float] | None = None,
) -> Tensor:
    """Read the tiles that share their inputs, through their converters.

    A tile with a clipped output reads that vector again by itself, as the hardware and aihwkit's
    compiled tile do; aihwkit's torch tile reads the whole batch again.

    Args:
        x: Inputs, ``(N, width)``; N: vectors, width: inputs of the tiles.
        weight: Weights of the tiles, ``(D_out, width)``, in the type in which they are stored.
        variance: Variance of the weights from read to read, in the same units.
        settings: The converters.
        input_range: The input magnitude at the DAC's full scale, for every vector; None for the
            scaling of the settings.
        key: Key of the noise of this read, 64 bits.
        tiles: The outputs of each tile.
        limbs: The weights as integers, for exact products of DAC codes; None for torch's product.
        output_ranges: The ADC's largest output in each tile; None for that of the settings.

    Returns:
        ``(N, D_out)``, in units of the inputs times the weights.

    Source:
        aihwkit's ``AnalogMVM`` (Rasch et al., AICAS 2021).

    Example:
        >>> settings = ReadSettings(adc_step=0.5, output_bound=12.0)
        >>> read(torch.tensor([[0.9, 0.2]]), torch.eye(2), None, settings, None, 0, [slice(0, 2)])
        tensor([[1., 0.]])
    """
    bounds: Tensor | None = None
    if output_ranges is not None:
        sizes = torch.tensor([tile.stop - tile.start for tile in tiles], device=x.device)
        bounds = x.new_tensor(output_ranges).repeat_interleave(sizes)
    y, clipped = _read_once(x, weight, variance, settings, input_range, 1.0, key, limbs, bounds)
    if settings.may_halve(1.0) and bool(clipped.any()):
        by_tile = settings.by_tile(len(tiles), output_ranges)
        for tile, own in zip(tiles, by_tile, strict=True):
            rows = clipped[:, tile].any(1).nonzero().squeeze(1)
            if len(rows):
                again = read_again(x[rows], weight, variance, own, input_range, key, tile, limbs)
                columns = torch.arange(tile.start, tile.stop, device=x.device)
                y = y.index_put((rows[:, None], columns), again)
    return y


def read_again(
    x: Tensor,
    weight: Tensor,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    key: int,
    tile: slice,
    limbs: Limbs | None,
) -> Tensor:
    """Read vectors of which an output was clipped, halving their inputs at each attempt.

    Args:
        x: The clipped inputs of one tile, ``(N, width)``.
        key: Key of the first read; each further read has a key of its own.
        tile: The outputs of the tile.

    Returns:
        ``(N, outputs of the tile)``; the other arguments are those of `read`.
    """
    weight, variance = weight[tile], of_tile(variance, tile)
    limbs = None if limbs is None else limbs.of_tile(tile)
    y = x.new_zeros(len(x), len(weight))
    rows, reduction = torch.arange(len(x), device=x.device), 1.0
    while len(rows) and settings.may_halve(reduction):
        reduction *= 2.0
        # Far from the keys of the rows of this read, of other tiles and of the first read.
        again = (key + (tile.start << 24) + (int(math.log2(reduction)) << 48)) % 2**64
        out, clipped = _read_once(
            x[rows], weight, variance, settings, input_range, reduction, again, limbs
        )
        y = y.index_copy(0, rows, out)
        rows = rows[clipped.any(1)]
    return y


def column_readout(weight: Tensor, variance: Variance, settings: ReadSettings, key: int) -> Tensor:
    """Return the mean magnitude of each column's outputs when its rows are driven one by one.

    ``(D_out,)`` of the weights ``(D_out, width)`` of one tile.

    Source:
        Global drift compensation: Joshi et al., Nat. Commun. 11, 2473 (2020); with aihwkit's
        read-out vectors, the rows of the identity.

    Example:
        >>> column_readout(torch.tensor([[0.5, -1.0]]), None, ReadSettings(), 0)
        tensor([0.7500])
    """
    extra = 0.0 if variance is None else variance
    std = (settings.output_noise**2 + torch.as_tensor(extra).to(weight)).sqrt()
    noisy = weight + std * _normal_like(weight, key) if bool(std.any()) else weight
    bound = settings.output_bound
    return _rounded(noisy, settings.adc_step).clamp(-bound, bound).abs().mean(1)


def of_tile(variance: Variance, tile: slice) -> Variance:
    """Return the part of a variance that belongs to the outputs of one tile."""
    return variance[tile] if isinstance(variance, Tensor) else variance


def _read_once(
    x: Tensor,
    weight: Tensor,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    reduction: float,
    key: int,
    limbs: Limbs | None,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs, and a mask of the clipped ones, both ``(N, D_out)``.

    `bounds` is the largest output of each column, ``(D_out,)``, in place of that of the settings.
    """
    if limbs is not None and x.is_cuda and x.dtype == torch.float32 and has_triton():
        from analog_grasp.kernels import cuda

        return cuda.read_once(x, variance, settings, input_range, reduction, key, limbs, bounds)
    gain: Tensor | float = 1.0 / ((input_range or 1.0) * reduction)
    if settings.by_maximum and input_range is None:
        largest = x.detach().abs().amax(1, keepdim=True)
        # Finite also where the largest is subnormal.
        gain = (1.0 / (largest * reduction)).clamp(max=torch.finfo(x.dtype).max)
        gain = torch.where(largest > 0, gain, 1.0)
        # No input exceeds the range, so clipping would only zero the gradient at its edge.
        inputs = _rounded(x * gain, settings.dac_step)
    else:
        inputs = _rounded(x * gain, settings.dac_step).clamp(-1.0, 1.0)
    if limbs is None:
        analog = inputs @ weight.to(x.dtype).T
    else:
        analog = analog_product(inputs, limbs, settings.dac_step)
    std = _output_std(inputs.detach(), settings.output_noise, variance)
    if std is not None:
        analog = analog + std * _normal_like(analog, key)
    bound: Any = settings.output_bound
    step: Any = settings.adc_step
    if bounds is not None:
        step, bound = step and step * (bounds / bound), bounds
    out = _rounded(analog, step)
    return out.clamp(-bound, bound) / gain, out.detach().abs() > bound


def _output_std(inputs: Tensor, noise: float, variance: Variance) -> Tensor | float | None:
    """Return the standard deviation of the outputs, None for exact ones."""
    if variance is None:
        return noise or None
    squares = inputs.square()
    if isinstance(variance, Tensor):
        return (squares @ variance.to(inputs.dtype).T + noise**2).sqrt()
    return (squares.sum(1, keepdim=True) * variance + noise**2).sqrt()


def _rounded(v: Tensor, step: Tensor | float) -> Tensor:
    """Round to multiples of a step, with a straight-through gradient."""
    if not torch.is_tensor(step) and not step:
        return v
    rounded = (v.detach() / step).round() * step
    return v + (rounded - v.detach()) if v.requires_grad else rounded


def _normal_like(like: Tensor, key: int) -> Tensor:
    return normal(key, like.shape, device=like.device, dtype=like.dtype)
