"""Studies in Python: `compare`, `drift_sweep` and `report`, with their `Results`."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.costs.estimate import read_costs
from analog_grasp.study.config import SETTINGS, WORK, flat, resolve, takes_settings
from analog_grasp.study.progress import Progress, silent
from analog_grasp.study.provenance import RUN_FILE, STORE_FILE, read_run, with_card_files
from analog_grasp.study.records import (
    LAYERS_FILE,
    AdapterRecord,
    LayerRecord,
    Measurement,
    TreatmentCost,
    as_table,
    is_distilled,
    read_layers,
    treatment_costs,
)
from analog_grasp.study.runner import COSTS_FILE, FailedCellsError, run
from analog_grasp.study.store import Store
from analog_grasp.study.study import Study, prepare
from analog_grasp.study.trained_adapters import adapter_names

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Results:
    """Measurements of a study, and the files of its report.

    Attributes:
        directory: The run's folder.
        measurements: One for each cell and metric.
        adapters: One record per training of each adapter, with its size and digital scores.
        layers: Tiles and weight errors of the layers, on one chip per device.
        files: results.csv, results.parquet, summary.md, the figures and report.html.
        treatments: The mean costs of recalibrated and scheduled adapters.
    """

    directory: Path
    measurements: list[Measurement]
    adapters: list[AdapterRecord]
    layers: list[LayerRecord]
    files: list[Path]
    treatments: list[TreatmentCost] = field(default_factory=list)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the measurements as a table with the columns of results.csv.

        Example:
            >>> where = ("reviews", "accuracy", "grasp", 0, "digital", "pcm", 0.0, 0, 7)
            >>> table = Results(Path("run"), [Measurement(*where, 0.8)], [], [], []).to_pandas()
            >>> float(table.groupby("device")["value"].mean()["pcm"])
            0.8
        """
        return as_table(self.measurements)


@takes_settings()
def compare(
    out: str | Path = "runs/compare",
    *,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Results:
    """Train adapters, measure each on simulated devices over drift time, and write a report.

    The same call resumes an interrupted run. A call with more devices, times, repeats or trainings
    adds to a run, without measuring again what is measured; devices and later times only where
    adapters were not distilled on the devices and ages of the run (``then="devices"``).

    Args:
        out: The run's folder; a new one, or that of the same run.
        config: A TOML file of settings; those given here take precedence.
        progress: Called for each stage and step.
        settings: The settings of `analog_grasp.study.config.SETTINGS`, as in a config file; the
            signature lists them. Devices may also be cards (`DeviceCard`), and devices at a time
            ``card.at("1d")``; changed cards are written to ``out``.

    Returns:
        The measurements; results.csv, summary.md, the figures and report.html are in ``out``.

    Raises:
        ValueError: A name is unknown, a setting does not fit, or ``out`` holds another run; or a
            cell cannot be scored, after all others are measured and reported.
        FileNotFoundError: The files of the model, the task or an adapter are missing.
        OSError: The disk is full or ``out`` cannot be written; measured cells are kept.

    Example:
        ``compare("runs/mine", devices=["pcm-hermes-2"], times=["0s", "1y"], repeats=5)``
    """
    asked = with_card_files(settings, Path(out))
    resolved = resolve(asked, Path(config) if config else None)
    return run_and_report(prepare(resolved, Path(out)), progress)


def run_and_report(study: Study, progress: Progress) -> Results:
    """Run a study and write its report, also of the other cells where some cannot be scored."""
    try:
        run(study, progress)
    except FailedCellsError:
        # Without a single measurement there is nothing to report.
        with suppress(ValueError):
            report(study.directory)
        raise
    return report(study.directory)


@takes_settings(without=("adapters", "trainings", "trainings_limit"))
def drift_sweep(
    adapters: str | Path | Sequence[str | Path], out: str | Path = "runs/drift", **settings: Any
) -> Results:
    """Measure saved adapters on simulated devices over drift time; nothing is trained.

    Args:
        adapters: The folders of the adapters, or one folder.
        out: The run's folder.
        settings: As for `compare`.

    Returns:
        As `compare`.

    Raises:
        ValueError: As `compare`.
        FileNotFoundError: A folder holds no adapter, or as `compare`.

    Example:
        ``drift_sweep(["runs/compare/adapters/grasp"], times=["0s", "1h", "10y"])``
    """
    if isinstance(adapters, str | Path):
        adapters = [adapters]
    # Absolute, so that none is taken for the adapter of that name.
    folders = tuple(str(Path(folder).resolve()) for folder in adapters)
    return compare(out, adapters=folders, **settings)


def report(directory: str | Path, out: str | Path | None = None) -> Results:
    """Write the report of a finished or interrupted run again, from its measurements.

    Args:
        directory: The run's folder, which may be read-only if the report is written elsewhere.
        out: The folder of the report; the run's own if None.

    Returns:
        The measurements of the run.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: Nothing has been measured yet, a file of the run is damaged, or `out` holds
            another run.
        OSError: The run's folder is read-only and `out` is None, or a file cannot be written.
    """
    # Loaded late: it imports matplotlib.
    from analog_grasp.report.page import write_report

    directory = Path(directory)
    config, records = read_run(directory)
    if not (directory / STORE_FILE).is_file():
        raise FileNotFoundError(
            f"The folder {directory} holds no measurements: it should hold {STORE_FILE} beside its "
            "run.toml."
        )
    readonly = not os.access(directory, os.W_OK)
    if readonly and out is None:
        raise OSError(
            f"The run's folder {directory} is read-only: name another one for the report (--out)."
        )
    out = directory if out is None else Path(out)
    if (out / RUN_FILE).is_file() and not out.samefile(directory):
        raise ValueError(f"The output {out} holds another run: name another folder for the report.")
    with Store(directory / STORE_FILE, readonly=readonly) as store:
        measurements = store.measurements()
        # As in the settings: processes that share a run add them in any order.
        order = list(adapter_names(config.model.adapters))
        # The link that a saved adapter was given by may lead to another folder today.
        places = {name: place for place, name in enumerate(order)}
        adapters = sorted(
            store.adapters(), key=lambda r: (places.get(r.adapter, len(places)), r.training)
        )
    # Settings without influence on the figures are not shown with them.
    trained = any(record.train_seconds for record in adapters)
    training = (name for name, setting in SETTINGS.items() if setting.section == "training")
    hidden = {*WORK, *(() if trained else training)}
    layers = read_layers(directory / LAYERS_FILE)
    treatments = treatment_costs(
        directory,
        [(record.adapter, record.training) for record in adapters],
        dict.fromkeys(cell.device for cell in measurements),
    )
    stage = records.pop("second_stage", [])
    settings = flat(config, hidden) | records
    if "then" in settings and stage:
        settings["then"] = stage
    files = write_report(
        out,
        question=_question(adapters, config.task.name, stage),
        settings=settings,
        measurements=measurements,
        adapters=adapters,
        layers=layers,
        costs=read_costs(directory / COSTS_FILE),
        treatments=treatments,
    )
    return Results(directory, measurements, adapters, layers, files, treatments)


def _question(adapters: Sequence[AdapterRecord], task: str, stage: Sequence[str]) -> str:
    titles = [ADAPTERS[r.adapter].title if r.adapter in ADAPTERS else r.adapter for r in adapters]
    names = " and ".join(dict.fromkeys(titles))
    all_distilled = stage and all(map(is_distilled, adapters))
    distilled = ", distilled on simulated chips," if all_distilled else ""
    metric = next((name for record in adapters for name in record.digital), "score")
    return f"{metric[0].upper()}{metric[1:]} of {names}{distilled} on {task} over drift time"
