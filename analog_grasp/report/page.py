"""The report of a run: results, figures, summary and page."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from analog_grasp.costs.estimate import CostRow, costs_csv
from analog_grasp.report.figures import SOLID, accuracy_vs_drift, draw_drift, line_styles
from analog_grasp.report.findings import (
    ages_beyond_data,
    findings,
    methodology,
    trainings_text,
)
from analog_grasp.report.hardware import chip_section, cost_section
from analog_grasp.report.html import Chart, FigureFile, Report, Section, swatch
from analog_grasp.report.noise import accuracy_vs_noise, draw_noise, noise_scores, noise_title
from analog_grasp.report.tables import (
    ANSWER_LEGEND,
    LEGEND,
    Comparison,
    DeviceTable,
    adapter_text,
    answer_table,
    device_text,
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
        with costs those of energy_by_part, accuracy_vs_energy and costs.csv.

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
    report = comparison_report(question, settings, comparison, layers, costs, treatments)
    csv, parquet = directory / report.data_name, directory / "results.parquet"
    write_atomically(csv, report.data.encode())
    write_parquet(measurements, parquet)
    paths = [csv, parquet, *report.write(directory)]
    if costs:
        paths.append(directory / "costs.csv")
        write_atomically(paths[-1], costs_csv(costs).encode())
    return paths


def comparison_report(
    question: str,
    settings: Mapping[str, object],
    comparison: Comparison,
    layers: Sequence[LayerRecord] = (),
    costs: Sequence[CostRow] = (),
    treatments: Sequence[TreatmentCost] = (),
) -> Report:
    """Return the sections of a report; the arguments are those of `write_report`."""
    first, *further = findings(comparison, settings)
    tables, measurements = comparison.tables, comparison.measurements
    lead = [table for table in tables if table.metric == tables[0].metric]
    others = [table for table in tables if table.metric != tables[0].metric]
    rows = [comparison.tokens(v) for v in (*comparison.variants, *comparison.variants[1:])]
    weights = str(settings.get("weights", "analog"))
    noise_charts = _noise_charts(comparison, weights)
    noise_figure = FigureFile(
        "accuracy_vs_noise", partial(accuracy_vs_noise, comparison, weights=weights)
    )
    adapter_tables = [adapter_text(comparison.adapters)] if comparison.adapters else []
    if treatments:
        adapter_tables.append(treatment_text(treatments))
    sections = [
        Section(
            "Score against time since programming",
            charts=_drift_charts(comparison, lead),
            small=len(lead) > 2,
            files=[FigureFile("accuracy_vs_drift", partial(accuracy_vs_drift, comparison))],
            caption=_DRIFT_CAPTION,
            tables=[answer_table(comparison)],
            note=f"{ANSWER_LEGEND} {trainings_text(measurements)}",
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
                device_text(table)._replace(
                    tokens=comparison.tokens(devices=[table.device]), row_tokens=rows
                )
                for table in tables
            ],
        ),
        Section("Further results", sentences=further),
        Section(
            "Score against noise level",
            charts=noise_charts,
            files=[noise_figure] if noise_charts else [],
            caption=_NOISE_CAPTION,
        ),
        chip_section(layers, comparison),
        cost_section(costs, comparison),
        Section("Adapters and settings", tables=[*adapter_tables, settings_text(settings)]),
        Section(
            "Methodology",
            sentences=[*methodology(settings, comparison.adapters), *ages_beyond_data(settings)],
        ),
    ]
    link = f"Download the {len(measurements):,} measurements (CSV)"
    data = csv_text(measurements)
    return Report(question, first, sections, link, "results.csv", data, _switches(comparison))


def _switches(comparison: Comparison) -> dict[str, list[tuple[str, str, Markup]]]:
    """Return the switches by title; a single placement or device needs none."""
    styles = list(zip(comparison.variants, line_styles(comparison), strict=True))
    is_solid = all(style["linestyle"] == SOLID for _, style in styles)

    def adapter_swatch(name: str) -> Markup:
        style = next(style for variant, style in styles if variant.adapter == name)
        if is_solid:
            return swatch("o", style["color"])
        # With several placements the marker is of the placement.
        marker = "" if len(comparison.placements) > 1 else style["marker"]
        return swatch(marker, style["color"], style["linestyle"])

    def placement_swatches(name: str) -> Markup:
        own = (style["marker"] for variant, style in styles if variant.placement == name)
        return Markup().join(map(swatch, dict.fromkeys(own)))

    groups = {
        "Adapter": [(f"a{i}", a, adapter_swatch(a)) for i, a in enumerate(comparison.names)],
        "Placement": [
            (f"p{i}", p, placement_swatches(p)) for i, p in enumerate(comparison.placements)
        ],
        "Device": [(f"d{i}", d, Markup()) for i, d in enumerate(comparison.devices)],
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
