"""Evaluator of a study: a chip instance, programmed once, scores all adapters and drift times."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from analog_grasp.adapters.frozen import base_name
from analog_grasp.adapters.registry import kind_of
from analog_grasp.crossbar import Deployment
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.fields import GRASP
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.study.progress import own_warnings
from analog_grasp.study.records import (
    SCHEDULED,
    LayerRecord,
    ModelKey,
    TreatedAdapter,
    training_folder,
)
from analog_grasp.study.sections import RunSettings
from analog_grasp.tasks import Task
from analog_grasp.training import AgeSchedule, recalibrate
from analog_grasp.utils.io import place_name
from analog_grasp.utils.time import format_time

# Bytes at whose multiples torch puts the tensors that it allocates.
_ALIGNMENT = 64


class Chip(NamedTuple):
    """One chip instance of a device: its index within the study, and the seed that names it."""

    device: str
    repeat: int
    seed: int

    def __str__(self) -> str:
        return f"chip {self.seed} of {self.device}"


class Subject(NamedTuple):
    """Subject of a measurement on a chip: a variant of an adapter, its training, and its age."""

    adapter: str
    """The variant's name, as of `TreatedAdapter`."""
    training: int
    time_s: float

    @property
    def model(self) -> ModelKey:
        """The trained adapter, before its treatment."""
        return TreatedAdapter.parse(self.adapter).adapter, self.training


class Job(NamedTuple):
    """The cells to measure on one chip instance."""

    chip: Chip
    cells: frozenset[Subject]


class Cell(NamedTuple):
    """A measured cell with every metric of the task, or the reason why it has no score."""

    chip: Chip
    subject: Subject
    scores: Mapping[str, float]
    failure: str = ""
    notes: tuple[str, ...] = ()
    """Warnings that a worker process must not print."""


@dataclass
class Evaluator:
    """Everything needed to measure cells; each worker process receives one copy.

    What a cell measures depends on its job alone: not on other cells, nor on their order.

    At most it holds the digital model, one copy of the weights that are on tiles and the
    activations of a batch, and for each adapter its own parameters; each adapter that is folded
    or programmed has tiles of its own.

    Args:
        task: Scores the models.
        models: The adapted models by name and training; those of one pre-trained model then share
            it.
        cards: The device cards by name.
        hardware: Placement, switches and calibration of the deployments.
        recalibrated: The folder in which recalibrated adapters are saved; None to save none.
        run: How adapters are recalibrated.
        schedules: The adapters by age, by trained adapter and device.
    """

    task: Task
    models: dict[ModelKey, PeftModel]
    cards: dict[str, DeviceCard]
    hardware: HardwareSettings = field(default_factory=HardwareSettings)
    recalibrated: Path | None = None
    run: RunSettings = field(default_factory=RunSettings)
    schedules: dict[tuple[ModelKey, str], AgeSchedule] = field(default_factory=dict)
    _deployed: tuple[str, dict[ModelKey, tuple[Deployment, nn.Module]]] = field(
        default=("", {}), init=False, repr=False
    )

    def __post_init__(self) -> None:
        share_frozen(self.models.values())
        align(self.models.values())

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # transformers notes which outputs a class of models can return, such as hidden states, when
        # it makes a model of it; a process that unpickles one has made none.
        for model in self.models.values():
            base = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
            if base is not None:
                with torch.device("meta"):
                    type(base)(base.config)

    def measure(self, job: Job) -> Iterator[Cell]:
        """Program the chip of a job, age it, and yield each cell as it is measured."""
        chip, deployed = job.chip, self.deployed_on(job.chip.device)
        asked = [deployed[subject.model][0] for subject in job.cells]
        for deployment in {id(each): each for each in asked}.values():
            deployment.program(chip.seed)
        order = {key: place for place, key in enumerate(deployed)}
        for subject in sorted(job.cells, key=lambda s: (s.time_s, order[s.model], s.adapter)):
            deployment, _ = deployed[subject.model]
            if deployment.time_s != subject.time_s:
                deployment.drift_to(subject.time_s)
            try:
                scores = self.task.scores(self._treated(chip, subject))
                check_metrics(self.task, scores)
            except ValueError as error:
                yield Cell(chip, subject, {}, str(error))
            else:
                yield Cell(chip, subject, scores)

    def layers(self, chip: Chip, times: Iterable[float]) -> Iterator[LayerRecord]:
        """Yield the layers of a chip at each drift time in s, without measuring a score.

        Those of the first adapter: digital adapters share the frozen weights on the tiles. Modules
        with digital weights follow the layers on tiles.
        """
        model = next(iter(self.models.values()))
        deployment = self.hardware.deploy(model, self.cards[chip.device], self.task)
        deployment.program(chip.seed)
        for seconds in sorted(times):
            report, key = deployment.drift_to(seconds).report(), (chip.device, chip.seed, seconds)
            for x in report:
                yield LayerRecord(*key, x.name, x.tiles, x.cells, x.use, x.weight_error)
            for module in report.digital:
                yield LayerRecord(*key, module.name, 0, module.weights, 0.0, 0.0)

    def _treated(self, chip: Chip, subject: Subject) -> nn.Module:
        """Return the model of a subject after its treatment, on the chip as it is now."""
        deployment, model = self._deployed[1][subject.model]
        variant = TreatedAdapter.parse(subject.adapter)
        if not variant.treatment:
            return model
        start = model
        if schedule := self.schedules.get((subject.model, chip.device)):
            assert isinstance(model, PeftModel)
            start = schedule.applied(deployment, model)
        if variant.treatment == SCHEDULED:
            return start
        run, fitted = self.run, kind_of(model) in GRASP.adapters
        method = run.recalibrate_method if fitted else "gradient"
        result = recalibrate(
            *(deployment, self.task),
            examples=variant.examples,
            method=method,
            groups=run.recalibrate_groups if fitted else None,
            steps=run.recalibrate_steps if method == "gradient" else None,
            seed=chip.seed,
            model=model,
            start=start,
        )
        # With what the run has changed about the chip, for recalibration.json.
        changed = set(self.hardware.changes())
        result.settings.update(self.hardware.model_dump(mode="json", include=changed))
        if self.recalibrated is not None:
            place = place_name(f"{chip.device}-{chip.seed}-{format_time(deployment.time_s)}")
            folder = training_folder(subject.adapter, subject.training)
            result.save(self.recalibrated / folder / place)
        return result.model

    def deployed_on(self, device: str) -> dict[ModelKey, tuple[Deployment, nn.Module]]:
        """Return each adapter deployed on a device; the chips of the previous device are freed.

        Digital adapters share the deployment of the frozen weights.
        """
        if self._deployed[0] == device:
            return self._deployed[1]
        self._deployed = ("", {})
        shared: Deployment | None = None
        deployed: dict[ModelKey, tuple[Deployment, nn.Module]] = {}
        for key, model in self.models.items():
            model.to(processor())
            if shared is None or self.hardware.placement != "digital":
                shared = self.hardware.deploy(model, self.cards[device], self.task)
                deployed[key] = (shared, shared.model)
                continue
            deployed[key] = (shared, shared.attach(model))
            self.hardware.calibrate_inputs(shared, self.task, deployed[key][1])
        self._deployed = (device, deployed)
        return deployed


