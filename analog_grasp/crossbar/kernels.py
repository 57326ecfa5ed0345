"""The arithmetic around an analog product, fused: DAC before it; noise, ADC and scales after it."""

import numba
import numpy as np
from torch import Tensor

from analog_grasp.devices.random import (
    NORMAL_TABLE,
    Floats,
    fill_normal,
    row_key,
    use_torch_threads,
)


@numba.njit(parallel=True, cache=True)
def _convert_inputs(
    x: Floats, first: int, step: np.float32, by_maximum: bool, out: Floats, gain: Floats
) -> None:
    for n in numba.prange(out.shape[0]):
        largest = np.float32(0.0)
        if by_maximum:
            for d in range(out.shape[1]):
                largest = max(largest, abs(x[n, first + d]))
        gain[n] = np.float32(1.0) / largest if largest > 0 else np.float32(1.0)
        for d in range(out.shape[1]):
            v = x[n, first + d] * gain[n]
            if step > 0:
                v = np.rint(v / step) * step
            out[n, d] = min(max(v, np.float32(-1.0)), np.float32(1.0))


@numba.njit(parallel=True, cache=True)
def _convert_outputs(
    product: Floats,
    gain: Floats,
    scale: Floats,
    correction: Floats,
    noise: np.float32,
    step: np.float32,
    bound: np.float32,
    key: np.uint64,
    table: Floats,
    y: Floats,
) -> int:
    rows, columns = product.shape
    clipped = 0
    for n in numba.prange(rows):
        factor = np.float32(1.0) / gain[n]
        row = np.empty(columns, np.float32)
        if noise > 0:
            fill_normal(row_key(key + np.uint64(n)), table, row)
            for o in range(columns):
                row[o] = product[n, o] + noise * row[o]
        else:
            row[:] = product[n]
        over = 0
        for o in range(columns):
            v = row[o]
            if step > 0:
                v = np.rint(v / step) * step
            over += abs(v) > bound
            v = min(max(v, -bound), bound)
            y[n, o] += v * factor * scale[o] * correction[o]
        clipped += over
    return clipped


def convert_inputs(
    x: Tensor, first: int, width: int, step: float, by_maximum: bool
) -> tuple[Tensor, Tensor]:
    """DAC: scale each input vector to the full range, round to the DAC's steps, clip to [-1, 1].

    Args:
        x: Inputs, ``(N, D)``, float32, contiguous.
        first: The tile's first input.
        width: The tile's number of inputs.
        step: The DAC's step, in units of the full scale; 0 for no rounding.
        by_maximum: Whether a vector is scaled by its largest magnitude.

    Returns:
        What the rows of the tile see, ``(N, width)``, and the gain of each vector, ``(N,)``.
    """
    out, gain = x.new_empty(x.shape[0], width), x.new_empty(x.shape[0])
    use_torch_threads()
    _convert_inputs(x.numpy(), first, np.float32(step), by_maximum, out.numpy(), gain.numpy())
    return out, gain


def convert_outputs(
    product: Tensor,
    gain: Tensor,
    scale: Tensor,
    correction: Tensor,
    *,
    noise: float,
    step: float,
    bound: float,
    key: int,
    y: Tensor,
) -> int:
    """Output noise, ADC, and the digital scales; adds the result to ``y``.

    The noise of an element is a function of ``key`` and its place alone, whatever the threads.

    Args:
        product: Analog products, ``(N, D_out)``, float32.
        gain: The gain of each input vector, ``(N,)``; divided out again.
        scale: The scale of each column, ``(D_out,)``.
        correction: The drift compensation of each column, ``(D_out,)``.
        noise: Standard deviation of the output noise.
        step: The ADC's step; 0 for no rounding.
        bound: The ADC's largest output; infinity for none.
        key: Names the noise, 64 bits.
        y: The layer's outputs, ``(N, D_out)``, added to in place.

    Returns:
        How many outputs were clipped.
    """
    use_torch_threads()
    return _convert_outputs(
        product.numpy(),
        gain.numpy(),
        scale.numpy(),
        correction.numpy(),
        np.float32(noise),
        np.float32(step),
        np.float32(bound),
        np.uint64(key),
        NORMAL_TABLE,
        y.numpy(),
    )
