"""A study whose names are all known and whose settings fit, and the plan of what it measures."""

import math
import os
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.adapters.model import modulated_layers
from analog_grasp.adapters.registry import (
    ADAPTERS,
    check_placement,
    check_programmable,
    check_programming_error,
    kind_of,
)
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.checks import check_study
from analog_grasp.study.config import SETTINGS, StudyConfig, check_effects, is_saved
from analog_grasp.study.evaluator import Chip, Subject
from analog_grasp.study.fields import GRASP
from analog_grasp.study.provenance import open_run
from analog_grasp.study.records import (
    SCHEDULED,
    CellKey,
    Measurement,
    ModelKey,
    TreatedAdapter,
    recalibrated,
)
from analog_grasp.study.sections import RunSettings
from analog_grasp.study.statistics import (
    MeanSquares,
    half_widths,
    mean_error,
    mean_squares,
    table_error,
)
from analog_grasp.study.trained_adapters import adapter_names, load_with_hash, new_adapter
from analog_grasp.tasks import Task
from analog_grasp.training.fit_methods import check_method, finest_groups
from analog_grasp.utils.metrics import is_fraction

FIRST_CHIPS = 5
"""Chip instances per device that `until_ci` begins with: from fewer, its intervals cover less."""
# Share of a half width to which chips must be able to reduce it.
_NOTICEABLE = 0.95


class Plan(NamedTuple):
    """Number of trainings of each adapter, and of chip instances of each device."""

    trainings: int
    chips: Mapping[str, int]


class Place(NamedTuple):
    """A score that every chip instance of every device has."""

    metric: str
    adapter: str
    time_s: float


@dataclass
class Study:
    """A study whose names are all known and whose settings fit, from `prepare`.

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
        subjects = self.subjects(1)
        places = [Place(m, s.adapter, s.time_s) for m in self.task.metrics for s in subjects]
        once = {s.adapter for s in subjects if is_saved(self.adapters[s.model[0]])}
        return make_plan(self.config, list(self.cards), places, measured, once)

    def count_cells(self, measured: Iterable[Measurement]) -> int:
        """Return the number of cells, as far as it is known from what is measured so far."""
        plan = self.plan(measured)
        return len(self.subjects(plan.trainings)) * len(self.chips(plan))

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
        """Return what is measured on each chip instance, with so many trainings.

        Adapters are measured as trained, then after each treatment.
        """
        run = self.config.run
        treatments = [
            "",
            *([SCHEDULED] if run.schedule else []),
            *map(recalibrated, run.recalibrate),
        ]
        return [
            Subject(str(TreatedAdapter(adapter, treatment)), training, seconds)
            for adapter, training in self.trainings(trainings)
            for treatment in treatments
            for seconds in run.seconds
        ]

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
    check_study(config)
    task = config.task.load()
    adapters = adapter_names(config.model.adapters)
    loaded, kinds = {}, []
    for name, asked in adapters.items():
        if is_saved(asked):
            loaded[name, 0] = load_with_hash(
                Path(asked), config.model.name, task, config.model.trust_remote_code
            )
            kinds.append(kind := kind_of(loaded[name, 0][0]) or "another PEFT method")
            if kind in ADAPTERS:
                check_placement(kind, config.hardware.placement)
            check_model(config, task, loaded[name, 0][0])
        else:
            kinds.append(asked)
            check_model(config, task, new_adapter(config, task, asked))
    check_effects(config, kinds, (n for n, s in SETTINGS.items() if s.section == "run"))
    others = [kind for kind in kinds if kind not in GRASP.adapters]
    if config.run.recalibrate_method != "gradient" and others:
        warnings.warn(
            f"The recalibrate_method {config.run.recalibrate_method} is for grasp and stochgrasp: "
            f"{' and '.join(others)} {'is' if len(others) == 1 else 'are'} re-fitted by gradient.",
            stacklevel=2,
        )
    resumed = open_run(directory, config, task)
    return Study(resumed, task, resumed.hardware.cards(), adapters, directory, loaded)


def check_model(config: StudyConfig, task: Task, model: nn.Module) -> None:
    """Raise ValueError where a setting does not suit a model, before anything is trained."""
    hardware, run = config.hardware, config.run
    # A model that is trained whole has none.
    own = getattr(model, "active_peft_config", None)
    if hardware.weights == "analog":
        # Every name of the setting must match a layer.
        deque(frozen_layers(model, hardware.layers), maxlen=0)
    if hardware.placement == "programmed":
        check_programming_error(kind_of(model), hardware.programming_error)
        if isinstance(own, GraspConfig):
            check_programmable(own.form, getattr(own, "sampling", "feature"))
    if isinstance(own, GraspConfig):
        if run.recalibrate:
            check_method(run.recalibrate_method, own)
        _check_groups(run, own, cast(PeftModel, model))
    if not run.recalibrate:
        return
    # Those of a language model are chunks of its text.
    rows = len(task.training_rows(model, task.tokenizer_of(model)))
    if (most := max(run.recalibrate)) > rows:
        raise ValueError(
            f"The setting recalibrate is {most}, but the task {task.name} has {rows} training rows "
            "to draw the examples from: give at most so many."
        )


def _check_groups(run: RunSettings, own: GraspConfig, model: PeftModel) -> None:
    """Raise ValueError where the groups of a GRASP adapter cannot be divided as the settings say.

    A recalibration begins with the groups of the schedule, where there is one.
    """
    default = finest_groups(model) if run.schedule else None
    for name, layer in modulated_layers(model):
        present = own.groups_of(layer.in_features)
        scheduled = run.schedule_groups or default or present
        for setting, groups in (
            ("schedule_groups", scheduled),
            ("recalibrate_groups", run.recalibrate_groups or scheduled),
        ):
            if groups % present or groups > layer.in_features:
                raise ValueError(
                    f"The setting {setting} is {groups}, but the layer {name} has {present} "
                    f"groups of {layer.in_features} input features: give a multiple of {present} "
                    "that is not above the number of features."
                )
            present = groups


def check_single_process() -> None:
    """Raise ValueError where torchrun has started several processes, which would wait endlessly."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"A study was started in {os.environ['WORLD_SIZE']} processes by torchrun, but divides "
            "its work itself: start it without torchrun and set the number of workers (--workers), "
            "or train each adapter with torchrun by the command train."
        )


