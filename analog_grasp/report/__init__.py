"""What is shown of a comparison: tables, a figure, a summary and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from analog_grasp.report.summary import findings, summary_markdown
from analog_grasp.report.tables import (
    adapter_text,
    comparison_tables,
    device_text,
    rich_table,
)
from analog_grasp.study.export import write_csv, write_parquet
from analog_grasp.study.records import AdapterRecord, LayerRecord, Measurement
from analog_grasp.utils.io import write_atomically

__all__ = [
    "adapter_text",
    "comparison_tables",
    "device_text",
    "findings",
    "rich_table",
    "write_report",
]


def write_report(
    directory: Path | str,
    *,
    question: str,
    settings: Mapping[str, object],
    measurements: Sequence[Measurement],
    adapters: Sequence[AdapterRecord],
    notes: Sequence[str] = (),
    chance: Mapping[tuple[str, str], float] | None = None,
    layers: Sequence[LayerRecord] = (),
) -> list[Path]:
    """Write results.csv, results.parquet, summary.md, the figure and report.html.

    Works on the measurements of an interrupted run as well: a cell without any shows a dash.

    Args:
        directory: where to write; made if it is not there.
        question: what the run was to answer, the title of summary and page.
        settings: names and values to show; mappings within it are flattened.
        measurements: what was measured, one or more.
        adapters: the trained adapters; the first is the one the others are compared with.
        notes: further sentences for the reader.
        chance: score of guessing by task and metric, drawn into the figures.
        layers: what each layer takes of the chips, where it is known.

    Returns:
        The paths of results.csv, results.parquet, summary.md, accuracy_vs_drift.png, .svg, .pdf
        and report.html.

    Raises:
        ValueError: there is no measurement.
        OSError: a file cannot be written.

    Example:
        >>> import tempfile
        >>> cells = [
        ...     Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 0.0, 0, 7, 0.8)
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = write_report(
        ...         folder, question="Does it hold?", settings={"seed": 7},
        ...         measurements=cells, adapters=[],
        ...     )
        >>> paths[-1].name
        'report.html'
    """
    # They take long to be imported, and commands that only show a table do without.
    from analog_grasp.report.figures import accuracy_vs_drift
    from analog_grasp.report.page import page_html

    if not measurements:
        raise ValueError(
            "There is nothing to report: no cell is measured yet; let the run measure one or more."
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    csv_path, parquet_path, summary_path, page_path = (
        directory / name for name in ("results.csv", "results.parquet", "summary.md", "report.html")
    )
    write_csv(measurements, csv_path)
    write_parquet(measurements, parquet_path)
    summary = summary_markdown(question, settings, measurements, adapters, notes, layers=layers)
    write_atomically(summary_path, summary.encode())
    figures = accuracy_vs_drift(
        measurements, directory / "accuracy_vs_drift", adapters=adapters, chance=chance
    )
    page = page_html(
        question, settings, measurements, adapters, notes, layers=layers, chance=chance
    )
    write_atomically(page_path, page.encode())
    return [csv_path, parquet_path, summary_path, *figures, page_path]