def check_metrics(task: Task, scores: Mapping[str, float]) -> None:
    """Raise ValueError where scores are not finite, or lack a metric, for which runs would wait."""
    if missing := [metric for metric in task.metrics if metric not in scores]:
        raise ValueError(
            f"The scores of the task {task.name} lack {', '.join(missing)} (they hold "
            f"{', '.join(scores) or 'none'}): its validation rows must allow every one of its "
            f"metrics, {', '.join(task.metrics)}."
        )
    for metric, score in scores.items():
        if not math.isfinite(score):
            raise ValueError(
                f"The {metric} on the task {task.name} is {score}: a score must be finite."
            )


def measure_in_worker(evaluator: Evaluator, job: Job) -> Iterator[Cell]:
    """Yield the cells of a job with the warnings of this package as notes, none of them printed."""
    notes: list[str] = []
    cells = evaluator.measure(job)
    while True:
        with own_warnings(notes.append):
            cell = next(cells, None)
        if cell is None:
            return
        yield cell._replace(notes=tuple(notes))
        notes.clear()


def processor() -> torch.device:
    """Return the device on which models are trained and measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def share_frozen(models: Iterable[nn.Module]) -> None:
    """Make models that hold equal frozen parameters hold the same ones, in place.

    Adapters that were loaded one by one each bring their own copy of the pre-trained model;
    afterwards they take the memory of one, also when they are pickled together or moved to a GPU.
    What is trainable, or differs in a single bit, stays a model's own.
    """
    held: dict[str, nn.Parameter] = {}
    for model in models:
        for path, module in model.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not parameter.requires_grad:
                    first = held.setdefault(f"{base_name(path)}.{name}", parameter)
                    alike = (first.dtype, first.device) == (parameter.dtype, parameter.device)
                    if first is not parameter and alike and torch.equal(first, parameter):
                        setattr(module, name, first)


def align(models: Iterable[nn.Module]) -> None:
    """Move tensors to addresses at which torch itself would allocate them, in place.

    A tensor of a memory-mapped file may begin at any address, and libraries for matrix products
    round their sums by the alignment of their operands: differently in this process than in a
    worker, whose copy torch has allocated. Tensors that models share are shared afterwards.
    """
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.data_ptr() % _ALIGNMENT:
                tensor.data = tensor.data.clone()
