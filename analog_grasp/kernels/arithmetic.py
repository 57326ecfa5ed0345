"""Logarithm and exponential in arithmetic that numba turns into vector instructions."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

F = np.float32


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """The bits of a float32, as an int32."""
    return numba.int32(numba.float32), lambda context, builder, signature, values: builder.bitcast(
        values[0], ir.IntType(32)
    )


@intrinsic
def of_bits(typing: Any, x: Any) -> Any:
    """The float32 of the bits of an int32."""
    return numba.float32(numba.int32), lambda context, builder, signature, values: builder.bitcast(
        values[0], ir.FloatType()
    )


def _fitted(
    function: Callable[[Any], Any], degree: int, low: float, high: float
) -> tuple[np.float32, ...]:
    """The coefficients, highest first, of a polynomial through values at Chebyshev's points."""
    fit = np.polynomial.Chebyshev.interpolate(function, degree, [low, high])
    return tuple(F(c) for c in reversed(fit.convert(kind=np.polynomial.Polynomial).coef))


# ln(1 + m) / m for m from sqrt(1/2) - 1 to sqrt(2) - 1.
_LOG = _fitted(lambda m: np.log1p(m) / m, 8, 0.5**0.5 - 1, 2**0.5 - 1)
# (e^r - 1 - r) / r^2 for r from -ln(2) / 2 to ln(2) / 2.
_EXP = _fitted(lambda r: (np.expm1(r) - r) / r**2, 5, -np.log(2) / 2, np.log(2) / 2)
_ROOT_HALF = int(F(0.5**0.5).view(np.int32))
_LN2 = F(np.log(2))
# ln 2 in two parts, the first short enough to be multiplied by an exponent exactly.
_LN2_FIRST = F(0.693359375)
_LN2_REST = F(np.log(2) - 0.693359375)


@numba.njit(inline="always")
def log(x: np.float32) -> np.float32:
    """ln x of a normal float32 above 0."""
    bits = bits_of(x)
    # numba widens the results of integer operations: 32 bits fill the vectors twice as well.
    exponent = np.int32(np.int32(bits - np.int32(_ROOT_HALF)) >> np.int32(23))
    m = of_bits(np.int32(bits - np.int32(exponent << np.int32(23)))) - F(1.0)
    y = F(0.0)
    for c in _LOG:
        y = y * m + c
    return y * m + F(exponent) * _LN2


@numba.njit(inline="always")
def exp(x: np.float32) -> np.float32:
    """e^x of a float32; beyond the range of normal numbers, x counts as the range's end."""
    x = min(max(x, F(-87.0)), F(88.0))
    n = np.rint(x * (F(1.0) / _LN2))
    r = x - n * _LN2_FIRST - n * _LN2_REST
    y = F(0.0)
    for c in _EXP:
        y = y * r + c
    y = y * r * r + r + F(1.0)
    return y * of_bits(np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)))
