"""The arithmetic around an analog product, fused for a CPU: DAC before it; noise and ADC after."""

import threading
from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.kernels.matmul import Packed, multiply
from analog_grasp.kernels.reference import ReadSettings, Variance, of_tile, read_again
from analog_grasp.kernels.rng import Floats, fill_normal, row_key
from analog_grasp.kernels.threads import parallel_kernel

Flags = NDArray[np.bool_]
Ends = NDArray[np.int64]

_MAGNITUDE = 0x7FFFFFFF
_NONE = np.empty(0, np.float32)
_NO_MATRIX = np.empty((0, 0), np.float32)


@parallel_kernel
def convert_inputs(
    first: int,
    end: int,
    x: Floats,
    start: int,
    gain: Floats,
    by_maximum: bool,
    step: np.float32,
    out: Floats,
    squares: Floats,
) -> None:
    """DAC: scale each input vector to the full range, round to the DAC's steps, clip to [-1, 1].

    Args:
        first: The first row to convert.
        end: The row to stop before.
        x: Inputs, ``(N, D)``.
        start: The tile's first input.
        gain: ``(N,)``; filled with what each vector is multiplied by where ``by_maximum``, and
            read where not.
        by_maximum: Whether a vector is scaled by its largest magnitude.
        step: The DAC's step, in units of the full scale; 0 for no rounding.
        out: Filled with what the rows of the tile see, ``(N, width)``.
        squares: Filled with the sum of squares of each row of ``out``, ``(N,)``; left alone if
            empty.
    """
    width = out.shape[1]
    for n in range(first, end):
        inputs, row = x[n, start : start + width], out[n]
        if by_maximum:
            largest = _as_number(_largest(inputs))
            gain[n] = np.float32(1.0) / largest if largest > 0 else np.float32(1.0)
        factor = gain[n]
        for d in range(width):
            row[d] = inputs[d] * factor
        _round(row, step)
        _clip(row, np.float32(1.0))
        if squares.size:
            total = np.float32(0.0)
            for d in range(width):
                total += row[d] * row[d]
            squares[n] = total


# Each loop says one thing, so that the compiler turns it into vector instructions.
@numba.njit
def _largest(row: Floats) -> np.int32:
    """The largest magnitude, as its bits."""
    # Magnitudes are ordered as their bits are, and a maximum of integers needs no order.
    pattern = row.view(np.int32)
    most = np.int32(0)
    for o in range(pattern.size):
        most = max(most, np.int32(pattern[o] & _MAGNITUDE))
    return most


@numba.njit
def _as_number(bits: np.int32) -> np.float32:
    held = np.empty(1, np.int32)
    held[0] = bits
    return held.view(np.float32)[0]


@numba.njit
def _as_bits(number: np.float32) -> np.int32:
    held = np.empty(1, np.float32)
    held[0] = number
    return held.view(np.int32)[0]


@numba.njit
def _round(row: Floats, step: np.float32) -> None:
    if step > 0:
        steps = np.float32(1.0) / step
        for o in range(row.size):
            row[o] = np.rint(row[o] * steps) * step


@numba.njit
def _clip(row: Floats, bound: np.float32) -> None:
    for o in range(row.size):
        row[o] = min(max(row[o], -bound), bound)


@parallel_kernel
def convert_outputs(
    first: int,
    end: int,
    product: Floats,
    gain: Floats,
    scale: Floats,
    noise: np.float32,
    row_variance: Floats,
    variance: Floats,
    step: np.float32,
    bound: np.float32,
    hold: bool,
    ends: Ends,
    key: np.uint64,
    start: Floats,
    y: Floats,
    clipped: Flags,
) -> None:
    """Noise, ADC and the digital scales; the result is added to ``y``, or to a digital bias.

    The noise of an element is a function of ``key`` and its place alone, whatever the threads.

    Args:
        first: The first row to convert.
        end: The row to stop before.
        product: Analog products, ``(N, D_out)``.
        gain: What each input vector was multiplied by, ``(N,)``; divided out again.
        scale: The digital scale of each column, ``(D_out,)``.
        noise: Standard deviation of the output noise.
        row_variance: Further variance of every output of a row, ``(N,)``; none if empty.
        variance: Further variance of each output, ``(N, D_out)``; none if empty.
        step: The ADC's step; 0 for no rounding.
        bound: The ADC's largest output; infinity for none.
        hold: Leave the outputs of a tile alone where one of them is clipped.
        ends: The first output of each tile, and ``D_out``, ``(T + 1,)``.
        key: Names the noise, 64 bits.
        start: What the outputs begin with, ``(D_out,)``; with ``y`` itself if empty.
        y: The outputs, ``(N, D_out)``.
        clipped: Filled with whether an output of the tile was clipped, ``(N, T)``.
    """
    columns = product.shape[1]
    noisy = noise > 0 or row_variance.size > 0 or variance.size > 0
    limit = _as_bits(bound)
    for n in range(first, end):
        row = np.empty(columns, np.float32)
        if noisy:
            fill_normal(row_key(key + np.uint64(n)), row)
        if variance.size:
            for o in range(columns):
                row[o] *= np.sqrt(noise * noise + variance[n, o])
            _disturb(product[n], np.float32(1.0), row)
        elif noisy:
            spread = noise
            if row_variance.size:
                spread = np.sqrt(noise * noise + row_variance[n])
            _disturb(product[n], spread, row)
        else:
            row[:] = product[n]
        _round(row, step)
        factor = np.float32(1.0) / gain[n]
        if start.size:
            y[n] = start
        for tile in range(ends.size - 1):
            part = slice(ends[tile], ends[tile + 1])
            clipped[n, tile] = _largest(row[part]) > limit
            if clipped[n, tile]:
                if hold:
                    continue
                _clip(row[part], bound)
            _add(row[part], factor, scale[part], y[n, part])


