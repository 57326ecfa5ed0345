"""The page of a tuning: like that of a comparison, with every trial in an interactive figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from analog_grasp.report.charts import Chart, draw_line, draw_points, new_plot
from analog_grasp.report.curves import MARKERS, PALETTE, unit
from analog_grasp.report.page import bullets, document, download, heading, html_table, section
from analog_grasp.report.summary import findings, settings_text
from analog_grasp.report.tables import (
    LEGEND,
    adapter_text,
    comparison_tables,
    device_text,
    metric_title,
)
from analog_grasp.report.tuning import (
    METHOD,
    TOO_FEW,
    Trials,
    importance_table,
    trial_table,
    trials_csv,
    tuning_findings,
    tuning_title,
)
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.tuning.objective import Trial, values_text

_CAPTION = "Each point is a trial that was measured whole, on held-out training data."
_FRONT_CAPTION = f"{_CAPTION} None is better in both scores than those joined by a line."
_TRIAL_COLOUR = "#8A8A8A"


def tuning_page(
    found: Trials,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
) -> str:
    """The text of report.html, which holds what `tuning_markdown` does and every trial.

    Args:
        found: The trials, one or more of them measured whole.
        settings: Names and values to show.
        measurements: Those of the best setting on the task's own validation split.
        adapters: The adapter trained for them.
    """
    finding, *more = tuning_findings(found)
    charts, title = [_trials_chart(found)], tuning_title(found)
    caption = _FRONT_CAPTION if found.multi else _CAPTION
    tables = comparison_tables(measurements, adapters)
    told = f"Download the {len(found.trials):,} trials (CSV)"
    body = [
        heading(title),
        f'<p class="finding">{escape(finding)}</p>',
        bullets(more),
        section("Score after drift against digital score", charts, caption),
        html_table(trial_table(found)),
        html_table(importance_table(found)) if found.importance else f"<p>{escape(TOO_FEW)}</p>",
        "<h2>The best setting on the validation split, which no trial has seen</h2>",
        bullets(findings(measurements, adapters)),
        f"<p>{escape(LEGEND)}</p>",
        *(html_table(device_text(table)) for table in tables),
        html_table(adapter_text(adapters)),
        html_table(settings_text(settings)),
        "<h2>How the numbers were computed</h2>",
        bullets(METHOD),
        download("trials.csv", trials_csv(found), told),
    ]
    return document(title, body, charts)


def _trials_chart(found: Trials) -> Chart:
    """Score after drift against digital score; the front, or else the best trial, stands out."""
    scale, title = unit(found.metric), metric_title(found.metric)
    whole = [t for t in found.trials if t.score is not None and t.digital is not None]
    numbers = {trial.number for trial in found.front}
    others = [trial for trial in whole if trial.number not in numbers]
    front = [trial for trial in whole if trial.number in numbers]
    scores = [scale * (trial.score or 0.0) for trial in whole]
    plot = new_plot(f"{title}, digital", f"{title}, after drift", min(scores), max(scores))
    places = "0.0" if scale > 1 else "0.000"
    tooltips = [
        ("trial", "@number"),
        ("settings", "@values"),
        ("after drift", f"@y{{{places}}}"),
        ("digital", f"@x{{{places}}}"),
    ]
    draw_points(
        plot, _columns(others, scale), colour=_TRIAL_COLOUR, marker=MARKERS[0], tooltips=tooltips
    )
    front.sort(key=lambda trial: trial.digital or 0.0)
    draw_line(plot, _columns(front, scale), colour=PALETTE[0], marker=MARKERS[0], tooltips=tooltips)
    name = "on the front" if found.multi else "the best"
    legend = [(name, PALETTE[0], ""), ("other trials", _TRIAL_COLOUR, "")]
    described = f"{title} after drift against that of the digital model, a point a trial."
    return Chart("Trials", described, plot, legend=legend)


def _columns(trials: Sequence[Trial], scale: float) -> dict[str, list[float] | list[str]]:
    return {
        "x": [scale * (trial.digital or 0.0) for trial in trials],
        "y": [scale * (trial.score or 0.0) for trial in trials],
        "number": [str(trial.number) for trial in trials],
        "values": [values_text(trial.values) for trial in trials],
    }
