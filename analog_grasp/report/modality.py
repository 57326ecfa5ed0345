"""Dip test of a single mode.

The dip is the largest distance between the distribution function of the values and that of the
nearest distribution with one mode. Unlike a mixture, it assumes no form of the modes.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

MIN_VALUES = 4
"""With fewer values, a single mode is never rejected."""

_SAMPLES = 4_000
_SEED = 0
# The distribution of sqrt(n) dip is nearly constant for larger n.
_LARGE = 100


def dip(values: Values) -> float:
    """Return the dip of a sample, between 1 / (2 n) and 1 / 4.

    Args:
        values: Shape (n,), in any order.

    Source:
        J. A. Hartigan and P. M. Hartigan, "The Dip Test of Unimodality", Annals of Statistics 13
        (1985), section 2.

    Example:
        >>> dip(np.array([0.0, 0.0, 1.0, 1.0])), dip(np.array([0.0, 1.0, 2.0, 3.0]))
        (0.25, 0.125)
    """
    x = np.sort(values)
    count = len(x)
    if count < MIN_VALUES or x[0] == x[-1]:
        return 1 / (2 * count)
    # In steps of the distribution function, of which the least possible distance is one.
    distance, low, high = 1.0, 0, count - 1
    points = x.tolist()
    while True:
        convex, concave = _hull(points, low, high, 1), _hull(points, low, high, -1)
        knots = np.union1d(convex, concave)
        below, above = (np.interp(x[knots], x[hull], hull) for hull in (convex, concave))
        gaps = above - below + 1
        widest = int(gaps.argmax())
        # The mode lies between the knots of the two hulls on either side of the widest gap.
        new_low = int(convex[convex <= knots[widest]][-1])
        new_high = int(concave[concave >= knots[widest]][0])
        if gaps[widest] <= distance or (new_low, new_high) == (low, high):
            return distance / (2 * count)
        left, right = np.arange(low, new_low + 1), np.arange(new_high, high + 1)
        under = left - np.interp(x[left], x[convex], convex) + 1
        over = np.interp(x[right], x[concave], concave) - right + 1
        distance = max(distance, float(under.max()), float(over.max()))
        low, high = new_low, new_high


def _hull(x: list[float], low: int, high: int, side: int) -> NDArray[np.int64]:
    """Return the knots of the greatest convex minorant (side 1) or least concave majorant (-1)."""
    knots: list[int] = []
    for i in range(low, high + 1):
        if knots and x[i] == x[knots[-1]]:
            # Of equal values the first bounds the minorant and the last the majorant.
            if side > 0:
                continue
            knots.pop()
        while len(knots) > 1:
            a, b = knots[-2:]
            if side * ((b - a) * (x[i] - x[b]) - (i - b) * (x[b] - x[a])) < 0:
                break
            knots.pop()
        knots.append(i)
    return np.array(knots)


def dip_p_value(values: Values) -> float:
    """Return the p-value of the dip test; a small one rejects a single mode.

    The reference is the uniform distribution, the least favourable one with a single mode. It is
    simulated with a fixed seed, so the p-value is at least 1 / 4001 and the same in every call; a
    sample of more than 100 values is judged by the square root of its size times its dip.

    Args:
        values: Shape (n,), in any order.

    Example:
        >>> dip_p_value(np.array([0.0] * 8 + [1.0] * 8)) < 0.001
        True
    """
    if len(values) < MIN_VALUES or np.ptp(values) == 0:
        return 1.0
    null = _uniform_dips(min(len(values), _LARGE))
    scaled = dip(values) * np.sqrt(len(values))
    return float((1 + np.count_nonzero(null >= scaled)) / (1 + len(null)))


@lru_cache
def _uniform_dips(count: int) -> Values:
    """Return the dips of uniform samples of `count` values, times the square root of `count`."""
    samples = np.random.default_rng(_SEED).random((_SAMPLES, count))
    return np.array([dip(sample) for sample in samples]) * np.sqrt(count)
