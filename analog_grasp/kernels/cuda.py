"""Random numbers and the reading of tiles on a GPU, as Triton kernels.

The same computation as `analog_grasp.kernels.reference` in plain torch, which runs where Triton is
missing. Both draw the same noise as the kernels for CPUs, up to rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from analog_grasp.kernels import ReadSettings
from analog_grasp.kernels.matmul import FEWEST_ROWS_ON_GPU, RADIX, Limbs
from analog_grasp.kernels.rng import BLOCK, COSINE, LOG, SINE, TOP, TWO_LN2, signed

_HALF = tl.constexpr(BLOCK // 2)
_TOP = tl.constexpr(TOP)
_TWO_LN2 = tl.constexpr(TWO_LN2)
_RADIX = tl.constexpr(1.0 / RADIX)
_L7, _L6, _L5, _L4, _L3, _L2, _L1, _L0 = (tl.constexpr(term) for term in LOG)
_C4, _C3, _C2, _C1, _C0 = (tl.constexpr(term) for term in COSINE)
_S4, _S3, _S2, _S1, _S0 = (tl.constexpr(term) for term in SINE)
# Adding and subtracting it rounds a float32 below 2^22 to the nearest integer, ties to even.
_ROUNDS = tl.constexpr(1.5 * 2**23)
_LARGEST_ROUNDED = tl.constexpr(float(2**21))
_LARGEST_FLOAT = tl.constexpr(float(torch.finfo(torch.float32).max))
_INFINITY = tl.constexpr(float("inf"))
_ROWS = 8

# Triton compiles no function with type hints other than its own.


@triton.jit
def mixed(h, key):
    """Return `rng._mixed`."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) ^ key
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def row_words(key, rows):
    """Return the lower and upper 32 bits of `rng.row_key` for the rows, ``(rows, 1)``."""
    z = (key.to(tl.int64).to(tl.uint64, bitcast=True) + rows.to(tl.uint64)) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return z.to(tl.uint32)[:, None], (z >> 32).to(tl.uint32)[:, None]


@triton.jit
def normal_pairs(key, rows, block):
    """Return the halves of a block of standard normal deviates, as `rng._fill_block` does."""
    low, high = row_words(key, rows)
    low += (tl.arange(0, _HALF) + block * 2 * _HALF).to(tl.uint32)[None, :]
    first, second = mixed(low, high), mixed(low + _HALF, high)
    pattern = ((first >> 1).to(tl.float32) + 0.5).to(tl.int32, bitcast=True)
    exponent = ((pattern >> 23) - _TOP).to(tl.float32)
    m = (pattern & 0x7FFFFF).to(tl.float32) * 1.1920928955078125e-07
    log = ((((((_L7 * m + _L6) * m + _L5) * m + _L4) * m + _L3) * m + _L2) * m + _L1) * m + _L0
    radius = tl.sqrt(tl.abs(log - exponent * _TWO_LN2))
    t = second.to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10
    s = t * t
    sign = 1.0 - 2.0 * (first & 1).to(tl.float32)
    across = radius * sign * ((((_C4 * s + _C3) * s + _C2) * s + _C1) * s + _C0)
    return across, t * (((((_S4 * s + _S3) * s + _S2) * s + _S1) * s + _S0) * radius)


@triton.jit
def rounded(value, step):
    """Return values rounded to whole steps; NaN stays."""
    steps = tl.minimum(tl.maximum(value / step, -_LARGEST_ROUNDED), _LARGEST_ROUNDED)
    return tl.where(value == value, ((steps + _ROUNDS) - _ROUNDS) * step, value)


@triton.jit(do_not_specialize=["key", "rows"])
def _normal_kernel(out, key, rows, columns, ROWS: tl.constexpr):
    """Fill some rows of a block of columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * 2 * _HALF + tl.arange(0, _HALF)[None, :]
    across, along = normal_pairs(key, row, tl.program_id(1))
    place = out + row.to(tl.int64)[:, None] * columns + column
    inside = row[:, None] < rows
    tl.store(place, across, mask=inside & (column < columns))
    tl.store(place + _HALF, along, mask=inside & (column + _HALF < columns))


@triton.jit(do_not_specialize=["rows"])
def _convert_kernel(
    x, codes, gains, squares, rows, width, stride, scale,
    reduction, steps, BY_MAXIMUM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """DAC, one row per program: see `cpu.convert_inputs`; `steps` is the reciprocal of a step."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = (column < width) & (row < rows)
    values = tl.load(x + row * stride + column, mask=inside, other=0.0)
    gain = scale
    wrong = tl.max((values != values).to(tl.int32), 0) > 0
    if BY_MAXIMUM:
        largest = tl.max(tl.abs(values), 0)
        wrong = wrong | (largest == _INFINITY)
        gain = tl.where(largest > 0, tl.minimum(1.0 / (largest * reduction), _LARGEST_FLOAT), 1.0)
    code = tl.where(wrong, 0.0, values) * gain * steps
    code = tl.minimum(tl.maximum(code, -_LARGEST_ROUNDED), _LARGEST_ROUNDED)
    code = (code + _ROUNDS) - _ROUNDS
    full = (steps + _ROUNDS) - _ROUNDS
    code = tl.minimum(tl.maximum(code, -full), full)
    tl.store(codes + row * width + column, code.to(tl.int8), mask=column < width)
    tl.store(gains + row, tl.where(wrong, float("nan"), gain))
    tl.store(squares + row, tl.sum(code * code, 0) / (steps * steps))


