"""The commands on a whole study: compare, drift and report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from analog_grasp import studies
from analog_grasp.cli import options
from analog_grasp.cli.console import Stages, show, tell
from analog_grasp.cli.errors import asking
from analog_grasp.experiments import Study, prepare, resolve, run
from analog_grasp.experiments.folder import STORE_FILE
from analog_grasp.experiments.grid import cell_count
from analog_grasp.experiments.store import Store
from analog_grasp.report import adapter_text, comparison_tables, device_text, findings, rich_table
from analog_grasp.report.tables import LEGEND


def compare(
    context: typer.Context,
    model: options.Model = None,
    task: options.Task = None,
    data_dir: options.DataDir = None,
    adapters: options.Adapters = None,
    devices: options.Devices = None,
    times: options.Times = None,
    repeats: options.Repeats = None,
    placement: options.Placement = None,
    seed: options.Seed = None,
    engine: options.Engine = None,
    out: options.Out = Path("runs/compare"),
    config: options.Config = None,
    debug: options.Debug = False,
    groups: options.Groups = None,
    target_modules: options.TargetModules = None,
    injection: options.Injection = None,
    epochs: options.Epochs = None,
    learning_rate: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    noise_weight: options.NoiseWeight = None,
    noise_target: options.NoiseTarget = None,
    sampling: options.Sampling = None,
) -> None:
    """Compare adapters over devices and drift times, from training to report.

    Trains each adapter, measures it on simulated chips and writes tables, figures and a page.
    An interrupted run goes on where it stopped when the same command is given again.
    """
    _carry_out(options.given(context), out, config)


def drift(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER_FOLDER...", help="Folders of saved adapters."),
    ],
    model: options.AdapterModel = None,
    task: options.Task = None,
    data_dir: options.DataDir = None,
    devices: options.Devices = None,
    times: options.Times = None,
    repeats: options.Repeats = None,
    placement: options.Placement = None,
    seed: options.Seed = None,
    engine: options.Engine = None,
    out: options.Out = Path("runs/drift"),
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Measure saved adapters over devices and drift times; nothing is trained.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    saved = {"adapters": studies.saved_adapters(folders)}
    _carry_out(options.given(context) | saved, out, config)


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


def _carry_out(settings: dict[str, Any], out: Path, config: Path | None) -> None:
    with asking():
        study = prepare(resolve(settings, config), out)
    with _interruptible(study):
        with Stages() as stages:
            run(study, stages)
        _show(studies.report(out))


@contextmanager
def _interruptible(study: Study) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        with Store(study.directory / STORE_FILE) as store:
            # A cell is measured by all metrics of the task at once.
            done = {cell.key._replace(metric="") for cell in store.measurements()}
        tell(
            "Interrupted",
            f"{len(done)} of {cell_count(study.settings)} cells are measured and kept in "
            f"{study.directory}; the same command goes on.",
        )
        raise typer.Exit(1) from None


def _show(results: studies.Results) -> None:
    for table in comparison_tables(results.measurements, results.adapters):
        show(rich_table(device_text(table)))
    show(LEGEND)
    show(rich_table(adapter_text(results.adapters)))
    for sentence in findings(results.measurements, results.adapters):
        show(f"- {sentence}")
    for file in results.files:
        show(f"wrote {file}")
