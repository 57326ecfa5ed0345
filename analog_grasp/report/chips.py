"""The chips of a run, summed over their layers: tiles, use and weight error, as data and table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analog_grasp.report.tables import MISSING, TextCell, TextRow, TextTable
from analog_grasp.study.records import LayerRecord
from analog_grasp.utils.time import format_time

CHIPS_LEGEND = (
    "Weight error: root mean square of (weight now - target) over all weights on the first chip"
    " instance of each device, in per cent of the column maximum, drift compensation applied, as"
    " the first adapter is deployed. Use: the share of the tiles' cross-points that hold a weight."
)


@dataclass(frozen=True)
class ChipSummary:
    """One chip instance of a device.

    Attributes:
        device: The card's name.
        layers: Its layers as they are once programmed.
        errors: Root mean square weight error over all layers by time in seconds, in units of the
            column maximum.
    """

    device: str
    layers: tuple[LayerRecord, ...]
    errors: Mapping[float, float]

    @property
    def tiles(self) -> int:
        """Tiles used."""
        return sum(layer.tiles for layer in self.layers)

    @property
    def cells(self) -> int:
        """Cross-points that hold a weight."""
        return sum(layer.cells for layer in self.layers)

    @property
    def use(self) -> float:
        """Share of the tiles' cross-points that hold a weight."""
        return self.cells / sum(layer.cells / layer.use for layer in self.layers)


def chip_summaries(layers: Sequence[LayerRecord]) -> list[ChipSummary]:
    """One summary a device, in order of first appearance."""
    devices: dict[str, dict[float, list[LayerRecord]]] = {}
    for record in layers:
        devices.setdefault(record.device, {}).setdefault(record.time_s, []).append(record)
    return [
        ChipSummary(
            device,
            tuple(times[min(times)]),
            {seconds: _root_mean_square(times[seconds]) for seconds in sorted(times)},
        )
        for device, times in devices.items()
    ]


def chip_text(chips: Sequence[ChipSummary]) -> TextTable:
    """The chips as a table, with the weight error at each time."""
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    columns = ("device", "tiles", "weights", "use", *(f"error at {format_time(t)}" for t in times))
    rows = tuple(
        TextRow(
            chip.device,
            (
                TextCell(f"{chip.tiles:,}"),
                TextCell(f"{chip.cells:,}"),
                TextCell(f"{chip.use:.1%}"),
                *(TextCell(_error(chip.errors.get(seconds))) for seconds in times),
            ),
        )
        for chip in chips
    )
    return TextTable("Tiles and weight error", columns, rows)


def _error(error: float | None) -> str:
    return MISSING if error is None else f"{error:.2%}"


def _root_mean_square(layers: Sequence[LayerRecord]) -> float:
    squares = sum(layer.cells * layer.weight_error**2 for layer in layers)
    return (squares / sum(layer.cells for layer in layers)) ** 0.5
