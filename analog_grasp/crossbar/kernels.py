"""The arithmetic around an analog product, fused for a CPU: DAC before it; noise and ADC after."""

import numba
import numpy as np
from numpy.typing import NDArray

from analog_grasp.devices.random import Floats, fill_normal, parallel_kernel, row_key

Flags = NDArray[np.bool_]
Ends = NDArray[np.int64]


@parallel_kernel
def convert_inputs(
    x: Floats,
    first: int,
    gain: Floats,
    by_maximum: bool,
    step: np.float32,
    out: Floats,
    squares: Floats,
) -> None:
    """DAC: scale each input vector to the full range, round to the DAC's steps, clip to [-1, 1].

    Args:
        x: Inputs, ``(N, D)``.
        first: The tile's first input.
        gain: ``(N,)``; filled with what each vector is multiplied by where ``by_maximum``, and
            read where not.
        by_maximum: Whether a vector is scaled by its largest magnitude.
        step: The DAC's step, in units of the full scale; 0 for no rounding.
        out: Filled with what the rows of the tile see, ``(N, width)``.
        squares: Filled with the sum of squares of each row of ``out``, ``(N,)``; left alone if
            empty.
    """
    for n in numba.prange(out.shape[0]):
        if by_maximum:
            largest = np.float32(0.0)
            for d in range(out.shape[1]):
                largest = max(largest, abs(x[n, first + d]))
            gain[n] = np.float32(1.0) / largest if largest > 0 else np.float32(1.0)
        for d in range(out.shape[1]):
            v = x[n, first + d] * gain[n]
            if step > 0:
                v = np.rint(v / step) * step
            out[n, d] = min(max(v, np.float32(-1.0)), np.float32(1.0))
        if squares.size:
            total = np.float32(0.0)
            for d in range(out.shape[1]):
                total += out[n, d] * out[n, d]
            squares[n] = total


@parallel_kernel
def convert_outputs(
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
    table: Floats,
    y: Floats,
    clipped: Flags,
) -> None:
    """Noise, ADC and the digital scales; the result is added to ``y``.

    The noise of an element is a function of ``key`` and its place alone, whatever the threads.

    Args:
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
        table: `analog_grasp.devices.random.NORMAL_TABLE`.
        y: The outputs, ``(N, D_out)``.
        clipped: Filled with whether an output of the tile was clipped, ``(N, T)``.
    """
    rows, columns = product.shape
    noisy = noise > 0 or row_variance.size > 0 or variance.size > 0
    for n in numba.prange(rows):
        row = np.empty(columns, np.float32)
        if noisy:
            fill_normal(row_key(key + np.uint64(n)), table, row)
            if variance.size:
                for o in range(columns):
                    row[o] = product[n, o] + np.sqrt(noise * noise + variance[n, o]) * row[o]
            else:
                spread = noise
                if row_variance.size:
                    spread = np.sqrt(noise * noise + row_variance[n])
                for o in range(columns):
                    row[o] = product[n, o] + spread * row[o]
        else:
            row[:] = product[n]
        factor = np.float32(1.0) / gain[n]
        for tile in range(ends.size - 1):
            over = 0
            for o in range(ends[tile], ends[tile + 1]):
                v = row[o]
                if step > 0:
                    v = np.rint(v / step) * step
                over += abs(v) > bound
                row[o] = min(max(v, -bound), bound)
            clipped[n, tile] = over > 0
            if hold and over > 0:
                continue
            for o in range(ends[tile], ends[tile + 1]):
                y[n, o] += row[o] * factor * scale[o]


@parallel_kernel
def column_readout(
    weight: Floats,
    noise: np.float32,
    variance: Floats,
    step: np.float32,
    bound: np.float32,
    key: np.uint64,
    table: Floats,
    readout: Floats,
) -> None:
    """What every column gives when its rows are driven one by one: the mean magnitude.

    Args:
        weight: Weights of a tile, ``(D_out, width)``.
        noise: Standard deviation of the output noise.
        variance: Variance of each weight at a read, ``(D_out, width)``, ``(1, 1)`` or empty.
        step: The ADC's step; 0 for no rounding.
        bound: The ADC's largest output.
        key: Names the noise.
        table: `analog_grasp.devices.random.NORMAL_TABLE`.
        readout: Filled, ``(D_out,)``.
    """
    columns, width = weight.shape
    for o in numba.prange(columns):
        row = np.zeros(width, np.float32)
        if noise > 0 or variance.size > 0:
            fill_normal(row_key(key + np.uint64(o)), table, row)
        total = 0.0
        for d in range(width):
            spread = noise * noise
            if variance.size == 1:
                spread += variance[0, 0]
            elif variance.size:
                spread += variance[o, d]
            v = weight[o, d] + np.sqrt(spread) * row[d]
            if step > 0:
                v = np.rint(v / step) * step
            total += min(abs(v), bound)
        readout[o] = total / width
