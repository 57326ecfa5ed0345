"""The commands that train: whole studies, single adapters and tunings, executed and shown."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch
import typer
from peft import PeftModel

from analog_grasp.cli.console import RequestError, Stages, print_line, request, show
from analog_grasp.report.summary import coverage, findings
from analog_grasp.report.tables import (
    LEGEND,
    adapter_text,
    comparison_tables,
    device_text,
    rich_table,
    scores_line,
)
from analog_grasp.report.treatments import treatment_text
from analog_grasp.study import api as studies
from analog_grasp.study.checks import check_empty
from analog_grasp.study.config import StudyConfig, first_change, flat
from analog_grasp.study.progress import log_line, own_warnings
from analog_grasp.study.provenance import LOG_FILE
from analog_grasp.study.runner import measured_cells, run
from analog_grasp.study.study import Study, prepare
from analog_grasp.study.trained_adapters import (
    learned_parameters,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.utils.io import read_toml, write_atomically

if TYPE_CHECKING:
    from analog_grasp.tuning.api import Tuned
    from analog_grasp.tuning.tuner import Tuning

# Cells from which on it pays to start workers; and the most, since each has a copy of the model.
_WORTH_WORKERS = 16
_MOST_WORKERS = 4
_SETTINGS_FILE = "train.toml"


def run_study(config: StudyConfig, out: Path, *, quiet: bool, verbose: bool) -> None:
    """Run a study, or resume it; report and show what it has measured.

    Args:
        config: The settings, checked by `analog_grasp.study.checks`.
        out: The run's folder.
        quiet: Show errors only.
        verbose: Show each figure.
    """
    notes: list[str] = []
    try:
        with request(), own_warnings(notes.append):
            study = _with_workers(prepare(config, out))
        with own_warnings(notes.append), _reported_end(study):
            with Stages(quiet=quiet, verbose=verbose) as stages:
                run(study, stages)
            results = studies.report(out)
        if not quiet:
            _show_study(results)
    finally:
        for text in dict.fromkeys(notes):
            with suppress(OSError):
                log_line(out / LOG_FILE, f"note: {text}")
            if not quiet:
                print_line("note", text)


def report_again(directory: Path, out: Path | None) -> None:
    """Write and show the report of a run, in the run's folder or in another one."""
    with request():
        results = studies.report(directory, out)
    _show_study(results)


def train_one(config: StudyConfig, adapter: str, out: Path, save_steps: int | None) -> None:
    """Train an adapter, or resume from its last checkpoint; save it and show its score.

    Args:
        config: The settings.
        adapter: Its name.
        out: Its folder, which must be new or empty.
        save_steps: Steps between checkpoints; an epoch where None.
    """
    first = os.environ.get("RANK", "0") == "0"
    checkpoints = out.with_name(f".{out.name}.training")
    with request():
        data = config.task.load()
        adapted = new_adapter(config, data, adapter)
        # Created before the training, which would be lost if it failed afterwards.
        out.mkdir(parents=True, exist_ok=True)
        checkpoints.mkdir(exist_ok=True)
    with _locked(checkpoints, out) if first else nullcontext():
        with request():
            check_empty(out)
            _check_checkpoints(checkpoints, config, first)
        with Stages(quiet=not first) as stages:
            train_adapter(
                adapted, config, data, f"training {adapter}", stages, checkpoints, save_steps
            )
        if not first:
            return
        _save(adapted, out)
    shutil.rmtree(checkpoints)
    own, head = learned_parameters(adapted)
    show(f"{adapter}: {own:,} adapter parameters, {head:,} of the task head")
    show(scores_line("digital", data.scores(adapted)))
    show(f"wrote {out}")


@contextmanager
def _locked(checkpoints: Path, out: Path) -> Iterator[None]:
    """Keep other processes from training into the same folder; the end of this one frees it."""
    with (checkpoints / "lock").open("a") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RequestError(
                f"Another process is training into {out}: name another folder, or wait for its end."
            ) from None
        yield


