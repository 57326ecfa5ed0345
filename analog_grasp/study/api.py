"""The whole way of a study, from settings to a report: what the command line does, in Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.report import write_report
from analog_grasp.report.noise_levels import accuracy_vs_noise
from analog_grasp.study.config import SETTINGS, WORK, flat, resolve
from analog_grasp.study.folder import STORE_FILE, read
from analog_grasp.study.layers import LAYERS_FILE, read_layers
from analog_grasp.study.progress import Progress, silent
from analog_grasp.study.records import AdapterRecord, Measurement
from analog_grasp.study.runner import adapter_names, prepare, run
from analog_grasp.study.store import Store


@dataclass(frozen=True)
class Results:
    """What a study has measured, and where its files lie.

    Attributes:
        directory: The run's folder.
        measurements: One for each cell and metric.
        adapters: The adapters, with their sizes and digital scores.
        files: results.csv, results.parquet, summary.md, the figure three times and report.html.
    """

    directory: Path
    measurements: list[Measurement]
    adapters: list[AdapterRecord]
    files: list[Path]


def compare(
    out: str | Path = "runs/compare",
    *,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Results:
    """Train adapters, measure each on simulated devices over drift time, and write a report.

    A run that was interrupted goes on where it stopped when it is asked for again.

    Args:
        out: The run's folder; a new one, or that of the same run.
        config: A TOML file of settings; those given here win.
        progress: Told of each stage and step.
        settings: See `analog_grasp.study.config.StudyConfig`: ``model``, ``task``, ``adapters``,
            ``devices``, ``times``, ``repeats``, ``placement``, ``groups``, ``seed`` and more.

    Returns:
        The measurements; results.csv, summary.md, the figure and report.html lie in ``out``.

    Raises:
        ValueError: A name is unknown, a setting does not fit, or ``out`` holds another run.
        FileNotFoundError: The files of the model, the task or an adapter are not there.
        OSError: The disk is full or ``out`` cannot be written; what was measured is kept.

    Example:
        ``compare("runs/mine", devices=["pcm-hermes-2"], times=["0s", "1y"], repeats=5)``
    """
    asked = resolve(settings, Path(config) if config else None)
    run(prepare(asked, Path(out)), progress)
    return report(out)


def drift_sweep(
    adapters: Sequence[str | Path], out: str | Path = "runs/drift", **settings: Any
) -> Results:
    """Measure saved adapters on simulated devices over drift time; nothing is trained.

    Args:
        adapters: The folders of the adapters.
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
    return compare(out, adapters=saved_adapters(adapters), **settings)


def saved_adapters(folders: Sequence[str | Path]) -> tuple[str, ...]:
    """The folders of saved adapters as a study's settings name them.

    Absolute, so that none is taken for the kind of adapter that has its name.
    """
    return tuple(str(Path(folder).resolve()) for folder in folders)


def report(directory: str | Path) -> Results:
    """Write the report of a finished or interrupted run again, from what it has measured.

    Args:
        directory: The run's folder.

    Returns:
        What the run has measured.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: Nothing has been measured yet, or a file of the run is damaged.
    """
    directory = Path(directory)
    settings, records = read(directory)
    with Store(directory / STORE_FILE) as store:
        measurements = store.measurements()
        # As the settings have them: processes that share a run add them in any order.
        order = list(adapter_names(settings.model.adapters))
        adapters = sorted(store.adapters(), key=lambda record: order.index(record.adapter))
    # What does not bear upon the figures is not shown beside them.
    trained = any(record.train_seconds for record in adapters)
    training = (name for name, each in SETTINGS.items() if each.section == "training")
    idle = {*WORK, *(() if trained else training)}
    asked = flat(settings, idle)
    files = write_report(
        directory,
        question=_question(adapters, settings.task.name),
        settings=asked | records,
        measurements=measurements,
        adapters=adapters,
        layers=read_layers(directory / LAYERS_FILE),
    )
    files += accuracy_vs_noise(
        measurements,
        directory / "accuracy_vs_noise",
        adapters=adapters,
        weights=settings.hardware.weights,
    )
    return Results(directory, measurements, adapters, files)


def _question(adapters: Sequence[AdapterRecord], task: str) -> str:
    titles = [ADAPTERS[r.adapter].title if r.adapter in ADAPTERS else r.adapter for r in adapters]
    if len(titles) < 2:
        return f"How does {', '.join(titles)} keep its score on {task} as the chip ages?"
    return f"Which adapter keeps its score on {task} as the chip ages: {' or '.join(titles)}?"
