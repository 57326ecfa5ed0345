"""Figure of a comparison: score against the noise level of the Gaussian card."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from analog_grasp.devices.card import DeviceCard
from analog_grasp.report.figures import Drawn, draw_scores, draw_variants, figure_files, prefix_ids
from analog_grasp.report.tables import Comparison, DeviceTable, metric_title

_PANEL_INCHES = (3.4, 2.6)


class NoiseScores(NamedTuple):
    """The tables of a task and metric by noise level of the Gaussian card, at one placement.

    The levels are standard deviations relative to the largest value, ascending.
    """

    levels: Sequence[float]
    tables: Sequence[DeviceTable]
    placement: str


def noise_scores(comparison: Comparison) -> list[NoiseScores]:
    """Return the tables by noise level per task, metric and placement with several levels."""
    found = []
    for tables in comparison.subjects:
        levels = {level: t for t in tables if (level := noise_level(t.device)) is not None}
        ordered = sorted(levels)
        for placement in comparison.placements if len(levels) > 1 else ():
            found.append(NoiseScores(ordered, [levels[level] for level in ordered], placement))
    return found


def noise_level(device: str) -> float | None:
    """Return the std of a Gaussian device relative to the largest weight; None for others.

    Example:
        >>> noise_level("gaussian:0.02"), noise_level("gaussian"), noise_level("pcm-hermes-2")
        (0.02, 0.05, None)
    """
    # A card of the user's may be called gaussian:mine.
    if not re.fullmatch(r"gaussian(:\d[\d.e+-]*)?", device):
        return None
    card = DeviceCard.load(device)
    assert card.programming is not None
    std = card.programming.constant(card.conductance.g_max)
    assert std is not None
    return std / card.conductance.g_max


def draw_noise(panel: Axes, comparison: Comparison, noise: NoiseScores) -> Drawn:
    """Draw the scores at the first time against noise level; the ids are those of `draw_drift`."""
    rows = {
        place: [table.scores[place][0] for table in noise.tables]
        for place, variant in enumerate(comparison.variants)
        if variant.placement == noise.placement
    }
    positions = [100 * level for level in noise.levels]
    conditions = [(f"{position:.3g} % noise", position) for position in positions]
    drawn = draw_scores(panel, comparison, noise.tables, rows, conditions)
    panel.set_xticks(positions, [f"{position:g}" for position in positions])
    panel.set_xlabel("noise std (% of the largest value)")
    return drawn


def noise_title(placement: str, weights: str = "analog") -> str:
    """Return what the device noise affects, by the placement of adapter and frozen weights.

    Example:
        >>> noise_title("digital"), noise_title("programmed", "digital")
        ('noise on the frozen weights', 'noise on the adapter')
    """
    targets = {
        "programmed": "frozen weights and adapter",
        "folded": "weights with the adapter folded in",
    }
    target = "adapter" if weights == "digital" else targets.get(placement, "frozen weights")
    return f"noise on the {target}"


def accuracy_vs_noise(
    comparison: Comparison, path_stem: Path | str, *, weights: str = "analog"
) -> list[Path]:
    """Draw score against noise level where a run has several levels of the Gaussian card.

    One panel per task, metric and placement, drawn as in `accuracy_vs_drift`; `weights` is the
    placement of the frozen weights.
    """
    found = noise_scores(comparison)
    width, height = _PANEL_INCHES
    size = max(width * len(found) + 0.4, 4.4), height + 0.7
    with figure_files(path_stem, size) as (figure, paths):
        axes = figure.subplots(1, len(found), squeeze=False)[0]
        for number, (panel, noise) in enumerate(zip(axes, found, strict=True), 1):
            draw_noise(panel, comparison, noise)
            prefix_ids(panel, number)
            panel.set_title(noise_title(noise.placement, weights))
            panel.set_ylabel(f"{noise.tables[0].task}: {metric_title(noise.tables[0].metric)}")
        draw_variants(figure, comparison)
    return paths