@numba.njit(fastmath={"contract"})
def _disturb(product: Floats, spread: np.float32, row: Floats) -> None:
    for o in range(row.size):
        row[o] = product[o] + spread * row[o]


@numba.njit(fastmath={"contract"})
def _add(row: Floats, factor: np.float32, scale: Floats, y: Floats) -> None:
    for o in range(row.size):
        y[o] += row[o] * (factor * scale[o])


@parallel_kernel
def read_columns(
    first: int,
    end: int,
    weight: Floats,
    noise: np.float32,
    variance: Floats,
    step: np.float32,
    bound: np.float32,
    key: np.uint64,
    readout: Floats,
) -> None:
    """What every column gives when its rows are driven one by one: the mean magnitude.

    Args:
        first: The first column to read.
        end: The column to stop before.
        weight: Weights of a tile, ``(D_out, width)``.
        noise: Standard deviation of the output noise.
        variance: Variance of each weight at a read, ``(D_out, width)``, ``(1, 1)`` or empty.
        step: The ADC's step; 0 for no rounding.
        bound: The ADC's largest output.
        key: Names the noise.
        readout: Filled, ``(D_out,)``.
    """
    width = weight.shape[1]
    for o in range(first, end):
        row = np.empty(width, np.float32)
        if noise > 0 or variance.size > 0:
            fill_normal(row_key(key + np.uint64(o)), row)
            if variance.size > 1:
                for d in range(width):
                    row[d] = weight[o, d] + np.sqrt(noise * noise + variance[o, d]) * row[d]
            else:
                spread = np.sqrt(noise * noise + variance[0, 0]) if variance.size else noise
                for d in range(width):
                    row[d] = weight[o, d] + spread * row[d]
        else:
            row[:] = weight[o]
        _round(row, step)
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
    """Read tiles as `reference.read` does, by compiled kernels: float32 on a CPU, no gradient.

    Args:
        x: All inputs of the layer, ``(N, D)``, contiguous; those from ``first`` on are the tiles'.
        first: The tiles' first input.
        weight: As for `reference.read`.
        packed: The same for a faster product; see `matmul.pack`.
        variance: As for `reference.read`.
        settings: As for `reference.read`.
        input_range: As for `reference.read`.
        key: As for `reference.read`.
        tiles: As for `reference.read`.
        scale: The digital scale of each column, ``(D_out,)``.
        start: A digital bias, ``(D_out,)``, that the scaled outputs are added to; None for ``y``.
        y: ``(N, D_out)``; filled.
    """
    rows, width = len(x), weight.shape[1]
    inputs, product = _INPUTS.of(rows, width), _PRODUCTS.of(rows, len(weight))
    gain = x.new_full((rows,), 1.0 / (input_range or 1.0))
    by_row = isinstance(variance, float)
    squares = np.empty(rows if by_row else 0, np.float32)
    convert_inputs(
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
    convert_outputs(
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
            again = read_again(
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


def column_readout(
    weight: Tensor, variance: Variance, settings: ReadSettings | None, key: int
) -> Tensor:
    """Return what `reference.column_readout` does; float32 weights, contiguous, on a CPU."""
    settings = settings or ReadSettings()
    means = torch.empty(len(weight))
    read_columns(
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


def _as_array(variance: Variance, weight: Tensor) -> np.ndarray:
    if variance is None:
        return _NO_MATRIX
    if isinstance(variance, float):
        return np.full((1, 1), variance, np.float32)
    return variance.to(weight).numpy()
