"""Whether values lie around one mode or several: Hartigan and Hartigan's dip test.

The dip is the largest distance between the distribution function of the values and that of the
nearest distribution with one mode. It assumes no form of the modes, as a mixture would.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

FEWEST = 4
"""Fewer values are never told from one mode."""

_SAMPLES = 4_000
_SEED = 0
# The distribution of sqrt(n) dip hardly changes from here on.
_LARGE = 100


def dip(values: Values) -> float:
    """The dip of a sample, between 1 / (2 n) and 1 / 4.

    Args:
        values: of shape (n,), in any order.

    Source:
        J. A. Hartigan and P. M. Hartigan, "The Dip Test of Unimodality", Annals of Statistics 13
        (1985), section 2.

    Example:
        >>> dip(np.array([0.0, 0.0, 1.0, 1.0])), dip(np.array([0.0, 1.0, 2.0, 3.0]))
        (0.25, 0.125)
    """
    x = np.sort(values)
    count = len(x)
    if count < FEWEST or x[0] == x[-1]:
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
    """The knots of the greatest convex minorant (side 1) or least concave majorant (side -1)."""
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
    """How likely a dip as large is where there is one mode: small for several.

    Against the uniform distribution, the hardest to tell apart among those with one mode. By a
    seeded simulation, so that it is never below 1 / 4001 and the same at every call; a sample of
    more than 100 is judged by the square root of its size times its dip.

    Args:
        values: of shape (n,), in any order.

    Example:
        >>> dip_p_value(np.array([0.0] * 8 + [1.0] * 8)) < 0.001
        True
    """
    if len(values) < FEWEST or np.ptp(values) == 0:
        return 1.0
    null = _uniform_dips(min(len(values), _LARGE))
    scaled = dip(values) * np.sqrt(len(values))
    return float((1 + np.count_nonzero(null >= scaled)) / (1 + len(null)))


@lru_cache
def _uniform_dips(count: int) -> Values:
    """Dips of uniform samples of a size, times its square root."""
    samples = np.random.default_rng(_SEED).random((_SAMPLES, count))
    return np.array([dip(sample) for sample in samples]) * np.sqrt(count)


def holm(p_values: Values) -> Values:
    """P-values corrected by Holm's method for their number.

    Args:
        p_values: of shape (m,).

    Example:
        >>> holm(np.array([0.04, 0.01])).tolist()
        [0.04, 0.02]
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty_like(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
