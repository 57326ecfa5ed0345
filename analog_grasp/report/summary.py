"""Findings of a comparison as sentences, and summary.md, which begins with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analog_grasp.report.answer import ANSWER_LEGEND, answer, answer_table, conditions
from analog_grasp.report.tables import (
    LEGEND,
    MARKS,
    MISSING,
    DeviceTable,
    Entry,
    TextRow,
    TextTable,
    adapter_text,
    comparison_tables,
    device_text,
    interval_text,
    markdown_bullets,
    markdown_escape,
    markdown_table,
    percent,
    settings_text,
)
from analog_grasp.report.treatments import treatment_text
from analog_grasp.study.records import AdapterRecord, LayerRecord, Measurement, TreatmentCost
from analog_grasp.study.statistics import PairedDifference, Summary, is_fraction
from analog_grasp.utils.time import format_time

METHODOLOGY = (
    "A condition is one device at one time since programming. The score of an adapter in a"
    " condition is the mean over chip instances, each programmed with its own seed, and over"
    " trainings, with its 95 % interval; a single instance has no interval.",
    "Adapters that share frozen weights are measured on the same chip instances. The difference of"
    " two adapters is computed per training and instance, and its interval is that of the paired"
    " differences. An adapter is better or worse in a condition if this interval excludes zero, and"
    " otherwise not significantly different.",
    "The intervals are not corrected for the number of conditions: of two equal adapters, one would"
    " be better or worse by chance in about one condition in twenty. Differences marked with * are"
    " also significant at the level of 5 % after Holm's correction over all differences of the same"
    " task and metric (paired t-test).",
    "A score is retained up to the last time before its mean falls below 95 % of that of the"
    " digital model. The 5th percentile of the chips is that of the scores of one training on one"
    " chip.",
    "Devices and chips are simulated.",
)
_SECOND_STAGE = (
    "Second stage of training: after it has learned the task, each adapter was distilled without"
    " labels, in {steps} steps, on simulated chips, none of them measured, of {chips}. Its training"
    " time and cost contain this stage."
)
_ONE_TRAINING = (
    "Each adapter was trained once: the intervals (Student's t) cover the variation between chips"
    " and not between trainings."
)
_TRAININGS = (
    "Each adapter was trained from {count} seeds, and every chip was measured with each training:"
    " the intervals cover both (crossed random effects, Satterthwaite's degrees of freedom)."
)
# Digital modules beyond these are summed up.
_LISTED = 5
CHIPS_LEGEND = (
    "Weight error: root mean square of (present weight - target) over all weights on the first"
    " chip instance of each device, in per cent of the column maximum, with drift compensation,"
    " as the first adapter is deployed. Utilisation: share of the tiles' cross-points that hold a"
    " weight."
)


@dataclass(frozen=True)
class ChipSummary:
    """One chip instance of a device, summed over its layers.

    Attributes:
        device: Name of the card.
        layers: Its layers right after programming.
        errors: Root mean square weight error over all layers by time in seconds, in units of the
            column maximum.
    """

    device: str
    layers: tuple[LayerRecord, ...]
    errors: Mapping[float, float]

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return sum(layer.tiles for layer in self.layers)

    @property
    def weights(self) -> int:
        """Number of weights on the tiles."""
        return sum(layer.cells for layer in self.layers)

    @property
    def utilisation(self) -> float:
        """Share of the tiles' cross-points that hold a weight."""
        return self.weights / sum(layer.cells / layer.use for layer in self.layers)


def trainings_text(measurements: Sequence[Measurement]) -> str:
    """Return what the intervals cover, as a sentence."""
    trainings: dict[str, set[int]] = {}
    for cell in measurements:
        trainings.setdefault(cell.adapter, set()).add(cell.training)
    counts = {adapter: len(own) for adapter, own in trainings.items()}
    most = max(counts.values())
    if most == 1:
        return _ONE_TRAINING
    once = [adapter for adapter, count in counts.items() if count == 1]
    but = f" Of {', '.join(once)} there is one training, and no interval over them." if once else ""
    return _TRAININGS.format(count=most) + but


def methodology(settings: Mapping[str, object]) -> list[str]:
    """Return how the adapters were trained and measured, as sentences."""
    chips = settings.get("then", ["none"])
    if not isinstance(chips, list) or chips == ["none"]:
        return list(METHODOLOGY)
    stage = _SECOND_STAGE.format(steps=settings.get("then_steps"), chips=", ".join(chips))
    return [stage, *METHODOLOGY]