@triton.jit(do_not_specialize=["key", "rows"])
def _output_kernel(
    sums, units, gains, squares, matrix, bounds, out,
    clipped, key, rows, columns, noise, variance, step,
    bound, LIMBS: tl.constexpr, NOISY: tl.constexpr, MATRIX: tl.constexpr,
    ROUNDED: tl.constexpr, BOUNDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Limbs, noise, ADC, clipping and scale of some rows and one block of columns.

    `matrix` is the variance of each output, ``(rows, columns)``; `bounds` the ADC's largest output
    in each column. Either is any tensor where it is not used.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    half = tl.program_id(1) * 2 * _HALF + tl.arange(0, _HALF)[None, :]
    gain = tl.load(gains + row, mask=row < rows, other=1.0)[:, None]
    square = tl.load(squares + row, mask=row < rows, other=0.0)[:, None]
    across, along = gain, gain
    if NOISY:
        across, along = normal_pairs(key, row, tl.program_id(1))
    for side in tl.static_range(2):
        column = half + side * _HALF
        inside = (row[:, None] < rows) & (column < columns)
        place = row.to(tl.int64)[:, None] * (LIMBS * columns) + column
        value = gain * 0.0
        for i in tl.static_range(LIMBS):
            limb = LIMBS - 1 - i
            part = tl.load(sums + place + limb * columns, mask=inside, other=0)
            value = value * _RADIX + part.to(tl.float32)
        value = value * tl.load(units + column, mask=column < columns, other=0.0)
        cell = row.to(tl.int64)[:, None] * columns + column
        if NOISY:
            each = square * variance
            if MATRIX:
                each = tl.load(matrix + cell, mask=inside, other=0.0)
            deviate = across if side == 0 else along
            value += tl.sqrt(each + noise * noise) * deviate
        most, own = bound, step
        if BOUNDS:
            most = tl.load(bounds + column, mask=column < columns, other=1.0)
            own = step * (most / bound)
        if ROUNDED:
            value = rounded(value, own)
        tl.store(clipped + cell, (tl.abs(value) > most).to(tl.int8), mask=inside)
        value = tl.minimum(tl.maximum(value, -most), most) / gain
        tl.store(out + cell, value, mask=inside)


def normal(
    key: int, rows: int, columns: int, *, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Return standard normal deviates, ``(rows, columns)``; see `rng.normal`."""
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    if out.numel():
        grid = (triton.cdiv(rows, _ROWS), triton.cdiv(columns, BLOCK))
        _normal_kernel[grid](out, signed(key), rows, columns, ROWS=_ROWS)
    return out


def read_once(
    x: Tensor,
    variance: Tensor | float | None,
    settings: ReadSettings,
    input_range: float | None,
    reduction: float,
    key: int,
    limbs: Limbs,
    bounds: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Read tiles once; arguments and results as `reference._read_once`."""
    (rows, width), columns = x.shape, len(limbs.unit)
    # The rows beyond the inputs are computed and dropped.
    padded = max(rows, FEWEST_ROWS_ON_GPU)
    codes = x.new_empty(padded, width, dtype=torch.int8)
    gains, squares = x.new_empty(2, padded).unbind()
    by_maximum = settings.by_maximum and input_range is None
    x = x if x.stride(1) == 1 else x.contiguous()
    _convert_kernel[(padded,)](
        x, codes, gains, squares, rows, width, x.stride(0),
        1.0 / ((input_range or 1.0) * reduction), reduction, 1.0 / settings.dac_step,
        BY_MAXIMUM=by_maximum, WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    sums = torch._int_mm(codes, limbs.values.T)
    matrix = None
    if isinstance(variance, Tensor):
        inputs = codes[:rows].to(x.dtype) * settings.dac_step
        matrix, variance = inputs.square() @ variance.to(x.dtype).T, 0.0
    out = x.new_empty(rows, columns)
    clipped = x.new_empty(rows, columns, dtype=torch.bool)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(columns, BLOCK))
    _output_kernel[grid](
        sums, limbs.unit, gains, squares, out if matrix is None else matrix,
        limbs.unit if bounds is None else bounds, out, clipped.view(torch.int8), signed(key),
        rows, columns, settings.output_noise, variance or 0.0, settings.adc_step or 1.0,
        settings.output_bound, LIMBS=len(limbs.values) // columns,
        NOISY=bool(settings.output_noise or variance or matrix is not None),
        MATRIX=matrix is not None, ROUNDED=settings.adc_step > 0, BOUNDS=bounds is not None,
        ROWS=_ROWS,
    )  # fmt: skip
    return out, clipped
