"""Read a tile on a CPU: `analog_grasp.kernels.reference` as compiled, fused kernels.

DAC and input scaling before the product, computed once for all layers that read a tensor; limbs,
noise, ADC, clipping and digital scales after it. There is no gradient.
"""

import math
import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.kernels import ReadSettings
from analog_grasp.kernels.compiled import (
    Floats,
    as_bits,
    as_float,
    clip,
    copy,
    largest,
    parallel_kernel,
    round_to,
)
from analog_grasp.kernels.matmul import RADIX, Limbs, multiply
from analog_grasp.kernels.reference import Variance, read_again
from analog_grasp.kernels.rng import fill_normal, row_key

_INFINITY = np.int32(0x7F800000)
_NOT_A_NUMBER = np.float32(np.nan)
_LARGEST_FLOAT = np.float32(np.finfo(np.float32).max)
_NONE = np.empty(0, np.float32)
_NO_MATRIX = np.empty((0, 0), np.float32)
_NEXT = np.float32(1 / RADIX)
# Larger products are computed in blocks of rows, for the memory: 64 MiB.
_LARGEST_PRODUCT = 1 << 24


class Inputs(NamedTuple):
    """The converted inputs of the tiles that share them.

    Attributes:
        values: DAC codes, int8, or inputs in [-1, 1], float32; ``(N, width)``.
        gain: The factor of each vector, ``(N,)``; NaN where an input is not a number.
        squares: The sum of squares of each converted vector, full scale 1, ``(N,)``; or empty.
    """

    values: Tensor
    gain: Tensor
    squares: Floats


@parallel_kernel
def convert_inputs(
    first: int,
    end: int,
    x: Floats,
    start: int,
    gain: Floats,
    by_maximum: bool,
    step: np.float32,
    out: NDArray,
    squares: Floats,
) -> None:
    """DAC: scale each input vector to the full range, round to the DAC's steps, clip to [-1, 1].

    A vector with NaN, or scaled by an infinite maximum, gets the gain NaN, and so outputs of NaN.

    Args:
        first, end: The rows to convert.
        x: Inputs, ``(N, D)``.
        start: The tile's first input.
        gain: Factor of each vector, ``(N,)``; written if ``by_maximum``, otherwise read.
        by_maximum: Scale each vector by its largest magnitude.
        step: The DAC's step, in units of the full scale; 0 for no rounding.
        out: Filled with the converted inputs, ``(N, width)``: in units of ``step`` if int8.
        squares: Filled with the sum of squares of each row, full scale 1, ``(N,)``; may be empty.
    """
    width = out.shape[1]
    row = np.empty(width, np.float32)
    coded = out.itemsize == 1
    for n in range(first, end):
        inputs = x[n, start : start + width]
        bits = largest(inputs)
        if bits > _INFINITY or (by_maximum and bits == _INFINITY):
            gain[n] = _NOT_A_NUMBER
            row[:] = 0
        else:
            if by_maximum:
                gain[n] = _reciprocal(as_float(bits))
            factor = gain[n]
            for d in range(width):
                row[d] = inputs[d] * factor
        # One operation per loop, so that the compiler emits vector instructions.
        if coded:
            steps = np.float32(1.0) / step
            for d in range(width):
                row[d] = np.rint(row[d] * steps)
            clip(row, np.rint(steps))
        else:
            round_to(row, step)
            clip(row, np.float32(1.0))
        copy(row, out[n])
        if squares.size:
            unit = step * step if coded else np.float32(1.0)
            squares[n] = unit * _sum_of_squares(row)


@numba.njit
def _reciprocal(magnitude: np.float32) -> np.float32:
    """Return the factor that scales a magnitude to 1; finite also where it is subnormal."""
    if magnitude > 0:
        return min(np.float32(1.0) / magnitude, _LARGEST_FLOAT)
    return np.float32(1.0)


@numba.njit(fastmath={"reassoc"})
def _sum_of_squares(row: Floats) -> np.float32:
    total = np.float32(0.0)
    for d in range(row.size):
        total += row[d] * row[d]
    return total


class Buffers(threading.local):
    """Scratch buffers of a thread, one per type, reused between calls."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}

    def get(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return uninitialised memory, valid until the next call with this type."""
        buffer, size = self._buffers.get(dtype), math.prod(shape)
        if buffer is None or buffer.numel() < size:
            # A tensor made in inference mode cannot be written to outside it.
            with torch.inference_mode(False):
                buffer = self._buffers[dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)


class _Last(threading.local):
    """The last conversion of a thread."""

    known: tuple[object, ...] | None = None
    inputs: Sequence[Inputs] = ()
    tensor: weakref.ref[Tensor] | None = None


_LAST, _INPUTS, _PRODUCTS = _Last(), Buffers(), Buffers()