def make_plan(
    config: StudyConfig,
    devices: Sequence[str],
    places: Sequence[Place],
    measured: Iterable[Measurement],
    once: Collection[str] = (),
) -> Plan:
    """Return how many trainings and chip instances to measure, given what is measured so far.

    These are `trainings` and `repeats`. With `until_ci`, at least `FIRST_CHIPS` chips, then more
    until the half width of every interval, of a mean or of a paired difference from its
    baseline, is narrow enough or the limits are reached. What is drawn next is what narrows the
    widest interval of each device most, per cell that it adds: one more training, which every chip
    is measured with, or chips: as many as seem to be required, at most twice as many at once.
    Trainings are drawn where there are two or more, so that their variance can be estimated; chips
    only where they narrow the interval at all.

    The result follows from the first trainings and instances alone, so that the order of the work
    does not change it. Drawing ends at samples that happen to vary less, so that the intervals
    cover the true mean less often than 95 %: with one training as low as 90, 92 and 94 % when it
    begins with 3, 5 and 10 chips (simulated with normally distributed scores, at the half width
    where coverage is lowest).

    `places` are the scores of a chip, those of the first adapter before all others; `once` the
    adapters of which there is one training only, as they were saved before.

    Example:
        >>> make_plan(StudyConfig(), ["pcm"], [Place("accuracy", "grasp", 0.0)], [])
        Plan(trainings=1, chips={'pcm': 4})
    """
    run, trainings = config.run, config.training.trainings
    if run.until_ci is None:
        return Plan(trainings, dict.fromkeys(devices, run.repeats))
    limit = config.training.trainings_limit if trainings > 1 else 1
    chips = dict.fromkeys(devices, max(run.repeats, min(FIRST_CHIPS, run.repeats_limit)))
    values: dict[tuple[str, Place], dict[tuple[int, int], float]] = {}
    for cell in measured:
        unit = 100.0 if is_fraction(cell.metric) else 1.0
        where = (cell.device, Place(cell.metric, cell.adapter, cell.time_s))
        values.setdefault(where, {})[cell.training, cell.repeat] = unit * cell.value
    while True:
        tables = {}
        for device, count in chips.items():
            rows = {place: 1 if place.adapter in once else trainings for place in places}
            scores = {place: values.get((device, place), {}) for place in places}
            tables[device] = _tables(scores, rows, count)
        # A training concerns all devices: it is drawn when all of them are measured.
        if not all(tables.values()) and trainings < limit:
            return Plan(trainings, chips)
        widest = {d: max(found, key=_width) for d, found in tables.items() if found}
        wide = {d: _Variances.of(t) for d, t in widest.items() if _width(t) > run.until_ci}
        growing = {d: s for d, s in wide.items() if s.narrowed_by_chips(run.repeats_limit)}
        # By how much a training, or a chip of each device, narrows the widest intervals per cell.
        by_training = sum(s.half_width() - s.half_width(1) for s in wide.values())
        by_training /= sum(chips.values())
        by_chip = sum(s.half_width() - s.half_width(0, 1) for s in growing.values())
        by_chip /= max(sum(s.trainings for s in growing.values()), 1)
        if trainings < limit and by_training > by_chip:
            trainings += 1
        elif growing:
            for device, variances in growing.items():
                most = min(2 * chips[device], run.repeats_limit)
                chips[device] = variances.chips_needed(run.until_ci, most)
        else:
            return Plan(trainings, chips)


