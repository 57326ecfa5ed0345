"""The report of a run: results, summary, figure and page.

Each adapter, placement and device has a token, such as ``a0``, ``p0`` and ``d1``, by which the
page's switches find its content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from analog_grasp.costs.table import CostRow
from analog_grasp.report.answer import ANSWER_LEGEND, answer_table
from analog_grasp.report.costs import cost_section, write_costs
from analog_grasp.report.figures import (
    NoiseScores,
    accuracy_vs_drift,
    accuracy_vs_noise,
    draw_drift,
    draw_noise,
    draw_utilisation,
    draw_weight_error,
    noise_scores,
    noise_target,
    score_limits,
)
from analog_grasp.report.html import (
    Chart,
    PageTable,
    Section,
    Series,
    Switch,
    page_svg,
    render_page,
    swatch,
)
from analog_grasp.report.plotting import (
    MARKERS,
    PALETTE,
    adapter_colours,
    variant_styles,
)
from analog_grasp.report.summary import (
    CHIPS_LEGEND,
    ChipSummary,
    chip_summaries,
    chip_text,
    coverage,
    findings,
    methodology,
    summary_markdown,
    trainings_text,
)
from analog_grasp.report.tables import (
    LEGEND,
    DeviceTable,
    ScoreRow,
    adapter_text,
    comparison_tables,
    device_text,
    digital_means,
    interval_text,
    metric_title,
    ordered_variants,
    percent,
    score_text,
    settings_text,
)
from analog_grasp.report.treatments import treatment_text
from analog_grasp.study.records import (
    AdapterRecord,
    LayerRecord,
    Measurement,
    TreatmentCost,
    csv_text,
    write_csv,
    write_parquet,
)
from analog_grasp.study.statistics import Summary, Variant
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time

_DRIFT_CAPTION = (
    "Lines: mean over trainings and chips; bands: 95 % interval; dashed lines: the digital model"
    " before deployment. The time axis is logarithmic, with 0 s on its left."
)
_NOISE_CAPTION = (
    "Lines: mean over trainings and chips; bands: 95 % interval; dashed lines: the digital model."
    " These devices do not drift; the scores are those at the first time."
)


class Switches:
    """Switches of a comparison, and the tokens of its parts.

    Args:
        measured: Variants in the order of the tables.
        devices: Devices in the order of the tables.

    Example:
        >>> switches = Switches([Variant("grasp", "digital")], ["pcm", "rram"])
        >>> switches.variant(Variant("grasp", "digital")), switches.devices(["rram"])
        ('a0 p0', 'd1')
    """

    def __init__(self, measured: Sequence[Variant], devices: Iterable[str]) -> None:
        self._colours = adapter_colours(variant_styles(measured))
        self._adapters = list(dict.fromkeys(variant.adapter for variant in measured))
        self._placements = list(dict.fromkeys(variant.placement for variant in measured))
        self._devices = list(dict.fromkeys(devices))

    def variant(self, variant: Variant) -> str:
        """Return the tokens of an adapter at a placement."""
        return f"a{self._adapters.index(variant.adapter)} {self.placement(variant.placement)}"

    def placement(self, name: str) -> str:
        """Return the token of a placement."""
        return f"p{self._placements.index(name)}"

    def devices(self, names: Iterable[str]) -> str:
        """Return the tokens of the devices that the tables contain."""
        return " ".join(f"d{self._devices.index(n)}" for n in names if n in self._devices)

    def groups(self) -> dict[str, list[Switch]]:
        """Return the switches by title; a single placement or device needs none."""
        groups = {
            "Adapter": [
                Switch(f"a{i}", name, swatch("o", self._colours[name]))
                for i, name in enumerate(self._adapters)
            ],
            "Placement": [
                Switch(f"p{i}", name, swatch(MARKERS[i % len(MARKERS)]))
                for i, name in enumerate(self._placements)
            ],
            "Device": [Switch(f"d{i}", name, Markup()) for i, name in enumerate(self._devices)],
        }
        return {
            title: group for title, group in groups.items() if title == "Adapter" or len(group) > 1
        }


def write_report(
    directory: Path | str,
    *,
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    layers: Sequence[LayerRecord] = (),
    costs: Sequence[CostRow] = (),
    treatments: Sequence[TreatmentCost] = (),
) -> list[Path]:
    """Write results.csv, results.parquet, summary.md, the figures and report.html.

    The measurements may be those of an interrupted run: a missing score is shown as a dash.

    Args:
        directory: Output folder; created where it does not exist.
        question: Title of the summary and the page.
        settings: Names and values to show; nested mappings are flattened.
        measurements: Measurements, at least one.
        adapters: Trained adapters; the others are compared with the first.
        layers: Tiles and weight error per layer, where known.
        costs: The rows of costs.csv, where known.
        treatments: The costs of recalibrated and scheduled adapters, where there are any.

    Returns:
        The paths of results.csv, results.parquet, summary.md, accuracy_vs_drift.png, .svg, .pdf
        and report.html; with several noise levels of the Gaussian card also those of
        accuracy_vs_noise.png, .svg and .pdf; with costs costs.csv and those of
        energy_by_part and accuracy_vs_energy.

    Raises:
        ValueError: `measurements` is empty.
        OSError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 0.0, 0, 7, 0.8)
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = write_report(
        ...         folder, question="GRASP on reviews", settings={"seed": 7},
        ...         measurements=cells, adapters=[],
        ...     )
        >>> paths[-1].name
        'report.html'
    """
    if not measurements:
        raise ValueError("The run has no measurements yet: a report needs at least one.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    csv_path, parquet_path, summary_path, page_path = (
        directory / name for name in ("results.csv", "results.parquet", "summary.md", "report.html")
    )
    write_csv(measurements, csv_path)
    write_parquet(measurements, parquet_path)
    summary = summary_markdown(question, settings, measurements, adapters, layers, treatments)
    write_atomically(summary_path, summary.encode())
    stem = directory / "accuracy_vs_drift"
    figures = accuracy_vs_drift(measurements, stem, adapters=adapters)
    page = comparison_page(question, settings, measurements, adapters, layers, costs, treatments)
    write_atomically(page_path, page.encode())
    noise_figures = accuracy_vs_noise(
        measurements,
        directory / "accuracy_vs_noise",
        adapters=adapters,
        weights=str(settings.get("weights", "analog")),
    )
    cost_files = write_costs(costs, measurements, adapters, directory)
    written = [csv_path, parquet_path, summary_path, *figures, page_path]
    return [*written, *noise_figures, *cost_files]


def comparison_page(
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    layers: Sequence[LayerRecord] = (),
    costs: Sequence[CostRow] = (),
    treatments: Sequence[TreatmentCost] = (),
) -> str:
    """Return the text of report.html; the arguments are those of `write_report`."""
    first, *further = findings(measurements, adapters)
    tables = comparison_tables(measurements, adapters)
    measured = ordered_variants(measurements, adapters)
    switches = Switches(measured, (table.device for table in tables))
    rows = [switches.variant(variant) for variant in (*measured, *measured[1:])]
    chips = chip_summaries(layers)
    noise = noise_scores(tables, measured, adapters)
    weights = str(settings.get("weights", "analog"))
    lead = [table for table in tables if table.metric == tables[0].metric]
    others = [table for table in tables if table.metric != tables[0].metric]
    sections = [
        Section(
            "Score against time since programming",
            charts=_drift_charts(lead, measured, adapters, switches, "drift"),
            small=len(lead) > 2,
            caption=_DRIFT_CAPTION,
            tables=[_lead_table(measurements, adapters, lead, measured, switches)],
            note=f"{ANSWER_LEGEND} {trainings_text(measurements)}",
        ),
        Section(
            "Other metrics",
            charts=_drift_charts(others, measured, adapters, switches, "other"),
            small=len(others) > 2,
            caption=_DRIFT_CAPTION,
        ),
        Section(
            "Scores and paired differences",
            text=LEGEND,
            tables=[
                PageTable(device_text(table), switches.devices([table.device]), rows)
                for table in tables
            ],
        ),
        Section("Further results", sentences=further),
        Section(
            "Score against noise level",
            charts=_noise_charts(noise, measured, switches, weights),
            caption=_NOISE_CAPTION,
        ),
        Section(
            "Chips",
            charts=_chip_charts(chips, switches) if chips else (),
            caption=CHIPS_LEGEND if chips else "",
            tables=[PageTable(chip_text(chips))] if chips else (),
            sentences=coverage(layers),
        ),
        cost_section(costs, measurements, adapters, switches),
        Section(
            "Adapters and settings",
            tables=[
                *([PageTable(adapter_text(adapters))] if adapters else []),
                *([PageTable(treatment_text(treatments))] if treatments else []),
                PageTable(settings_text(settings)),
            ],
        ),
        Section("Methodology", sentences=methodology(settings)),
    ]
    link = (f"Download the {len(measurements):,} measurements (CSV)", "results.csv")
    return render_page(question, first, sections, *link, csv_text(measurements), switches.groups())


def _lead_table(
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    tables: Sequence[DeviceTable],
    measured: Sequence[Variant],
    switches: Switches,
) -> PageTable:
    """Return the table of all devices, with the tokens of its rows."""
    rows = [
        f"{switches.variant(variant)} {switches.devices([table.device])}"
        for table in tables
        if table.task == tables[0].task
        for variant in measured
    ]
    return PageTable(answer_table(measurements, adapters), "", rows)


def _drift_charts(
    tables: Sequence[DeviceTable],
    measured: Sequence[Variant],
    adapters: Sequence[AdapterRecord],
    switches: Switches,
    prefix: str,
) -> list[Chart]:
    """Return a figure per table, with the same scale for all devices of a metric."""
    styles = variant_styles(measured)
    charts = []
    for number, table in enumerate(tables):
        same = [t for t in tables if (t.task, t.metric) == (table.task, table.metric)]
        limits = score_limits(same, adapters)
        draw = partial(draw_drift, table=table, styles=styles, adapters=adapters, limits=limits)
        title, name = metric_title(table.metric), table.device
        description = (
            f"{title} on {table.task} against the time since programming on {name}. The table of"
            " this device has the values."
        )
        times = [format_time(seconds) for seconds in table.times]
        series = _score_series(dict(enumerate(table.scores)), measured, switches, times)
        digital = digital_means(table, adapters)
        series |= _digital_series(digital, table.metric, measured, switches)
        svg = page_svg(draw, f"{prefix}{number}-", series, small=len(tables) > 2)
        charts.append(Chart(name, description, svg, switches.devices([table.device])))
    return charts


def _digital_series(
    scores: Mapping[str, float], metric: str, measured: Sequence[Variant], switches: Switches
) -> dict[str, Series]:
    """Return tokens and labels of the digital scores, by the ids of `draw_drift`."""
    series = {}
    for index, adapter in enumerate(dict.fromkeys(variant.adapter for variant in measured)):
        if adapter in scores:
            tokens = [switches.variant(v) for v in measured if v.adapter == adapter]
            score = score_text(scores[adapter], metric) + percent(metric)
            label = f"{adapter}, digital model: {score}"
            series[f"digital{index}"] = Series(" ".join(tokens), [label])
    return series


def _score_series(
    rows: Mapping[int, ScoreRow],
    measured: Sequence[Variant],
    switches: Switches,
    conditions: Sequence[str],
) -> dict[str, Series]:
    """Return tokens and labels of scores and their intervals, by the ids of `draw_drift`."""
    series = {}
    for index, row in rows.items():
        tokens = switches.variant(measured[index])
        labels = [
            f"{row.label}, {condition}: {interval_text(cell, cell.metric)}{percent(cell.metric)},"
            f" {_repetitions(cell)}"
            for condition, cell in zip(conditions, row.summaries, strict=True)
            if cell
        ]
        series[f"series{index}"] = Series(tokens, labels)
        series |= {f"band{index}{part}": Series(tokens, ()) for part in ("", "-0", "-1", "-2")}
    return series


def _repetitions(cell: Summary) -> str:
    chips = f"{cell.n} chip{'' if cell.n == 1 else 's'}"
    return chips if cell.trainings == 1 else f"{cell.trainings} trainings on {chips}"


def _noise_charts(
    found: Sequence[NoiseScores], measured: Sequence[Variant], switches: Switches, weights: str
) -> list[Chart]:
    """Return a figure per task, metric and placement with several noise levels."""
    styles, charts = variant_styles(measured), []
    for number, noise in enumerate(found):
        conditions = [f"{100 * level:.3g} % noise" for level in noise.levels]
        series = _score_series(noise.rows, measured, switches, conditions)
        series |= _digital_series(noise.digital, noise.metric, measured, switches)
        svg = page_svg(partial(draw_noise, noise=noise, styles=styles), f"noise{number}-", series)
        name = f"{noise.task}, noise on the {noise_target(noise.placement, weights)}"
        description = f"{metric_title(noise.metric)} against the standard deviation of the noise."
        charts.append(Chart(name, description, svg, switches.placement(noise.placement)))
    return charts


def _chip_charts(chips: Sequence[ChipSummary], switches: Switches) -> list[Chart]:
    """Return a figure of the weight error, and one per device of the tiles in use.

    Devices with the same tiles share a figure.
    """
    series, legend = {}, []
    for index, chip in enumerate(chips):
        tokens = switches.devices([chip.device])
        labels = [f"{chip.device}, {format_time(t)}: {e:.2%}" for t, e in chip.errors.items()]
        series[f"series{index}"] = Series(tokens, labels)
        legend.append((chip.device, swatch("o", PALETTE[index % len(PALETTE)]), tokens))
    names = switches.devices(chip.device for chip in chips)
    svg = page_svg(partial(draw_weight_error, chips=chips), "error-", series)
    description = "Weight error against the time since programming, one line per device."
    charts = [Chart("Weight error", description, svg, names, legend)]
    same_tiles: dict[tuple[tuple[str, int, float], ...], list[ChipSummary]] = {}
    for chip in chips:
        use = tuple((layer.layer, layer.tiles, layer.use) for layer in chip.layers)
        same_tiles.setdefault(use, []).append(chip)
    for number, (first, *others) in enumerate(same_tiles.values()):
        devices = [chip.device for chip in (first, *others)]
        tokens = switches.devices(devices)
        series = {
            f"series{index}": Series(
                tokens,
                [f"{x.layer}: {x.use:.1%} of {x.tiles} tile{'' if x.tiles == 1 else 's'},"
                 f" {x.cells:,} weights"],
            )
            for index, x in enumerate(first.layers)
        }  # fmt: skip
        title = (
            f"Utilisation of the tiles of {', '.join(devices)}: {first.weights:,} weights on"
            f" {first.tiles:,} tiles, {first.utilisation:.0%}"
        )
        svg = page_svg(partial(draw_utilisation, chip=first), f"use{number}-", series)
        charts.append(Chart(title, "Share of each layer's tiles in use.", svg, tokens))
    return charts
