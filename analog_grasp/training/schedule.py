"""Age-scheduled adapters: one per age, fitted on simulated chips and switched as a chip ages."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft import (
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.config import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from analog_grasp.crossbar import Deployment
from analog_grasp.devices.ages import AgeRange, in_logarithm
from analog_grasp.tasks import Task
from analog_grasp.training.adapter_parameters import check_deployed, own_copy, set_parameters
from analog_grasp.training.distillation import HIDDEN_WEIGHT, Teacher, fit_on_chips, refit_rate
from analog_grasp.training.examples import count_of, draw_examples
from analog_grasp.training.fit_methods import finest_groups, refine
from analog_grasp.utils.errors import check_finite, check_whole
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.time import format_time, parse_time

STEPS = 100
"""Default number of optimiser steps per age."""
INDEX_FILE = "schedule.json"
_WEIGHTS = "adapter_model.safetensors"
_DAMAGED = (
    *(AttributeError, KeyError, OSError, StopIteration, TypeError, ValueError),
    SafetensorError,
)
_STEPS_PER_CHIP = 4
_EXAMPLES = 2000


@dataclass(frozen=True)
class Cost:
    """The cost of the adapter of one age.

    Attributes:
        examples: Unlabelled examples, of which none is run on the chip that is used later.
        steps: Optimiser steps on simulated chips.
        seconds: Time of the fit, s.
        parameters: Parameters of the adapter and the task head.
        bytes: Their size in memory.
        weights: As in `Recalibration`.
    """

    examples: int
    steps: int
    seconds: float
    parameters: int
    bytes: int
    weights: int


@dataclass
class AgeSchedule:
    """Adapters for several ages of one device.

    Attributes:
        device: The card's name.
        config: The adapters' common configuration.
        adapters: The parameters of each adapter and its task head by age, s, as PEFT names them.
        costs: The cost of each, by age.
        settings: The arguments of `fit_schedule` that every fit had, with its defaults.

    Example:
        ``AgeSchedule.load("schedule").follow(deployment)``
    """

    device: str
    config: PeftConfig = field(repr=False)
    adapters: dict[float, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    costs: dict[float, Cost] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    def nearest(self, seconds: float) -> float:
        """Return the age of the adapter for an age, s: the nearest in ln(age + 1 min)."""
        return min(self.adapters, key=lambda age: abs(in_logarithm(age) - in_logarithm(seconds)))

    def apply(self, model: PeftModel, seconds: float) -> None:
        """Give the active adapter of a model the parameters for an age, s.

        Raises:
            ValueError: The model has another adapter.
        """
        state = self.adapters[self.nearest(seconds)]
        own, groups = _state(model), getattr(self.config, "groups", None)
        if groups and own.keys() == state.keys() and not _fits(own, state):
            # Its groups may be parts of those of the adapter as trained.
            with suppress(ValueError):
                refine(model, groups)
            own = _state(model)
        if not _fits(own, state):
            numbers = [sum(tensor.numel() for tensor in each.values()) for each in (state, own)]
            raise ValueError(
                f"The schedule is for the method {self.config.peft_type} with {numbers[0]} "
                f"parameters, and the adapter has {numbers[1]} or others: fit one for this adapter."
            )
        set_peft_model_state_dict(model, dict(state), adapter_name=model.active_adapter)

    def applied(self, deployment: Deployment, model: PeftModel) -> PeftModel:
        """Return a copy of a model on a chip with the adapter for the chip's present age.

        Raises:
            ValueError: The model has another adapter.
        """
        found = own_copy(deployment, model)
        self.apply(found, deployment.time_s)
        return found

    def follow(self, deployment: Deployment) -> None:
        """Switch the adapter of ``deployment.model`` after each `drift_to` and `program`.

        An earlier schedule is replaced; other functions in ``deployment.on_drift`` stay. The
        adapter as it was trained stays the target of `recalibrate` and `fit_schedule`.

        Raises:
            ValueError: The schedule is empty, or of another device or another adapter.
        """
        if not self.adapters:
            raise ValueError("The schedule has no adapter: fit_schedule returns one that has.")
        if deployment.card.name != self.device:
            raise ValueError(
                f"The schedule is of {self.device} and the deployment on {deployment.card.name}: "
                "fit one on the deployment's device."
            )
        model = check_deployed(deployment, None)
        trained = as_trained(deployment, model)
        if trained is model:
            trained = own_copy(deployment, model)
        self.apply(model, deployment.time_s)
        others = [each for each in deployment.on_drift if not isinstance(each, _Follower)]
        deployment.on_drift = [*others, _Follower(self, model, trained)]

    def save(self, path: str | Path) -> None:
        """Write each adapter as a PEFT folder, named after its age, and the index schedule.json.

        Raises:
            OSError: A file cannot be written.
        """
        folder = Path(path)
        index = {}
        for age, state in sorted(self.adapters.items()):
            name = format_time(age)
            self.config.save_pretrained(str(folder / name))
            whole = {key: tensor.contiguous().cpu() for key, tensor in state.items()}
            save_file(whole, folder / name / _WEIGHTS, metadata={"format": "pt"})
            index[name] = asdict(self.costs[age])
        content = {"device": self.device, "settings": self.settings, "ages": index}
        text = json.dumps(content, indent=1)
        write_atomically(folder / INDEX_FILE, text.encode())

    @classmethod
    def load(cls, path: str | Path) -> "AgeSchedule":
        """Return the schedule of a folder that `save` wrote.

        Raises:
            FileNotFoundError: The folder holds no schedule.
            ValueError: A file is damaged.
        """
        folder = Path(path)
        if not (folder / INDEX_FILE).is_file():
            raise FileNotFoundError(
                f"The folder {folder} holds no schedule: it should hold {INDEX_FILE}, which "
                "AgeSchedule.save writes."
            )
        try:
            index = json.loads((folder / INDEX_FILE).read_text("utf-8"))
            costs = {parse_time(name): Cost(**cost) for name, cost in index["ages"].items()}
            states = {
                parse_time(name): load_peft_weights(str(folder / name), device="cpu")
                for name in index["ages"]
            }
            config = PeftConfig.from_pretrained(str(folder / next(iter(index["ages"]))))
            return cls(index["device"], config, states, costs, dict(index["settings"]))
        except _DAMAGED as error:
            raise ValueError(
                f"The schedule in {folder} is damaged ({str(error)[:200]}): fit it again."
            ) from None


@dataclass(frozen=True)
class _Follower:
    """Switches the adapter of a model with the age of its chip."""

    schedule: AgeSchedule
    model: PeftModel
    trained: PeftModel
    """The model with the adapter as it was trained."""

    def __call__(self, seconds: float) -> None:
        self.schedule.apply(self.model, seconds)


def as_trained(deployment: Deployment, model: PeftModel) -> PeftModel:
    """Return a model on a chip with the adapter that it had before it followed a schedule."""
    followers = (each for each in deployment.on_drift if isinstance(each, _Follower))
    return next((each.trained for each in followers if each.model is model), model)


def fit_schedule(
    deployment: Deployment,
    task: Task,
    times: Sequence[str | float],
    *,
    steps: int = STEPS,
    learning_rate: float | None = None,
    batch_size: int = 32,
    groups: int | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    advance: Callable[[], object] = int,
    known: AgeSchedule | None = None,
    keep: Callable[[AgeSchedule], object] | None = None,
) -> AgeSchedule:
    """Fit one adapter per age on simulated chips of a deployment's device.

    The simulated chips are none that a study measures, and another one is programmed every four
    steps. Labels are not used. The deployment is programmed and aged for the fit, and is as before
    afterwards. What is fitted for an age does not depend on the other ages.

    Args:
        deployment: A deployment with a digital adapter; it need not be programmed.
        task: The task, of which at most 2,000 training rows are drawn.
        times: The ages since programming.
        steps: Optimiser steps per age.
        learning_rate: The peak learning rate; by default the adapter's own, at most 0.01.
        batch_size: Examples per step.
        groups: Divide the groups of a GRASP adapter into so many, a multiple of the present number;
            by default as in `recalibrate`.
        seed: Seed of the examples and the chips.
        model: A model from `Deployment.attach`; by default ``deployment.model``.
        advance: Called after every step.
        known: An earlier schedule, whose adapters for other ages the schedule has too.
        keep: Called with the schedule after every age, such as to save it.

    Raises:
        ValueError: The adapter is folded, programmed or absent; there is no time, or one is
            unreadable; a number is out of its range; `groups` are for another adapter, or do not
            divide the present ones; `known` is of another device or adapter; a fit diverges.

    Source:
        docs/method.md, "Recalibration".

    Example:
        ``fit_schedule(deployment, task, ["1d", "1y"]).follow(deployment)``
    """
    chosen = as_trained(deployment, check_deployed(deployment, model))
    if isinstance(times, str) or not times:
        raise ValueError(f"times is {times!r}: a list of at least one age is accepted.")
    ages = [parse_time(time) for time in times]
    check_whole("steps", steps)
    check_whole("batch_size", batch_size)
    if learning_rate is not None:
        check_finite("learning_rate", learning_rate, above=True)
    rate = learning_rate or refit_rate(chosen)
    settings = {"steps": steps, "learning_rate": rate, "batch_size": batch_size, "seed": seed}
    groups = finest_groups(chosen) if groups is None else groups
    if groups is not None:
        chosen = own_copy(deployment, chosen)
        refine(chosen, groups)
    schedule = AgeSchedule(deployment.card.name, chosen.active_peft_config, settings=settings)
    if known is not None:
        same = all(_fits(_state(chosen), each) for each in known.adapters.values())
        if known.device != schedule.device or not same:
            raise ValueError(
                f"The known schedule is for another device than {schedule.device}, or for an "
                "adapter with other parameters or groups: fit its ages again, or give its groups."
            )
        schedule.adapters |= known.adapters
        schedule.costs |= known.costs
    with torch.inference_mode(False), deployment.borrowed():
        rows = draw_examples(task, _EXAMPLES, chosen, seed, at_most=True)
        # The digital outputs are the same at all ages.
        rows = Teacher.of_chip(deployment, chosen, HIDDEN_WEIGHT).prepared(rows, steps * batch_size)
        fitted = own_copy(deployment, chosen)
        for age in ages:
            begin = time.perf_counter()
            found = fit_on_chips(
                [deployment], [chosen], rows, [AgeRange(deployment.card, age, age)],
                steps=steps, learning_rate=rate, batch_size=batch_size,
                seed=derive_seed(seed, age), advance=advance, steps_per_chip=_STEPS_PER_CHIP,
            )  # fmt: skip
            set_parameters(fitted, found)
            schedule.adapters[age] = _state(fitted)
            schedule.costs[age] = Cost(
                count_of(rows),
                steps,
                time.perf_counter() - begin,
                sum(tensor.numel() for tensor in found.values()),
                sum(tensor.numel() * tensor.element_size() for tensor in found.values()),
                sum(layer.cells for layer in deployment.layers.values()),
            )
            if keep is not None:
                keep(schedule)
    return schedule


def _fits(own: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in other.items()}


def _state(model: PeftModel) -> dict[str, Tensor]:
    """Return a copy of the parameters of the active adapter and the head, as PEFT names them."""
    state = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    return {name: tensor.detach().clone() for name, tensor in state.items()}
