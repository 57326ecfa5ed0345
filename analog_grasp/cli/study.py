"""Whole studies, carried out and shown."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from analog_grasp.cli.console import Stages, noting, show, tell
from analog_grasp.cli.errors import RequestError, asking
from analog_grasp.report import adapter_text, comparison_tables, device_text, findings, rich_table
from analog_grasp.report.tables import LEGEND
from analog_grasp.study import api as studies
from analog_grasp.study.config import resolve
from analog_grasp.study.folder import LOG_FILE
from analog_grasp.study.progress import log_line
from analog_grasp.study.runner import Study, done_of_all, prepare, run

# Cells from which on it pays to start workers; and the most, since each has a copy of the model.
_WORTH_WORKERS = 16
_MOST_WORKERS = 4


def carry_out(
    settings: dict[str, Any],
    out: Path,
    config: Path | None,
    *,
    saved: Sequence[Path] = (),
    quiet: bool,
    verbose: bool,
) -> None:
    """Prepare a study, or go on with it; measure what is missing, report and show.

    Args:
        settings, out, config: As the command takes them.
        saved: The folders of saved adapters, where these are measured.
        quiet: Show errors alone.
        verbose: Show each figure.
    """
    if saved:
        settings = settings | {"adapters": studies.saved_adapters(saved)}
    notes: list[str] = []
    with asking(), noting(notes.append):
        if quiet and verbose:
            raise RequestError("Both --quiet and --verbose are given: leave one out.")
        study = _with_workers(prepare(resolve(settings, config), out))

    def note(text: str) -> None:
        log_line(out / LOG_FILE, f"note: {text}")
        if not quiet:
            tell("note", text)

    for text in notes:
        note(text)
    with noting(note), _telling_what_is_kept(study):
        with Stages(quiet=quiet, verbose=verbose) as stages:
            run(study, stages)
        results = studies.report(out)
    if not quiet:
        _show(results)


def report_again(directory: Path) -> None:
    """Write and show the report of what a run has measured."""
    with asking():
        results = studies.report(directory)
    _show(results)


def _with_workers(study: Study) -> Study:
    """Give a study a worker for each core, up to a few, where they pay and none are asked for."""
    done, total = done_of_all(study)
    few, elsewhere = total - done < _WORTH_WORKERS, study.settings.run.engine != "local"
    asked = "workers" in study.settings.given()
    # Processes would share one GPU, and its memory would have to hold as many models.
    if asked or elsewhere or few or torch.cuda.is_available():
        return study
    # With two threads, one worker is slower than two workers with one each.
    workers = min(torch.get_num_threads(), _MOST_WORKERS)
    return replace(study, settings=study.settings.replace(workers=workers))


@contextmanager
def _telling_what_is_kept(study: Study) -> Iterator[None]:
    """Where a run ends early, say what it has; a request to terminate ends it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        tell("Interrupted", _kept(study))
        raise typer.Exit(1) from None
    except Exception:
        # The error itself has the last word.
        with suppress(Exception):
            tell("Stopped", _kept(study))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(study: Study) -> str:
    done, total = done_of_all(study)
    return (
        f"{done} of {total} cells are measured and kept in {study.directory}; the same command "
        "goes on."
    )


def _show(results: studies.Results) -> None:
    for table in comparison_tables(results.measurements, results.adapters):
        show(rich_table(device_text(table)))
    show(LEGEND)
    show(rich_table(adapter_text(results.adapters)))
    for sentence in findings(results.measurements, results.adapters):
        show(f"- {sentence}")
    for file in results.files:
        show(f"wrote {file}")