def tune_adapter(config: StudyConfig, out: Path, trials: int, **others: Any) -> None:
    """Run a tuning, or resume it, and show the result.

    Args:
        config: The settings that are not searched.
        out: The output folder.
        trials: Number of trials in total.
        others: Further arguments of `analog_grasp.tuning.tuner.prepare_tuning`.
    """
    from analog_grasp.tuning.api import require_optuna, run_tuning

    with request():
        require_optuna()
        from analog_grasp.tuning.tuner import prepare_tuning

        tuning = prepare_tuning(config, out, **others)
    with _interruptible(tuning, trials):
        with Stages() as stages:
            tuned = run_tuning(tuning, trials, stages)
        _show_tuning(tuned)


def _with_workers(study: Study) -> Study:
    """Give a large study one worker per core, up to a few, unless the number is given."""
    done, total = measured_cells(study)
    few, elsewhere = total - done < _WORTH_WORKERS, study.config.run.engine != "local"
    given = "workers" in study.config.given()
    # Processes would share one GPU, and its memory would have to hold as many models.
    if given or elsewhere or few or torch.cuda.is_available():
        return study
    # With two threads, one worker is slower than two workers with one each.
    workers = min(torch.get_num_threads(), _MOST_WORKERS)
    return replace(study, config=study.config.replace(workers=workers))


@contextmanager
def _reported_end(study: Study) -> Iterator[None]:
    """Report what is kept if a run ends early; SIGTERM ends it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print_line("Interrupted", _kept(study))
        raise typer.Exit(1) from None
    except Exception:
        # The error itself is printed last.
        with suppress(Exception):
            print_line("Stopped", _kept(study))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(study: Study) -> str:
    done, total = measured_cells(study)
    return (
        f"{done} of {total} cells are measured and kept in {study.directory}; the same command "
        "resumes the run."
    )


@contextmanager
def _interruptible(tuning: "Tuning", trials: int) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print_line(
            "Interrupted",
            f"{len(tuning.trials())} of {trials} trials are finished and kept in "
            f"{tuning.directory}; the same command resumes the tuning.",
        )
        raise typer.Exit(1) from None


def _check_checkpoints(folder: Path, config: StudyConfig, first: bool) -> None:
    """Raise if the checkpoints are of a training with other settings; else record the settings."""
    asked = flat(config)
    if (folder / _SETTINGS_FILE).is_file():
        there = read_toml(folder / _SETTINGS_FILE, f"The file {folder / _SETTINGS_FILE}")
        if name := first_change(there, asked):
            raise RequestError(
                f"The training in {folder} was begun with {name} {there.get(name)!r} and not "
                f"{asked.get(name)!r}: give the same settings to resume it, or remove that folder "
                "to begin again."
            )
    elif first:
        write_atomically(folder / _SETTINGS_FILE, tomli_w.dumps(asked).encode())


def _save(adapted: PeftModel, out: Path) -> None:
    """Write the adapter completely or not at all, as a half written folder would not be empty."""
    part = out.with_name(f".{out.name}.part")
    try:
        save_adapter(adapted, part)
        out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _show_study(results: studies.Results) -> None:
    for table in comparison_tables(results.measurements, results.adapters):
        show(rich_table(device_text(table)))
    show(LEGEND)
    show(rich_table(adapter_text(results.adapters)))
    if results.treatments:
        show(rich_table(treatment_text(results.treatments)))
    sentences = findings(results.measurements, results.adapters)
    _show_end([*sentences, *coverage(results.layers)], results.files)


def _show_tuning(tuned: "Tuned") -> None:
    from analog_grasp.report.tuning import (
        VALIDATION_TITLE,
        importance_table,
        trial_table,
        tuning_findings,
    )

    show(rich_table(trial_table(tuned.trials)))
    if tuned.trials.importance:
        show(rich_table(importance_table(tuned.trials)))
    for text in tuning_findings(tuned.trials):
        show(f"- {text}")
    show(f"{VALIDATION_TITLE}:")
    measured, adapters = tuned.results.measurements, tuned.results.adapters
    for table in comparison_tables(measured, adapters):
        show(rich_table(device_text(table)))
    _show_end(findings(measured, adapters), tuned.files)


def _show_end(sentences: Sequence[str], files: Sequence[Path]) -> None:
    for text in sentences:
        show(f"- {text}")
    for file in files:
        show(f"wrote {file}")
