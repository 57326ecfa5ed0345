"""The measuring itself: a chip instance programmed once serves all its adapters and times."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch import nn

from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.adapters import processor
from analog_grasp.study.grid import Chip
from analog_grasp.study.hardware import Hardware
from analog_grasp.study.sharing import align, share_frozen
from analog_grasp.tasks import Task


@dataclass(frozen=True)
class Job:
    """What is to be measured on one chip instance.

    Attributes:
        chip: The chip instance.
        cells: Adapters and drift times, s.
    """

    chip: Chip
    cells: frozenset[tuple[str, float]]


@dataclass(frozen=True)
class Cell:
    """A measured cell, by every metric of the task, or why it could not be.

    Attributes:
        chip: The chip instance.
        adapter: The adapter's name.
        time_s: Seconds since programming.
        scores: By metric; empty where the measurement failed.
        failure: Why it failed; empty where it did not.
    """

    chip: Chip
    adapter: str
    time_s: float
    scores: Mapping[str, float]
    failure: str = ""


@dataclass
class Bench:
    """All that it takes to measure: what every worker gets, once.

    What a cell measures depends on its job alone: not on other cells, nor on their order.

    At most it holds the digital model, one copy of the weights that lie on tiles and what a batch
    takes, and for each adapter its own parameters; each adapter that is folded or programmed has
    tiles of its own.

    Attributes:
        task: Scores the models.
        models: The adapted models by name; those of one pre-trained model come to share it.
        cards: The device cards by name.
        options: Further arguments of `analog_grasp.deploy`.
        hardware: Calibrates the input ranges.
    """

    task: Task
    models: dict[str, PeftModel]
    cards: dict[str, DeviceCard]
    options: dict[str, Any]
    hardware: Hardware = field(default_factory=Hardware)
    _deployed: tuple[str, dict[str, tuple[Deployment, nn.Module]]] = field(
        default=("", {}), init=False, repr=False
    )

    def __post_init__(self) -> None:
        share_frozen(self.models.values())
        align(self.models.values())

    def measure(self, job: Job) -> Iterator[Cell]:
        """Program the chip, let it age, and yield each cell as it is measured."""
        deployed = self._on(job.chip.device)
        wanted = {name: pair for name, pair in deployed.items() if self._asks(job, name)}
        for deployment in {id(d): d for d, _ in wanted.values()}.values():
            deployment.program(job.chip.seed)
        for seconds in sorted({seconds for _, seconds in job.cells}):
            for name, (deployment, model) in wanted.items():
                if (name, seconds) in job.cells:
                    if deployment.time_s != seconds:
                        deployment.drift_to(seconds)
                    yield self._score(job.chip, name, seconds, model)

    def _score(self, chip: Chip, adapter: str, seconds: float, model: nn.Module) -> Cell:
        try:
            return Cell(chip, adapter, seconds, self.task.scores(model))
        except ValueError as error:
            return Cell(chip, adapter, seconds, {}, str(error))

    def _on(self, device: str) -> dict[str, tuple[Deployment, nn.Module]]:
        """Each adapter on its chip; digital adapters share the one with the frozen weights.

        The chips of the device before make room for them.
        """
        if self._deployed[0] != device:
            self._deployed = ("", {})
            self._deployed = (device, dict(self._deploy(self.cards[device])))
        return self._deployed[1]

    def _deploy(self, card: DeviceCard) -> Iterator[tuple[str, tuple[Deployment, nn.Module]]]:
        shared: Deployment | None = None
        for name, model in self.models.items():
            if shared is not None and self.options["placement"] == "digital":
                deployed = shared.attach(model.to(processor()))
            else:
                shared = deploy(model.to(processor()), card, **self.options)
                deployed = shared.model
            self.hardware.calibrated(shared, self.task, deployed)
            yield name, (shared, deployed)

    @staticmethod
    def _asks(job: Job, adapter: str) -> bool:
        return any(name == adapter for name, _ in job.cells)
