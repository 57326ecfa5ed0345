"""The work of the commands: studies, trainings, tunings and deployments, and what they show."""

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
import torch
import typer
from filelock import FileLock, Timeout
from peft import PeftModel

from analog_grasp.adapters.frozen import fold
from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.cli.console import RequestError, print_line, request, show, stages
from analog_grasp.costs.estimate import cost_rows
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.crossbar.export import check_exportable, export_chip
from analog_grasp.crossbar.write_tolerance import (
    learned_tolerances,
    mean_pulses,
    set_write_tolerances,
    write_tolerances,
)
from analog_grasp.report.findings import coverage, findings
from analog_grasp.report.tables import (
    LEGEND,
    Comparison,
    TextTable,
    adapter_text,
    device_text,
    metric_title,
    rich_table,
    score_text,
    scores_line,
    treatment_text,
)
from analog_grasp.study import api as studies
from analog_grasp.study.checks import check_empty
from analog_grasp.study.config import ADAPTER_FILES, MODEL_FILES, StudyConfig, flat
from analog_grasp.study.progress import log_line, own_warnings
from analog_grasp.study.provenance import LOG_FILE, check_same, read_run, training_hashes
from analog_grasp.study.runner import measured_cells, sequence_costs
from analog_grasp.study.study import Study, prepare
from analog_grasp.study.trained_adapters import (
    learned_parameters,
    load_adapter,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.tasks import Task
from analog_grasp.utils.io import read_toml, write_atomically
from analog_grasp.utils.metrics import lower_is_better
from analog_grasp.utils.time import format_time, parse_time

if TYPE_CHECKING:
    from analog_grasp.tuning.api import Tuned

# Cells from which on it pays to start workers; and the most, since each has a copy of the model.
_WORTH_WORKERS = 16
_MOST_WORKERS = 4


def run_study(config: StudyConfig, out: Path, *, quiet: bool, verbose: bool) -> None:
    """Run a study, or resume it; report and show what it has measured."""
    notes: list[str] = []
    study = None
    try:
        with own_warnings(notes.append):
            with request():
                study = _with_workers(prepare(config, out))
            shown = stages(quiet=quiet, verbose=verbose)
            with _reported_end(partial(_kept_cells, study)), shown as progress:
                results = studies.run_and_report(study, progress)
        if not quiet:
            _show_study(results)
    finally:
        for text in notes:
            # A request that is rejected leaves the folder as it was.
            with suppress(OSError):
                if study is not None:
                    log_line(out / LOG_FILE, f"note: {text}")
            if not quiet:
                print_line("note", text)


def report_again(directory: Path, out: Path | None) -> None:
    """Write and show the report of a run, in the run's folder or in another one."""
    with request():
        results = studies.report(directory, out)
    _show_study(results)


def train_one(config: StudyConfig, adapter: str, out: Path, save_steps: int | None) -> None:
    """Train an adapter, or resume from its last checkpoint; save it and show its score."""
    first = os.environ.get("RANK", "0") == "0"
    checkpoints = out.with_name(f".{out.name}.training")
    with request():
        data = config.task.load()
        adapted = new_adapter(config, data, adapter)
        # Created before the training, which would be lost if it failed afterwards.
        out.mkdir(parents=True, exist_ok=True)
        checkpoints.mkdir(exist_ok=True)
    with ExitStack() as held:
        with request():
            if first:
                _lock(held, checkpoints, out)
            check_empty(out)
            _check_checkpoints(checkpoints, flat(config) | training_hashes(config, data), first)
        kept = f"checkpoints are kept in {checkpoints}; the same command resumes from the last."
        with _reported_end(lambda: kept), stages(quiet=not first) as progress:
            train_adapter(
                adapted, config, data, f"training {adapter}", progress, checkpoints, save_steps
            )
        if not first:
            return
        _save(adapted, out)
    shutil.rmtree(checkpoints)
    own, head = learned_parameters(adapted)
    show(f"{adapter}: {own:,} adapter parameters, {head:,} of the task head")
    show(scores_line("digital", data.scores(adapted)))
    show(f"wrote {out}")


def _lock(held: ExitStack, checkpoints: Path, out: Path) -> None:
    """Keep other processes from training into the same folder; the end of this one frees it."""
    try:
        held.enter_context(FileLock(checkpoints / "lock", blocking=False))
    except Timeout:
        raise RequestError(
            f"Another process is training into {out}: name another folder, or wait for its end."
        ) from None


def tune_adapter(config: StudyConfig, out: Path, trials: int, **others: Any) -> None:
    """Run a tuning, or resume it, and show the result; `others` are for `prepare_tuning`."""
    from analog_grasp.tuning.api import run_tuning

    with request():
        from analog_grasp.tuning.tuner import prepare_tuning

        tuning = prepare_tuning(config, out, **others)

    def kept() -> str:
        return (
            f"{len(tuning.trials())} of {trials} trials are finished and kept in {out}; the same "
            "command resumes the tuning."
        )

    with _reported_end(kept):
        with stages() as progress:
            tuned = run_tuning(tuning, trials, progress)
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
def _reported_end(kept: Callable[[], str]) -> Iterator[None]:
    """Report what is kept if the work ends early; SIGTERM ends it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print_line("Interrupted", kept())
        raise typer.Exit(1) from None
    except Exception:
        # The error itself is printed last.
        with suppress(Exception):
            print_line("Stopped", kept())
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept_cells(study: Study) -> str:
    done, total = measured_cells(study)
    return (
        f"{done} of {total} cells are measured and kept in {study.directory}; the same command "
        "resumes the run."
    )


def _check_checkpoints(folder: Path, asked: Mapping[str, Any], first: bool) -> None:
    """Raise if the checkpoints are of a training with other settings; else record the settings."""
    file = folder / "train.toml"
    if file.is_file():
        check_same(f"The folder {folder}", "training", read_toml(file, f"The file {file}"), asked)
    elif first:
        write_atomically(file, tomli_w.dumps(asked).encode())


def _save(adapted: PeftModel, out: Path) -> None:
    """Write the adapter, its configuration last: a folder without it holds no adapter.

    The folder stays, as it can be a link or a mount point.
    """
    part = out.with_name(f".{out.name}.part")
    configurations = (ADAPTER_FILES[0], MODEL_FILES[0])
    try:
        save_adapter(adapted, part)
        for file in sorted(part.iterdir(), key=lambda file: file.name in configurations):
            shutil.move(file, out / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _show_study(results: studies.Results) -> None:
    comparison = Comparison(results.measurements, results.adapters)
    _show_tables(*map(device_text, comparison.tables))
    show(LEGEND)
    _show_tables(adapter_text(results.adapters))
    if results.treatments:
        _show_tables(treatment_text(results.treatments))
    settings = flat(read_run(results.directory)[0])
    _show_end([*findings(comparison, settings), *coverage(results.layers)], results.files)


def _show_tuning(tuned: "Tuned") -> None:
    from analog_grasp.report.tuning import (
        VALIDATION_TITLE,
        importance_table,
        trial_table,
        tuning_findings,
    )

    _show_tables(trial_table(tuned.trials))
    if (importance := importance_table(tuned.trials)).rows:
        _show_tables(importance)
    _show_end(tuning_findings(tuned.trials))
    show(f"{VALIDATION_TITLE}:")
    comparison = Comparison(tuned.results.measurements, tuned.results.adapters)
    _show_tables(*map(device_text, comparison.tables))
    _show_end(findings(comparison), tuned.files)


def _show_tables(*tables: TextTable) -> None:
    for table in tables:
        show(rich_table(table))


def _show_end(sentences: Sequence[str], files: Sequence[Path] = ()) -> None:
    for text in sentences:
        show(f"- {text}")
    for file in files:
        show(f"wrote {file}")


def deploy_on(
    folder: Path,
    config: StudyConfig,
    *,
    sensitivity: Literal["analog", "digital"] | None,
    write_tolerance: float | Literal["learned"] | None,
    export: Path | None,
    out: Path,
) -> None:
    """Deploy a saved adapter on the first device and at the first time of the settings.

    With a sensitivity, each layer is also scored alone on the chip, or alone off the chip.
    """
    with request():
        card, task = config.hardware.card(config.hardware.devices[0]), config.task.load()
        adapted = load_adapter(folder, config.model.name, task, config.model.trust_remote_code)
        placement = config.hardware.placement
        check_placement(kind_of(adapted) or "grasp", placement)
        changed = config.hardware.changes().keys() & {"rescale", "clip", "layers"}
        if export is not None and changed:
            raise ValueError(
                f"The setting {min(changed)} has no effect on an exported chip, whose weights are "
                "mapped as they are: omit it, or --export."
            )
        if export is not None:
            check_exportable(card)
        deployment = deploy(adapted, card, **config.hardware.deploy_arguments())
        # Before the tolerances, as a rescaling changes the targets that learned ones depend on.
        config.hardware.calibrate_inputs(deployment, task)
        if write_tolerance is not None:
            tolerances = (
                learned_tolerances(deployment) if write_tolerance == "learned" else write_tolerance
            )
            set_write_tolerances(deployment, tolerances)
        out.mkdir(parents=True, exist_ok=True)
    outcome, report = _measure(adapted, deployment, config, task, sensitivity)
    pulses = mean_pulses(deployment)
    outcome |= {"write_tolerance": write_tolerance, "pulses_per_device": pulses}
    try:
        costs = sequence_costs(deployment, config.run)
    except ValueError as error:
        # They are shown by default, also of models that take more than the tokens of one sequence.
        costs = []
        warnings.warn(f"The costs of this model cannot be estimated: {error}", stacklevel=2)
    rows = [row._asdict() for found in costs for row in cost_rows(found, "", card.name)]
    _show_deployment(outcome, report)
    if pulses is not None:
        show(f"write tolerance {write_tolerance}: {pulses:.2f} pulses per device")
    for found in costs:
        show(str(found))
    target = out / "deployment.json"
    content = {"adapter": str(folder), **outcome, "costs": rows}
    write_atomically(target, json.dumps(content, indent=1).encode())
    show(f"wrote {target}")
    if export is not None:
        exported = fold(adapted) if placement == "folded" else adapted
        export_chip(exported, card, export, write_tolerances=write_tolerances(deployment))
        show(f"wrote {export}")


def _measure(
    adapted: PeftModel,
    deployment: Deployment,
    config: StudyConfig,
    task: Task,
    sensitivity: Literal["analog", "digital"] | None,
) -> tuple[dict[str, Any], str]:
    """Return the content of deployment.json, and a sentence on what is on tiles."""
    programmed = deployment.program(config.run.seed).report()
    seconds = parse_time(config.run.times[0])
    deployment.drift_to(seconds)
    scores = task.scores(deployment.model)
    # After the evaluation, so that layers on tiles that it has not used are known.
    report = deployment.report()
    by_layer = None
    if sensitivity is not None:
        by_layer = {
            "alone": sensitivity,
            "metric": task.metrics[0],
            "scores": deployment.layer_sensitivity(task.evaluate, sensitivity),
        }
    card = deployment.card
    outcome = {
        "device": card.name,
        "placement": config.hardware.placement,
        "seed": config.run.seed,
        "time_s": seconds,
        "settings": config.hardware.changes(),
        "digital": task.scores(adapted),
        "scores": scores,
        "tile": (card.tile.rows, card.tile.columns),
        "share_on_tiles": report.share_on_tiles,
        "digital_modules": [asdict(module) for module in report.digital],
        "layers": [
            {
                "name": layer.name,
                "tiles": layer.tiles,
                "cells": layer.cells,
                "use": layer.use,
                "programmed_error": first.weight_error,
                "weight_error": layer.weight_error,
            }
            for first, layer in zip(programmed, report, strict=True)
        ],
        "sensitivity": by_layer,
    }
    return outcome, str(report)


def _show_deployment(outcome: Mapping[str, Any], report: str) -> None:
    at, layers = format_time(outcome["time_s"]), outcome["layers"]
    show(scores_line("digital", outcome["digital"]))
    where = f"on {outcome['device']} at {at}, chip {outcome['seed']}"
    show(scores_line(where, outcome["scores"]))
    tiles, cells = (sum(layer[key] for layer in layers) for key in ("tiles", "cells"))
    rows, columns = outcome["tile"]
    show(
        f"tiles: {tiles} of {rows} x {columns} weights, "
        f"{cells / max(tiles * rows * columns, 1):.1%} in use; {cells:,} weights"
    )
    show(report)
    _show_tables(_layer_table(layers, at))
    if outcome["sensitivity"]:
        _show_tables(_sensitivity_table(outcome["sensitivity"]))


def _layer_table(layers: Sequence[Mapping[str, Any]], at: str) -> TextTable:
    return TextTable(
        "Weight error: root mean square of (weight now - target), % of the column maximum",
        ("layer", "tiles", "weights", "use", "error at 0s", f"error at {at}"),
        [
            (
                layer["name"], str(layer["tiles"]), f"{layer['cells']:,}", f"{layer['use']:.1%}",
                f"{layer['programmed_error']:.2%}", f"{layer['weight_error']:.2%}",
            )
            for layer in layers
        ],
    )  # fmt: skip


def _sensitivity_table(sensitivity: Mapping[str, Any]) -> TextTable:
    """Return the layers in the order of the score that each one costs."""
    is_analog, metric = sensitivity["alone"] == "analog", sensitivity["metric"]
    scores, reverse = sensitivity["scores"].items(), is_analog == lower_is_better(metric)
    return TextTable(
        f"Each layer alone {'on' if is_analog else 'off'} the chip",
        ("layer", metric_title(metric)),
        [
            (name, score_text(score, metric))
            for name, score in sorted(scores, key=lambda pair: pair[1], reverse=reverse)
        ],
    )


def show_learned(folders: Sequence[Path], out: Path | None) -> None:
    """Show the parameters that adapters have learned; write them too, if a folder is given."""
    from analog_grasp.report.inspection import (
        LEGEND,
        inspect_adapters,
        inspection_findings,
        inspection_tables,
        write_inspection,
    )

    with request():
        found = inspect_adapters(folders)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    _show_tables(*inspection_tables(found))
    show(LEGEND)
    _show_end(inspection_findings(found), [] if out is None else write_inspection(found, out))