def convert(
    x: Tensor,
    parts: Sequence[slice],
    settings: ReadSettings,
    input_range: float | None,
    coded: bool,
    with_squares: bool,
) -> Sequence[Inputs]:
    """Return the converted inputs of each part of a tensor's features.

    Layers that read the same tensor one after another convert it once: the last result is found
    again by the tensor itself, which is not kept alive, and the count of its in-place changes.
    Tensors made in inference mode have no such count and are converted each time.

    Args:
        x: Inputs, ``(..., D)``, on a CPU.
        parts: The features of each part, one after another.
        settings: The converters.
        input_range: The input magnitude at the DAC's full scale; None for the settings' scaling.
        coded: Return codes, int8, for a DAC of at most 8 bits.
        with_squares: Return sums of squares.

    Returns:
        A result for each part, valid until the next call in this thread.

    Example:
        >>> x, settings = torch.tensor([[0.5, -1.0]]), ReadSettings(1 / 127, by_maximum=True)
        >>> [found] = convert(x, [slice(0, 2)], settings, None, coded=True, with_squares=False)
        >>> found.values
        tensor([[  64, -127]], dtype=torch.int8)
    """
    ends = tuple((part.start, part.stop) for part in parts)
    by_maximum = settings.by_maximum and input_range is None
    how = (ends, settings.dac_step, by_maximum, input_range, coded, with_squares)
    known = None if x.is_inference() else (x.data_ptr(), x._version, how)
    if known is not None and known == _LAST.known and _LAST.tensor and _LAST.tensor() is x:
        return _LAST.inputs
    _LAST.known = None
    rows = x.reshape(-1, x.shape[-1]).contiguous().float()
    memory = _INPUTS.get(torch.int8 if coded else torch.float32, rows.numel())
    found, begin = [], 0
    for part in parts:
        width = part.stop - part.start
        values = memory[begin : begin + len(rows) * width].view(len(rows), width)
        begin += values.numel()
        gain = torch.full((len(rows),), 1.0 / (input_range or 1.0))
        squares = np.empty(len(rows), np.float32) if with_squares else _NONE
        convert_inputs(
            len(rows),
            rows.numpy(),
            part.start,
            gain.numpy(),
            by_maximum,
            np.float32(settings.dac_step),
            values.numpy(),
            squares,
        )
        found.append(Inputs(values, gain, squares))
    _LAST.known, _LAST.inputs, _LAST.tensor = known, found, weakref.ref(x)
    return found


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
        first, end: The rows to convert.
        product: Analog products, ``(N, D_out)``; or sums of limbs, ``(N, L * D_out)``.
        unit: The output of a unit of the first limb, ``(D_out,)``; empty for analog products.
        gain: Factor of each input vector, ``(N,)``; the outputs are divided by it.
        scale: The digital scale of each column, ``(D_out,)``.
        noise: Standard deviation of the output noise.
        row_variance, variance: Additional variance of every output of a row, ``(N,)``, and of each
            output, ``(N, D_out)``; none if empty.
        steps, bounds: The ADC's step, 0 for none, and largest output in each tile, ``(T,)``.
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
        x: The inputs of the tiles, ``(N, width)``.
        inputs: The same, converted; codes if there are limbs.
        scale: The digital scale of each column, ``(D_out,)``.
        start: A digital bias, ``(D_out,)``, which replaces the contents of ``y`` first; or None.
        y: Outputs, ``(N, D_out)``; updated in place.

    The other arguments are those of `reference.read`.
    """
    converters = settings.by_tile(len(tiles), output_ranges)
    clipped = np.empty((len(x), len(tiles)), np.bool_)
    block = max(_LARGEST_PRODUCT // (len(weight) if limbs is None else len(limbs.values)), 1)
    for begin in range(0, len(x), block):
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
            settings.may_halve(1.0),
            np.array([tile.start for tile in tiles] + [tiles[-1].stop]),
            np.uint64(key + begin),
            _NONE if start is None else start.numpy(),
            y[part].numpy(),
            clipped[part],
        )
    if not (settings.may_halve(1.0) and clipped.any()):
        return
    for tile, mask, own in zip(tiles, clipped.T, converters, strict=True):
        if mask.any():
            chosen = torch.from_numpy(mask.nonzero()[0])
            again = read_again(x[chosen], weight, variance, own, input_range, key, tile, limbs)
            y[chosen, tile] += again * scale[tile]


def _product(values: Tensor, weight: Tensor, limbs: Limbs | None) -> Tensor:
    """Return analog products or sums of limbs, in a buffer of this thread."""
    if limbs is None:
        out = _PRODUCTS.get(torch.float32, len(values), len(weight))
        return torch.mm(values, weight.float().T, out=out)
    return multiply(values, limbs, _PRODUCTS.get(torch.int32, len(values), len(limbs.values)))


def _output_variance(values: Tensor, variance: Variance, step: float) -> Floats:
    """Return the variance of each output where that of the weights differs; else none."""
    if not isinstance(variance, Tensor):
        return _NO_MATRIX
    return ((values.float() * step).square_() @ variance.float().T).numpy()


def column_readout(weight: Tensor, variance: Variance, settings: ReadSettings, key: int) -> Tensor:
    """Return `reference.column_readout` of a contiguous weight, float32, on a CPU; ``(D_out,)``."""
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