def findings(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> list[str]:
    """Return the results of a comparison as sentences, the answer first.

    Args:
        measurements: Measurements of a complete or partial run.
        adapters: Their order gives the baseline.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, 0, "digital", "pcm", 0.0, i, i, score + i)
        ...     for name, score in [("grasp", 0.5), ("lora", 0.75)]
        ...     for i in range(2)
        ... ]
        >>> print(findings(cells)[1].partition(",")[0])
        lora is better than grasp in 1 of 1 condition (device and time)
    """
    subjects: dict[tuple[str, str], list[DeviceTable]] = {}
    for table in comparison_tables(measurements, adapters):
        subjects.setdefault((table.task, table.metric), []).append(table)
    sentences = [sentence for tables in subjects.values() for sentence in _comparisons(tables)]
    sentences += [sentence for tables in subjects.values() for sentence in _ranges(tables)]
    return [answer(measurements, adapters), *sentences, *_gaps(measurements)]


def _comparisons(tables: Sequence[DeviceTable]) -> list[str]:
    """Return the differences of each variant from the first."""
    sentences, subject = [], f"{tables[0].task}, {tables[0].metric}"
    for index, row in enumerate(tables[0].differences):
        all_cells = (table.differences[index].differences for table in tables)
        cells = [cell for row_cells in all_cells for cell in row_cells if cell and cell.n]
        counts = Counter(cell.verdict for cell in cells)
        tested = len(cells) - counts["open"]
        if tested:
            sentences.append(
                f"{row.adapter} is better than {row.baseline} in {counts['better']} of"
                f" {conditions(tested)} (device and time), worse in {counts['worse']} and not"
                f" significantly different in {counts['not significant']}{_corrected(cells)}"
                f" ({subject})."
            )
        if counts["open"]:
            sentences.append(
                f"{row.adapter} and {row.baseline} share a single chip instance in"
                f" {conditions(counts['open'])} ({subject}), too few for an interval."
            )
        if len(cells) > 1:
            sentences.append(_extremes(row.adapter, row.baseline, cells))
    return sentences


def _corrected(cells: Sequence[PairedDifference]) -> str:
    """Return the number of differences that are significant after Holm's correction."""
    if not any(cell.verdict in MARKS for cell in cells):
        return ""
    counts = Counter(cell.verdict for cell in cells if cell.holds_corrected)
    return (
        f"; after Holm's correction it is better in {counts['better']} and worse in"
        f" {counts['worse']}"
    )


def _extremes(adapter: str, baseline: str, cells: Sequence[PairedDifference]) -> str:
    low, high = (
        f"{interval_text(cell, cell.metric)}{' points' if is_fraction(cell.metric) else ''} on"
        f" {cell.device} at {format_time(cell.time_s)}"
        for cell in (choose(cells, key=lambda cell: cell.mean or 0.0) for choose in (min, max))
    )
    return f"The mean difference {adapter} − {baseline} ranges from {low} to {high}."


def _ranges(tables: Sequence[DeviceTable]) -> list[str]:
    """Return the lowest and the highest mean score of each variant."""
    sentences = []
    for index, row in enumerate(tables[0].scores):
        cells = [cell for table in tables for cell in table.scores[index].summaries if cell]
        if cells:
            low, high = (_score(choose(cells, key=lambda cell: cell.mean)) for choose in (min, max))
            sentences.append(
                f"The {tables[0].metric} of {row.label} on {tables[0].task} ranges from {low} to"
                f" {high}."
            )
    return sentences


def _score(cell: Summary) -> str:
    where = f"{cell.device} at {format_time(cell.time_s)}"
    return f"{interval_text(cell, cell.metric)}{percent(cell.metric)} on {where}"


def _gaps(measurements: Sequence[Measurement]) -> list[str]:
    """Return the number of measurements that a full grid of the same names and times lacks."""
    chips = {(cell.device, cell.repeat) for cell in measurements}
    subjects = {(cell.task, cell.metric) for cell in measurements}
    trained = {(cell.adapter, cell.training, cell.placement) for cell in measurements}
    times = {cell.time_s for cell in measurements}
    full = len(chips) * len(subjects) * len(trained) * len(times)
    if full <= len(measurements):
        return []
    return [
        f"The results are partial: {len(measurements)} of the {full} measurements of the full grid"
        " are available."
    ]


def summary_markdown(
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    layers: Sequence[LayerRecord] = (),
    treatments: Sequence[TreatmentCost] = (),
) -> str:
    """Return the text of summary.md: result, figure, tables, settings and methodology.

    The arguments are those of `analog_grasp.report.comparison.write_report`.
    """
    first, *further = findings(measurements, adapters)
    tables = comparison_tables(measurements, adapters)
    parts = [
        f"# {markdown_escape(question)}",
        markdown_escape(first),
        "![Score against time since programming](accuracy_vs_drift.svg)",
        markdown_table(answer_table(measurements, adapters)),
        markdown_escape(f"{ANSWER_LEGEND} {trainings_text(measurements)}"),
        "## Scores and paired differences",
        markdown_escape(LEGEND),
        *(markdown_table(device_text(table)) for table in tables),
        *(["## Further results", markdown_bullets(further)] if further else []),
    ]
    if adapters:
        parts.append(markdown_table(adapter_text(adapters)))
    if treatments:
        parts.append(markdown_table(treatment_text(treatments)))
    if chips := chip_summaries(layers):
        parts.append(markdown_table(chip_text(chips)))
        parts.append(markdown_escape(CHIPS_LEGEND))
    parts += map(markdown_escape, coverage(layers))
    parts += [
        markdown_table(settings_text(settings)),
        "## Methodology",
        markdown_bullets(methodology(settings)),
    ]
    return "\n\n".join(parts) + "\n"


def chip_summaries(layers: Sequence[LayerRecord]) -> list[ChipSummary]:
    """Return one summary per device, in order of first appearance."""
    devices: dict[str, dict[float, list[LayerRecord]]] = {}
    for record in layers:
        if record.tiles:
            devices.setdefault(record.device, {}).setdefault(record.time_s, []).append(record)
    return [
        ChipSummary(
            device,
            tuple(times[min(times)]),
            {seconds: _root_mean_square(times[seconds]) for seconds in sorted(times)},
        )
        for device, times in devices.items()
    ]


def coverage(layers: Sequence[LayerRecord]) -> list[str]:
    """Return which share of the weights is on tiles and which modules are not, as a sentence.

    Args:
        layers: Layers on tiles, and modules with digital weights, which have no tiles.

    Returns:
        One sentence; none without layers.

    Example:
        >>> layer = LayerRecord("pcm", 0, 0.0, "dense", 1, 300, 0.5, 0.1)
        >>> print(*coverage([layer, LayerRecord("pcm", 0, 0.0, "conv", 0, 100, 0.0, 0.0)]))
        75.0% of the model's weights are on tiles; digital: conv (100).
    """
    if not layers:
        return []
    first = [x for x in layers if (x.device, x.time_s) == (layers[0].device, layers[0].time_s)]
    digital = sorted((x for x in first if not x.tiles), key=lambda x: -x.cells)
    share = sum(x.cells for x in first if x.tiles) / sum(x.cells for x in first)
    names = [f"{x.layer} ({x.cells:,})" for x in digital[:_LISTED]]
    if others := digital[_LISTED:]:
        names.append(f"{len(others)} more ({sum(x.cells for x in others):,})")
    listed = f"; digital: {', '.join(names)}" if names else ""
    return [f"{share:.1%} of the model's weights are on tiles{listed}."]


def _root_mean_square(layers: Sequence[LayerRecord]) -> float:
    squares = sum(layer.cells * layer.weight_error**2 for layer in layers)
    return (squares / sum(layer.cells for layer in layers)) ** 0.5


def chip_text(chips: Sequence[ChipSummary]) -> TextTable:
    """Return the chips as text, with the weight error at each time; see `CHIPS_LEGEND`."""
    times = sorted({seconds for chip in chips for seconds in chip.errors})
    columns = (
        "device", "tiles", "weights", "utilisation", *(f"error at {format_time(t)}" for t in times)
    )  # fmt: skip
    rows = tuple(
        TextRow(
            chip.device,
            (
                Entry(f"{chip.tiles:,}"),
                Entry(f"{chip.weights:,}"),
                Entry(f"{chip.utilisation:.1%}"),
                *(Entry(f"{chip.errors[t]:.2%}" if t in chip.errors else MISSING) for t in times),
            ),
        )
        for chip in chips
    )
    return TextTable("Tiles and weight error", columns, rows)
