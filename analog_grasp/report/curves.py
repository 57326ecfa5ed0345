"""What the figures for paper and those of the page share: where points stand and how they look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from analog_grasp.report.tables import ScoreRow, variant_labels
from analog_grasp.study.statistics import Variant, is_fraction

# Okabe and Ito's palette, told apart with every common kind of colour vision; strongest first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# One for each placement, so that an adapter keeps its colour wherever it lives.
MARKERS = ("o", "s", "^", "D")


class Look(NamedTuple):
    """How the line of a variant is drawn; the marker is one of `MARKERS`."""

    adapter: str
    colour: str
    marker: str


class Curve(NamedTuple):
    """Points with their intervals, in the metric's unit; each an array of the points' number."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def variant_looks(measured: Sequence[Variant]) -> dict[str, Look]:
    """The look of every line, by its label.

    Example:
        >>> variant_looks([Variant("grasp", "digital")])["grasp"].colour
        '#0072B2'
    """
    names = list(dict.fromkeys(variant.adapter for variant in measured))
    placements = list(dict.fromkeys(variant.placement for variant in measured))
    return {
        label: Look(
            variant.adapter,
            PALETTE[names.index(variant.adapter) % len(PALETTE)],
            MARKERS[placements.index(variant.placement) % len(MARKERS)],
        )
        for variant, label in variant_labels(measured).items()
    }


def adapter_colours(looks: Mapping[str, Look]) -> dict[str, str]:
    """The colour of every adapter, whatever its placement."""
    return {look.adapter: look.colour for look in looks.values()}


def unit(metric: str) -> float:
    """What a score is multiplied by to be shown: 100 for a fraction, which is in per cent."""
    return 100.0 if is_fraction(metric) else 1.0


def curve(row: ScoreRow, positions: Sequence[float], metric: str) -> Curve:
    """What was measured of a row, as it is shown; no interval is one of no width.

    Args:
        row: One cell a position; those without a measurement are left out.
        positions: Where each cell stands.
        metric: Gives the unit.
    """
    points = [
        (x, cell.mean, cell.mean, cell.mean)
        if cell.low is None or cell.high is None
        else (x, cell.mean, cell.low, cell.high)
        for x, cell in zip(positions, row.cells, strict=True)
        if cell is not None
    ]
    x, *scores = np.array(points).reshape(-1, 4).T
    return Curve(x, *(unit(metric) * score for score in scores))


def time_positions(times: Sequence[float]) -> list[float]:
    """Where each time stands: log10 of the seconds, and 0 s to the left of the first.

    Args:
        times: Seconds, ascending.

    Example:
        >>> time_positions([0.0, 10.0, 1000.0])
        [0.4, 1.0, 3.0]
    """
    logarithms = [math.log10(time) for time in times if time > 0]
    if not logarithms:
        return [0.0 for _ in times]
    gap = max(0.6, 0.14 * (logarithms[-1] - logarithms[0]))
    return [math.log10(time) if time > 0 else logarithms[0] - gap for time in times]
