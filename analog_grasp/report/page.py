"""The report of a run: results, summary, figures and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from analog_grasp.costs.table import CostRow
from analog_grasp.report.comparison import (
    ANSWER_LEGEND,
    LEGEND,
    Comparison,
    DeviceTable,
    adapter_text,
    answer_table,
    device_text,
    treatment_text,
)
from analog_grasp.report.costs import cost_section, write_costs
from analog_grasp.report.figures import (
    accuracy_vs_drift,
    accuracy_vs_noise,
    draw_drift,
    draw_noise,
    draw_utilisation,
    draw_weight_error,
    noise_scores,
    noise_title,
)
from analog_grasp.report.findings import (
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
from analog_grasp.report.html import Chart, PageTable, Section, Switch, render_page, swatch
from analog_grasp.report.plotting import colour_of, marker_of
from analog_grasp.report.tables import metric_title, settings_text
from analog_grasp.study.records import (
    AdapterRecord,
    LayerRecord,
    Measurement,
    TreatmentCost,
    csv_text,
    write_csv,
    write_parquet,
)
from analog_grasp.utils.io import write_atomically

_DRIFT_CAPTION = (
    "Lines: mean over trainings and chips; bands: 95 % interval; dashed lines: the digital model"
    " before deployment. The time axis is logarithmic, with 0 s on its left."
)
_NOISE_CAPTION = (
    "Lines: mean over trainings and chips; bands: 95 % interval; dashed lines: the digital model."
    " These devices do not drift; the scores are those at the first time."
)


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
        ``write_report("out", question="GRASP on reviews", settings={"seed": 7},
        measurements=cells, adapters=records)``
    """
    if not measurements:
        raise ValueError("The run has no measurements yet: a report needs at least one.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(measurements, adapters)
    csv, parquet, summary, page = (
        directory / name for name in ("results.csv", "results.parquet", "summary.md", "report.html")
    )
    write_csv(measurements, csv)
    write_parquet(measurements, parquet)
    text = summary_markdown(question, settings, comparison, layers, treatments)
    write_atomically(summary, text.encode())
    figures = accuracy_vs_drift(comparison, directory / "accuracy_vs_drift")
    text = comparison_page(question, settings, comparison, layers, costs, treatments)
    write_atomically(page, text.encode())
    noise_figures = accuracy_vs_noise(
        comparison, directory / "accuracy_vs_noise", weights=_weights(settings)
    )
    cost_files = write_costs(costs, comparison, directory)
    return [csv, parquet, summary, *figures, page, *noise_figures, *cost_files]


def comparison_page(
    question: str,
    settings: Mapping[str, object],
    comparison: Comparison,
    layers: Sequence[LayerRecord] = (),
    costs: Sequence[CostRow] = (),
    treatments: Sequence[TreatmentCost] = (),
) -> str:
    """Return the text of report.html; the arguments are those of `write_report`."""
    first, *further = findings(comparison)
    tables, adapters = comparison.tables, comparison.adapters
    lead = [table for table in tables if table.metric == tables[0].metric]
    others = [table for table in tables if table.metric != tables[0].metric]
    rows = [comparison.tokens(v) for v in (*comparison.variants, *comparison.variants[1:])]
    lead_rows = [
        comparison.tokens(variant, devices=[table.device])
        for table in comparison.subjects[0]
        for variant in comparison.variants
    ]
    chips = chip_summaries(layers)
    sections = [
        Section(
            "Score against time since programming",
            charts=_drift_charts(comparison, lead),
            small=len(lead) > 2,
            caption=_DRIFT_CAPTION,
            tables=[PageTable(answer_table(comparison), "", lead_rows)],
            note=f"{ANSWER_LEGEND} {trainings_text(comparison.measurements)}",
        ),
        Section(
            "Other metrics",
            charts=_drift_charts(comparison, others),
            small=len(others) > 2,
            caption=_DRIFT_CAPTION,
        ),
        Section(
            "Scores and paired differences",
            text=LEGEND,
            tables=[
                PageTable(device_text(t), comparison.tokens(devices=[t.device]), rows)
                for t in tables
            ],
        ),
        Section("Further results", sentences=further),
        Section(
            "Score against noise level",
            charts=_noise_charts(comparison, _weights(settings)),
            caption=_NOISE_CAPTION,
        ),
        Section(
            "Chips",
            charts=_chip_charts(comparison, chips) if chips else (),
            caption=CHIPS_LEGEND if chips else "",
            tables=[PageTable(chip_text(chips))] if chips else (),
            sentences=coverage(layers),
        ),
        *([cost_section(costs, comparison)] if costs else []),
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
    measurements = comparison.measurements
    link = (f"Download the {len(measurements):,} measurements (CSV)", "results.csv")
    return render_page(
        question, first, sections, *link, csv_text(measurements), _switches(comparison)
    )


def _weights(settings: Mapping[str, object]) -> str:
    return str(settings.get("weights", "analog"))


def _switches(comparison: Comparison) -> dict[str, list[Switch]]:
    """Return the switches by title; a single placement or device needs none."""
    adapters = [
        Switch(f"a{i}", a, swatch("o", colour_of(i))) for i, a in enumerate(comparison.names)
    ]
    groups = {
        "Placement": [
            Switch(f"p{i}", name, swatch(marker_of(i)))
            for i, name in enumerate(comparison.placements)
        ],
        "Device": [Switch(f"d{i}", d, Markup()) for i, d in enumerate(comparison.devices)],
    }
    return {"Adapter": adapters} | {t: group for t, group in groups.items() if len(group) > 1}


def _drift_charts(comparison: Comparison, tables: Sequence[DeviceTable]) -> list[Chart]:
    return [
        Chart(
            table.device,
            f"{metric_title(table.metric)} on {table.task} against the time since programming on"
            f" {table.device}. The table of this device has the values.",
            partial(draw_drift, comparison=comparison, table=table),
            comparison.tokens(devices=[table.device]),
        )
        for table in tables
    ]


def _noise_charts(comparison: Comparison, weights: str) -> list[Chart]:
    """Return a figure per task, metric and placement with several noise levels."""
    return [
        Chart(
            f"{noise.tables[0].task}, {noise_title(noise.placement, weights)}",
            f"{metric_title(noise.tables[0].metric)} against the standard deviation of the noise.",
            partial(draw_noise, comparison=comparison, noise=noise),
            comparison.tokens(placement=noise.placement),
        )
        for noise in noise_scores(comparison)
    ]


def _chip_charts(comparison: Comparison, chips: Sequence[ChipSummary]) -> list[Chart]:
    """Return a figure of the weight error, and one of the tiles in use.

    Devices with the same tiles share a figure.
    """
    charts = [
        Chart(
            "Weight error",
            "Weight error against the time since programming, one line per device.",
            partial(draw_weight_error, comparison=comparison, chips=chips),
            comparison.tokens(devices=(chip.device for chip in chips)),
            [
                (chip.device, swatch("o", colour_of(i)), comparison.tokens(devices=[chip.device]))
                for i, chip in enumerate(chips)
            ],
        )
    ]
    same_tiles: dict[tuple[tuple[str, int, float], ...], list[ChipSummary]] = {}
    for chip in chips:
        use = tuple((layer.layer, layer.tiles, layer.use) for layer in chip.layers)
        same_tiles.setdefault(use, []).append(chip)
    for same in same_tiles.values():
        devices = [chip.device for chip in same]
        title = (
            f"Utilisation of the tiles of {', '.join(devices)}: {same[0].weights:,} weights on"
            f" {same[0].tiles:,} tiles, {same[0].utilisation:.0%}"
        )
        tokens = comparison.tokens(devices=devices)
        draw = partial(draw_utilisation, chip=same[0], tokens=tokens)
        charts.append(Chart(title, "Share of each layer's tiles in use.", draw, tokens))
    return charts
