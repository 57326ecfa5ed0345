"""Read a tile on a CPU: `analog_grasp.kernels.reference` as compiled, fused kernels.

DAC and input scaling before the product; limbs, noise, ADC, clipping and digital scales after it.
There is no gradient.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.kernels.inputs import Buffers, Inputs, clip, copy, largest, round_to
from analog_grasp.kernels.matmul import RADIX, Limbs, multiply
from analog_grasp.kernels.parameters import ReadSettings
from analog_grasp.kernels.reference import Variance, read_again
from analog_grasp.kernels.rng import Floats, as_bits, fill_normal, row_key
from analog_grasp.kernels.threads import parallel_kernel

_NONE = np.empty(0, np.float32)
_NO_MATRIX = np.empty((0, 0), np.float32)
_NEXT = np.float32(1 / RADIX)
# Larger products are computed in blocks of rows, for the memory: 64 MiB.
_LARGEST_PRODUCT = 1 << 24


@parallel_kernel
def convert_outputs(
    first: int,
    end: int,
    product: NDArray,
    unit: Floats,
    gain: Floats,
    scale: Floats,
    noise: np.float32,
    row_variance: Floats,
    variance: Floats,
    steps: Floats,
    bounds: Floats,
    hold: bool,
    ends: NDArray[np.int64],
    key: np.uint64,
    start: Floats,
    y: Floats,
    clipped: NDArray[np.bool_],
) -> None:
    """Apply noise, ADC and digital scales, and add the result to ``y`` or to a digital bias.

    The noise of an element depends on ``key`` and its position only, not on the threads.

    Args:
        first, end: The first row to convert, and the row to stop before.
        product: Analog products, ``(N, D_out)``; or sums of limbs, ``(N, L * D_out)``.
        unit: The output of a unit of the first limb, ``(D_out,)``; empty for analog products.
        gain: Factor of each input vector, ``(N,)``; the outputs are divided by it.
        scale: The digital scale of each column, ``(D_out,)``.
        noise: Standard deviation of the output noise.
        row_variance: Additional variance of every output of a row, ``(N,)``; none if empty.
        variance: Additional variance of each output, ``(N, D_out)``; none if empty.
        steps: The ADC's step in each tile, ``(T,)``; 0 for no rounding.
        bounds: The ADC's largest output in each tile, ``(T,)``; infinity for none.
        hold: Do not add the outputs of a tile where one of them is clipped.
        ends: The first output of each tile, and ``D_out``, ``(T + 1,)``.
        key: Key of the noise, 64 bits.
        start: Initial outputs of every row, ``(D_out,)``; the contents of ``y`` if empty.
        y: The outputs, ``(N, D_out)``.
        clipped: Filled with True where an output of the tile was clipped, ``(N, T)``.
    """
    columns = y.shape[1]
    noisy = noise > 0 or row_variance.size > 0 or variance.size > 0
    row = np.empty(columns, np.float32)
    exact = np.empty(columns, np.float32)
    for n in range(first, end):
        _join(product[n], unit, exact if noisy else row)
        if noisy:
            fill_normal(row_key(key + np.uint64(n)), row)
        if variance.size:
            for o in range(columns):
                row[o] *= np.sqrt(noise * noise + variance[n, o])
            _add_noise(exact, np.float32(1.0), row)
        elif noisy:
            std = noise
            if row_variance.size:
                std = np.sqrt(noise * noise + row_variance[n])
            _add_noise(exact, std, row)
        factor = np.float32(1.0) / gain[n]
        if start.size:
            copy(start, y[n])
        for tile in range(ends.size - 1):
            part = slice(ends[tile], ends[tile + 1])
            outputs = row[part]
            round_to(outputs, steps[tile])
            clipped[n, tile] = largest(outputs) > as_bits(bounds[tile])
            if clipped[n, tile]:
                if hold:
                    continue
                clip(outputs, bounds[tile])
            _add(outputs, factor, scale[part], y[n, part])


@numba.njit(fastmath={"contract"})
def _join(product: NDArray, unit: Floats, row: Floats) -> None:
    """Compute analog products from sums of limbs."""
    columns = row.size
    limbs = product.size // columns
    if unit.size == 0:
        for o in range(columns):
            row[o] = np.float32(product[o])
    elif limbs == 1:
        for o in range(columns):
            row[o] = np.float32(product[o]) * unit[o]
    elif limbs == 2:
        second = product[columns:]
        for o in range(columns):
            row[o] = (np.float32(product[o]) + np.float32(second[o]) * _NEXT) * unit[o]
    else:
        second, third = product[columns : 2 * columns], product[2 * columns :]
        for o in range(columns):
            rest = np.float32(second[o]) + np.float32(third[o]) * _NEXT
            row[o] = (np.float32(product[o]) + rest * _NEXT) * unit[o]


@numba.njit(fastmath={"contract"})
def _add_noise(product: Floats, std: np.float32, row: Floats) -> None:
    for o in range(row.size):
        row[o] = product[o] + std * row[o]


@numba.njit(fastmath={"contract"})
def _add(row: Floats, factor: np.float32, scale: Floats, y: Floats) -> None:
    for o in range(row.size):
        y[o] += row[o] * (factor * scale[o])


@parallel_kernel
def read_columns(
    first: int,
    end: int,
    weight: Floats,
    std: Floats,
    step: np.float32,
    bound: np.float32,
    key: np.uint64,
    readout: Floats,
) -> None:
    """Fill `readout` with `column_readout`, given the noise of each weight, of all, or of none."""
    width = weight.shape[1]
    row = np.empty(width, np.float32)
    for o in range(first, end):
        if std.size:
            fill_normal(row_key(key + np.uint64(o)), row)
            for d in range(width):
                row[d] = weight[o, d] + (std[o, d] if std.size > 1 else std[0, 0]) * row[d]
        else:
            copy(weight[o], row)
        round_to(row, step)
        readout[o] = _mean_magnitude(row, bound)


@numba.njit(fastmath={"reassoc"})
def _mean_magnitude(row: Floats, bound: np.float32) -> np.float32:
    total = np.float32(0.0)
    for d in range(row.size):
        total += min(abs(row[d]), bound)
    return total / np.float32(row.size)


def read(
    x: Tensor,
    first: int,
    inputs: Inputs,
    weight: Tensor,
    limbs: Limbs | None,
    variance: Variance,
    settings: ReadSettings,
    input_range: float | None,
    key: int,
    tiles: Sequence[slice],
    scale: Tensor,
    start: Tensor | None,
    y: Tensor,
    output_ranges: Sequence[float] | None = None,
) -> None:
    """Read the tiles that share their inputs, scale their outputs and add them to ``y``.

    Args:
        x: All inputs of the layer, ``(N, D)``, contiguous.
        first: Index of the tiles' first input.
        inputs: The inputs of the tiles, converted; codes if there are limbs.
        weight, limbs, variance, settings, input_range, key, tiles: See `reference.read`.
        scale: The digital scale of each column, ``(D_out,)``.
        start: A digital bias, ``(D_out,)``, which replaces the contents of ``y`` first; or None.
        y: Outputs, ``(N, D_out)``; updated in place.
        output_ranges: See `reference.read`.
    """
    ranges: Sequence[float | None] = output_ranges or [None] * len(tiles)
    converters = [settings.at_range(largest) for largest in ranges]
    rows, width = len(x), weight.shape[1]
    clipped = np.empty((rows, len(tiles)), np.bool_)
    block = max(_LARGEST_PRODUCT // (len(weight) if limbs is None else len(limbs.values)), 1)
    for begin in range(0, rows, block):
        part = slice(begin, begin + block)
        values = inputs.values[part]
        convert_outputs(
            len(values),
            _product(values, weight, limbs).numpy(),
            _NONE if limbs is None else limbs.unit.numpy(),
            inputs.gain[part].numpy(),
            scale.numpy(),
            np.float32(settings.output_noise),
            inputs.squares[part] * np.float32(variance) if isinstance(variance, float) else _NONE,
            _output_variance(values, variance, 1.0 if limbs is None else settings.dac_step),
            np.array([each.adc_step for each in converters], np.float32),
            np.array([each.output_bound for each in converters], np.float32),
            settings.iterative,
            np.array([tile.start for tile in tiles] + [tiles[-1].stop]),
            np.uint64(key + begin),
            _NONE if start is None else start.numpy(),
            y[part].numpy(),
            clipped[part],
        )
    if not (settings.iterative and clipped.any()):
        return
    for tile, mask, own in zip(tiles, clipped.T, converters, strict=True):
        if mask.any():
            chosen = torch.from_numpy(mask.nonzero()[0])
            part_of_x = x[chosen, first : first + width]
            again = read_again(part_of_x, weight, variance, own, input_range, key, tile, limbs)
            y[chosen, tile] += again * scale[tile]


_BUFFERS = Buffers()


def _product(values: Tensor, weight: Tensor, limbs: Limbs | None) -> Tensor:
    """Return analog products or sums of limbs, in a buffer of this thread."""
    if limbs is None:
        out = _BUFFERS.get(len(values) * len(weight), torch.float32).view(len(values), -1)
        return torch.mm(values, weight.float().T, out=out)
    size = len(limbs.values)
    out = _BUFFERS.get(len(values) * size, torch.int32).view(len(values), size)
    return multiply(values, limbs, out)


def _output_variance(values: Tensor, variance: Variance, step: float) -> Floats:
    """Return the variance of each output where that of the weights differs; else none."""
    if not isinstance(variance, Tensor):
        return _NO_MATRIX
    return (values.float().mul_(step).square_() @ variance.float().T).numpy()


def column_readout(
    weight: Tensor, variance: Variance, settings: ReadSettings | None, key: int
) -> Tensor:
    """Return `reference.column_readout` of a contiguous weight, float32, on a CPU; ``(D_out,)``."""
    settings = settings or ReadSettings()
    means, std = torch.empty(len(weight)), _NO_MATRIX
    noise = np.float32(settings.output_noise)
    if isinstance(variance, Tensor):
        std = np.sqrt(noise * noise + variance.to(weight).numpy())
    elif noise or variance is not None:
        std = np.sqrt(np.full((1, 1), noise * noise + np.float32(variance or 0.0)))
    read_columns(
        len(weight),
        weight.numpy(),
        std,
        np.float32(settings.adc_step),
        np.float32(settings.output_bound),
        np.uint64(key),
        means.numpy(),
    )
    return means
