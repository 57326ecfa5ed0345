"""A study whose names are all known and whose settings fit, made by `prepare`."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel

from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.engines import engine
from analog_grasp.study.evaluator import (
    Chip,
    ModelKey,
    Subject,
)
from analog_grasp.study.plan import Place, Plan, make_plan
from analog_grasp.study.provenance import open_run
from analog_grasp.study.records import CellKey, Measurement
from analog_grasp.study.trained_adapters import (
    adapter_names,
    is_saved,
    load_with_hash,
    new_adapter,
)
from analog_grasp.study.variants import SCHEDULED, TreatedAdapter, recalibrated
from analog_grasp.tasks import Task
from analog_grasp.training.loss import target_std
from analog_grasp.utils.time import parse_time


@dataclass
class Study:
    """A study whose names are all known and whose settings fit: ready to run.

    Returned by `prepare`.

    Attributes:
        config: The settings, those of the resumed run included.
        task: The task.
        cards: The device cards by name, in the order of the settings.
        adapters: By their names in tables: the adapter's own name, or the folder of a saved one.
        directory: The output folder.
        loaded: Adapters that were loaded from their folders, with the hashes of their models.
    """

    config: StudyConfig
    task: Task
    cards: dict[str, DeviceCard]
    adapters: dict[str, str]
    directory: Path
    loaded: dict[ModelKey, tuple[PeftModel, str]] = field(default_factory=dict)

    def plan(self, measured: Iterable[Measurement]) -> Plan:
        """Return the trainings and chip instances to measure, given what is measured so far."""
        metrics, variants = self.task.metrics, self.variants
        places = [Place(m, v, t) for m in metrics for v in variants for t in self.times]
        once = [
            name for name in variants if is_saved(self.adapters[TreatedAdapter.parse(name).adapter])
        ]
        return make_plan(self.config, list(self.cards), places, measured, once)

    def chips(self, plan: Plan) -> list[Chip]:
        """Return the chip instances of a plan, device by device."""
        return [
            Chip(device, repeat, self.config.run.seed + repeat)
            for device, count in plan.chips.items()
            for repeat in range(count)
        ]

    def trainings(self, trainings: int) -> list[ModelKey]:
        """Return the adapters with the indices of their trainings; a saved one has one."""
        return [
            (adapter, training)
            for adapter, asked in self.adapters.items()
            for training in range(1 if is_saved(asked) else trainings)
        ]

    def subjects(self, trainings: int) -> list[Subject]:
        """Return what is measured on each chip instance, with so many trainings."""
        return [
            Subject(str(TreatedAdapter(adapter, treatment)), training, seconds)
            for adapter, training in self.trainings(trainings)
            for treatment in self.treatments
            for seconds in self.times
        ]

    @property
    def times(self) -> list[float]:
        """The drift times, s."""
        return drift_times(self.config)

    @property
    def variants(self) -> list[str]:
        """The adapters, each as trained and after each treatment."""
        return [str(TreatedAdapter(name, t)) for name in self.adapters for t in self.treatments]

    @property
    def treatments(self) -> list[str]:
        """The treatments of each adapter, the first being none."""
        run = self.config.run
        return ["", *([SCHEDULED] if run.schedule else []), *map(recalibrated, run.recalibrate)]

    def key(self, chip: Chip, metric: str, subject: Subject) -> CellKey:
        """Return the key of a measurement."""
        adapter, training, seconds = subject
        placement = self.config.hardware.placement
        return CellKey(
            *(self.task.name, metric, adapter, training, placement, chip.device, seconds),
            *(chip.repeat, chip.seed),
        )


def prepare(config: StudyConfig, directory: Path) -> Study:
    """Find the task, the model, the devices and the adapters, and create or resume the folder.

    Raises:
        ValueError: A name is unknown, a setting does not fit, the folder holds another run, or
            several processes were started by torchrun.
        FileNotFoundError: Files of the model or the task are missing.
        OSError: The folder cannot be written.
    """
    check_single_process()
    engine(config.run)
    cards = config.hardware.cards()
    task = config.task.load()
    target_std(config.training.noise_target)
    adapters = adapter_names(config.model.adapters)
    loaded = {}
    for name, asked in adapters.items():
        if is_saved(asked):
            loaded[name, 0] = load_with_hash(
                Path(asked), config.model.name, task, config.model.trust_remote_code
            )
            if kind := kind_of(loaded[name, 0][0]):
                check_placement(kind, config.hardware.placement)
        else:
            check_placement(asked, config.hardware.placement)
            new_adapter(config, task, asked)
    resumed = open_run(directory, config)
    if resumed.hardware.devices != config.hardware.devices:
        cards = resumed.hardware.cards()
    return Study(resumed, task, cards, adapters, directory, loaded)


def check_single_process() -> None:
    """Raise where torchrun has started several processes, which would wait for each other.

    Raises:
        ValueError: There are several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"A study was started in {os.environ['WORLD_SIZE']} processes by torchrun, but divides "
            "its work itself: start it without torchrun and set the number of workers (--workers), "
            "or train each adapter with torchrun by the command train."
        )


def drift_times(config: StudyConfig) -> list[float]:
    """Return the drift times of a study, s, in the order of the settings."""
    return [parse_time(text) for text in config.run.times]


def deployment_text(config: StudyConfig) -> str:
    """Return the settings of a deployment that no column of results.csv holds."""
    programmed = config.hardware.placement == "programmed"
    error = {"programming_error": config.hardware.programming_error} if programmed else {}
    changes = error | config.hardware.changes()
    return ", ".join(f"{name}={value}" for name, value in changes.items())
