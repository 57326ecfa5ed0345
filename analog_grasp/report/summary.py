"""What a comparison found, in sentences, and the document that starts with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from analog_grasp.report.chips import CHIPS_LEGEND, chip_summaries, chip_text
from analog_grasp.report.tables import (
    LEGEND,
    MARKS,
    DeviceTable,
    TextCell,
    TextRow,
    TextTable,
    adapter_text,
    comparison_tables,
    device_text,
    interval_text,
    markdown_escape,
    markdown_table,
    ordered_variants,
)
from analog_grasp.study.records import AdapterRecord, LayerRecord, Measurement
from analog_grasp.study.statistics import PairedDifference, Summary, is_fraction
from analog_grasp.utils.time import format_time

METHOD = (
    "A cell is one adapter at one placement on one device at one time since programming. Its"
    " figure is the mean over chip instances, each programmed from its own seed, with the 95 %"
    " interval of Student's t; one instance gives no interval.",
    "Adapters that share frozen weights are measured on the same chip instances. A difference is"
    " taken instance by instance, and its interval is that of the paired differences. An adapter"
    " is ahead or behind in a cell if this interval excludes zero, else level.",
    "Each interval stands by itself, without correction for the number of cells: between equal"
    " adapters, about one cell in twenty would be ahead or behind by chance. The differences with"
    " a * also hold at the level of 5 % after Holm's correction over all differences of the same"
    " task and metric, by the paired t-test.",
    "Devices and chips are simulated. The adapters were trained once each, so the intervals hold"
    " the spread between chips, not the spread between trainings.",
)


def findings(
    measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord] = ()
) -> list[str]:
    """What the measurements say, in plain sentences, the comparison first.

    Args:
        measurements: those of a whole or a partial run.
        adapters: their order gives the baseline.

    Example:
        >>> cells = [
        ...     Measurement("reviews", "accuracy", name, "digital", "pcm", 0.0, i, i, score + i)
        ...     for name, score in [("grasp", 0.5), ("lora", 0.75)]
        ...     for i in range(2)
        ... ]
        >>> print(findings(cells)[0].partition(" (")[0])
        lora is ahead of grasp in 1 of 1 cell, behind in 0 and level in 0
    """
    subjects: dict[tuple[str, str], list[DeviceTable]] = {}
    for table in comparison_tables(measurements, adapters):
        subjects.setdefault((table.task, table.metric), []).append(table)
    sentences = [sentence for tables in subjects.values() for sentence in _compared(tables)]
    sentences += [sentence for tables in subjects.values() for sentence in _ranges(tables)]
    return [*sentences, *_gaps(measurements, adapters)]


def settings_text(settings: Mapping[str, object]) -> TextTable:
    """The settings as a table; those within others are named with a dot."""
    rows = tuple(TextRow(name, (TextCell(text),)) for name, text in _flat(settings))
    return TextTable("Settings", ("setting", "value"), rows, of_words=True)


def summary_markdown(
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    notes: Sequence[str] = (),
    *,
    layers: Sequence[LayerRecord] = (),
) -> str:
    """The text of summary.md: finding, tables, settings, and how the numbers were computed."""
    tables = [device_text(table) for table in comparison_tables(measurements, adapters)]
    parts = [
        f"# {markdown_escape(question)}",
        _bullets([*findings(measurements, adapters), *notes]),
        "## Scores by device and time since programming",
        markdown_escape(LEGEND),
        *map(markdown_table, tables),
        "![Score against time since programming](accuracy_vs_drift.svg)",
        *([markdown_table(adapter_text(adapters))] if adapters else []),
        *_chips(layers),
        markdown_table(settings_text(settings)),
        "## How the numbers were computed",
        _bullets(METHOD),
    ]
    return "\n\n".join(parts) + "\n"


def _chips(layers: Sequence[LayerRecord]) -> list[str]:
    if not layers:
        return []
    return [markdown_table(chip_text(chip_summaries(layers))), markdown_escape(CHIPS_LEGEND)]


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_escape(sentence)}" for sentence in sentences)


def _compared(tables: Sequence[DeviceTable]) -> list[str]:
    """For every variant but the first: in how many cells it is ahead, and the extremes."""
    sentences = []
    for index, row in enumerate(tables[0].differences):
        cells = [
            cell for table in tables for cell in table.differences[index].cells if cell and cell.n
        ]
        counts = Counter(cell.verdict for cell in cells)
        decided = len(cells) - counts["open"]
        subject = f"{tables[0].task}, {tables[0].metric}"
        if decided:
            sentences.append(
                f"{row.adapter} is ahead of {row.baseline} in {counts['ahead']} of {decided}"
                f" {'cell' if decided == 1 else 'cells'}, behind in {counts['behind']} and level"
                f" in {counts['level']} ({subject}; 95 % interval of the paired difference)."
                f"{_corrected(cells)}"
            )
        if counts["open"]:
            sentences.append(
                f"Between {row.adapter} and {row.baseline}, {counts['open']}"
                f" {'cell has' if counts['open'] == 1 else 'cells have'} one chip instance in"
                f" common ({subject}): too few for an interval."
            )
        if len(cells) > 1:
            sentences.append(_extremes(cells))
    return sentences


def _corrected(cells: Sequence[PairedDifference]) -> str:
    """How many of the differences outlast the correction for their number."""
    counts = Counter(cell.verdict for cell in cells if cell.holds_corrected)
    if not any(cell.verdict in MARKS for cell in cells):
        return ""
    return (
        f" After Holm's correction it is ahead in {counts['ahead']} and behind in"
        f" {counts['behind']}."
    )


def _extremes(cells: Sequence[PairedDifference]) -> str:
    low, high = (
        f"{interval_text(cell, cell.metric)}{_points(cell)} on {cell.device} at"
        f" {format_time(cell.time_s)}"
        for cell in (choose(cells, key=lambda cell: cell.mean or 0.0) for choose in (min, max))
    )
    return f"The mean difference runs from {low} to {high}."


def _points(cell: PairedDifference) -> str:
    return " points" if is_fraction(cell.metric) else ""


def _ranges(tables: Sequence[DeviceTable]) -> list[str]:
    """From where to where each variant's mean scores run."""
    sentences = []
    for index, row in enumerate(tables[0].scores):
        cells = [cell for table in tables for cell in table.scores[index].cells if cell]
        if cells:
            low, high = (_place(choose(cells, key=lambda cell: cell.mean)) for choose in (min, max))
            sentences.append(f"{row.label} scores from {low} to {high} ({tables[0].metric}).")
    return sentences


def _place(cell: Summary) -> str:
    unit = " %" if is_fraction(cell.metric) else ""
    where = f"{cell.device} at {format_time(cell.time_s)}"
    return f"{interval_text(cell, cell.metric)}{unit} on {where}"


def _gaps(measurements: Sequence[Measurement], adapters: Sequence[AdapterRecord]) -> list[str]:
    """What a full grid of the names and times that were met would hold beyond what is there."""
    grid = 1
    for column in ("device", "time_s", "repeat"):
        grid *= len({getattr(cell, column) for cell in measurements})
    subjects = {(cell.task, cell.metric) for cell in measurements}
    full = grid * len(subjects) * len(ordered_variants(measurements, adapters))
    if full <= len(measurements):
        return []
    return [
        f"The measurements are partial: {len(measurements)} of the {full} of a full grid are"
        " there, and what is said here rests on these."
    ]


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
