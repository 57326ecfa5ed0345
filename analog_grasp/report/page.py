"""The report of a run: results, summary, figures and page."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from analog_grasp.costs.estimate import CostRow
from analog_grasp.report.figures import (
    accuracy_vs_drift,
    accuracy_vs_noise,
    colour_of,
    draw_drift,
    draw_noise,
    marker_of,
    noise_scores,
    noise_title,
)
from analog_grasp.report.findings import coverage, findings, methodology, trainings_text
from analog_grasp.report.hardware import (
    CHIPS_LEGEND,
    chip_section,
    chip_summaries,
    chip_text,
    cost_section,
    write_costs,
)
from analog_grasp.report.html import Chart, PageTable, Section, render_page, swatch
from analog_grasp.report.tables import (
    ANSWER_LEGEND,
    LEGEND,
    Comparison,
    DeviceTable,
    TextTable,
    adapter_text,
    answer_table,
    device_text,
    markdown_bullets,
    markdown_escape,
    markdown_table,
    metric_title,
    settings_text,
    treatment_text,
)
from analog_grasp.study.records import (
    AdapterRecord,
    LayerRecord,
    Measurement,
    TreatmentCost,
    csv_text,
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
        measurements: At least one.
        adapters: Trained adapters; the others are compared with the first.
        layers: Tiles and weight error per layer, where known.
        costs: The rows of costs.csv, where known.
        treatments: The costs of recalibrated and scheduled adapters.

    Returns:
        The paths; with several noise levels of the Gaussian card also those of accuracy_vs_noise,
        with costs those of costs.csv, energy_by_part and accuracy_vs_energy.

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
    write_atomically(csv, csv_text(measurements).encode())
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
    tables = comparison.tables
    lead = [table for table in tables if table.metric == tables[0].metric]
    others = [table for table in tables if table.metric != tables[0].metric]
    rows = [comparison.tokens(v) for v in (*comparison.variants, *comparison.variants[1:])]
    lead_rows = [
        comparison.tokens(variant, devices=[table.device])
        for table in comparison.subjects[0]
        for variant in comparison.variants
    ]
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
        chip_section(layers, comparison),
        cost_section(costs, comparison),
        Section(
            "Adapters and settings",
            tables=[
                *map(PageTable, _adapter_tables(comparison, treatments)),
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


def _switches(comparison: Comparison) -> dict[str, list[tuple[str, str, Markup]]]:
    """Return the switches by title; a single placement or device needs none."""
    adapters, placements, devices = comparison.names, comparison.placements, comparison.devices
    groups = {
        "Adapter": [(f"a{i}", a, swatch("o", colour_of(i))) for i, a in enumerate(adapters)],
        "Placement": [(f"p{i}", p, swatch(marker_of(i))) for i, p in enumerate(placements)],
        "Device": [(f"d{i}", d, Markup()) for i, d in enumerate(devices)],
    }
    return {t: group for t, group in groups.items() if t == "Adapter" or len(group) > 1}


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


def summary_markdown(
    question: str,
    settings: Mapping[str, object],
    comparison: Comparison,
    layers: Sequence[LayerRecord] = (),
    treatments: Sequence[TreatmentCost] = (),
) -> str:
    """Return the text of summary.md: result, figure, tables, settings and methodology.

    The arguments are those of `write_report`.
    """
    first, *further = findings(comparison)
    chips = chip_summaries(layers)
    parts = [
        f"# {markdown_escape(question)}",
        markdown_escape(first),
        "![Score against time since programming](accuracy_vs_drift.svg)",
        markdown_table(answer_table(comparison)),
        markdown_escape(f"{ANSWER_LEGEND} {trainings_text(comparison.measurements)}"),
        "## Scores and paired differences",
        markdown_escape(LEGEND),
        *(markdown_table(device_text(table)) for table in comparison.tables),
        *(["## Further results", markdown_bullets(further)] if further else []),
        *map(markdown_table, _adapter_tables(comparison, treatments)),
        *([markdown_table(chip_text(chips)), markdown_escape(CHIPS_LEGEND)] if chips else []),
        *map(markdown_escape, coverage(layers)),
        markdown_table(settings_text(settings)),
        "## Methodology",
        markdown_bullets(methodology(settings)),
    ]
    return "\n\n".join(parts) + "\n"


def _adapter_tables(comparison: Comparison, treatments: Sequence[TreatmentCost]) -> list[TextTable]:
    tables = [adapter_text(comparison.adapters)] if comparison.adapters else []
    return [*tables, treatment_text(treatments)] if treatments else tables
