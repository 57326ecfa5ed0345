"""The commands on a whole study: compare, drift and report."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from analog_grasp import studies
from analog_grasp.cli import options
from analog_grasp.cli.console import Stages, noting, show, tell
from analog_grasp.cli.errors import RequestError, asking
from analog_grasp.cli.options import CHIPS, DATA, HARDWARE, RUN, TRAINING, takes
from analog_grasp.experiments import Study, done_of_all, prepare, resolve, run
from analog_grasp.experiments.folder import LOG_FILE
from analog_grasp.experiments.progress import log_line
from analog_grasp.report import adapter_text, comparison_tables, device_text, findings, rich_table
from analog_grasp.report.tables import LEGEND


@takes(DATA, CHIPS, RUN, HARDWARE, TRAINING)
def compare(
    context: typer.Context,
    model: options.Model = None,
    adapters: options.Adapters = None,
    out: options.Out = Path("runs/compare"),
    config: options.Config = None,
    debug: options.Debug = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare adapters over devices and drift times, from training to report.

    Trains each adapter, measures it on simulated chips and writes tables, figures and a page.
    An interrupted run goes on where it stopped when the same command is given again.
    """
    _carry_out(options.given(context), out, config, quiet=quiet, verbose=verbose)


@takes(DATA, CHIPS, RUN, HARDWARE)
def drift(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER_FOLDER...", help="Folders of saved adapters."),
    ],
    model: options.AdapterModel = None,
    out: options.Out = Path("runs/drift"),
    config: options.Config = None,
    debug: options.Debug = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure saved adapters over devices and drift times; nothing is trained.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    saved = {"adapters": studies.saved_adapters(folders)}
    _carry_out(options.given(context) | saved, out, config, quiet=quiet, verbose=verbose)


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a finished or interrupted run.")
    ],
    debug: options.Debug = False,
) -> None:
    """Write tables, figures and page again from what a run has measured."""
    with asking():
        results = studies.report(directory)
    _show(results)


def _carry_out(
    settings: dict[str, Any], out: Path, config: Path | None, *, quiet: bool, verbose: bool
) -> None:
    notes: list[str] = []
    with asking(), noting(notes.append):
        if quiet and verbose:
            raise RequestError("Both --quiet and --verbose are given: leave one out.")
        study = prepare(resolve(settings, config), out)

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