def _tables(
    scores: Mapping[Place, Mapping[tuple[int, int], float]], rows: Mapping[Place, int], chips: int
) -> list[NDArray[np.float64]]:
    """Return tables of scores, and of differences from their baselines; empty if incomplete."""
    tables: dict[Place, NDArray[np.float64]] = {}
    for place, known in scores.items():
        wanted = [[(i, j) for j in range(chips)] for i in range(rows[place])]
        if not all(key in known for row in wanted for key in row):
            return []
        tables[place] = np.array([[known[key] for key in row] for row in wanted])
    first = next(iter(tables)).adapter
    differences = []
    for place, table in tables.items():
        if place.adapter != first:
            name = TreatedAdapter.parse(place.adapter).baseline(first)
            baseline = tables[place._replace(adapter=name)]
            both = min(len(table), len(baseline))
            differences.append(table[:both] - baseline[:both])
    return [*tables.values(), *differences]


class _Variances(NamedTuple):
    """Variances by which the mean of a table of this shape is expected to vary.

    Those of the effects of a training, of a chip, and of both together; with one training all of
    it is the chip's.
    """

    trainings: int
    chips: int
    training: float
    chip: float
    rest: float

    @classmethod
    def of(cls, table: NDArray[np.float64]) -> "_Variances":
        trainings, chips = table.shape
        if trainings == 1:
            return cls(trainings, chips, 0.0, float(table.var(ddof=1)) if chips > 1 else 0.0, 0.0)
        squares = mean_squares(table)
        by_training = max(float(squares.training - squares.rest), 0.0) / chips
        by_chip = max(float(squares.chip - squares.rest), 0.0) / trainings
        return cls(trainings, chips, by_training, by_chip, float(squares.rest))

    def half_width(self, more_trainings: int = 0, more_chips: int = 0) -> float:
        """Return the half width that is expected of an interval over more values."""
        chips = self.chips + more_chips
        if self.trainings == 1:
            return float(half_widths(math.sqrt(self.chip / chips), chips - 1))
        trainings = self.trainings + more_trainings
        squares = (self.rest + chips * self.training, self.rest + trainings * self.chip, self.rest)
        expected = MeanSquares(*map(np.array, squares))
        return float(half_widths(*mean_error(expected, trainings, chips)))

    def narrowed_by_chips(self, most: int) -> bool:
        """Return whether so many chips are expected to narrow the interval noticeably."""
        return self.half_width(0, max(most - self.chips, 0)) < _NOTICEABLE * self.half_width()

    def chips_needed(self, half: float, most: int) -> int:
        """Return the number of chips from which the interval is expected to be narrow enough."""
        counts = range(self.chips + 1, most)
        return next((n for n in counts if self.half_width(0, n - self.chips) <= half), most)


def _width(table: NDArray[np.float64]) -> float:
    """Return the half width of the interval of a table; infinite with a single chip.

    0 for equal scores, which have no interval: a device without noise would be drawn up to the
    limit.
    """
    trainings, chips = table.shape
    if chips == 1:
        return math.inf
    if trainings > 1:
        return float(half_widths(*table_error(table)))
    return float(half_widths(table.std(ddof=1) / math.sqrt(chips), chips - 1))
