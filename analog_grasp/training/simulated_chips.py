"""Distillation on simulated chips: one adapter for all ages.

Chips that no measurement uses are programmed and aged, and the adapter is fitted so that its
outputs on them match the digital ones. The chip changes every few steps, so that the adapter
corrects the change that all chips of a device share, not the errors of one chip.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices.ages import AgeRange, Ages, draw, parse_ages
from analog_grasp.tasks import Task
from analog_grasp.training.distillation import (
    HIDDEN_WEIGHT,
    Batch,
    Teacher,
    adapter_parameters,
    descend,
    draw_examples,
    pick,
    refit_rate,
)
from analog_grasp.utils.seed import derive_seed

STEPS = 150
"""Default number of optimiser steps on simulated chips."""
_BATCH_SIZE = 32
_STEPS_PER_CHIP = 3
# Beyond the seeds of a study's chips, so that no simulated chip is one that is measured.
_FIRST_CHIP = 2**33


def distil(
    model: PeftModel,
    task: Task,
    ages: Ages,
    *,
    steps: int = STEPS,
    learning_rate: float | None = None,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
    advance: Callable[[], object] = int,
) -> None:
    """Fit the active adapter and the task head to simulated chips of some devices and ages.

    The digital model as it is before the call is the teacher; labels are not used. Every three
    steps another chip is programmed and aged. The forward pass runs on the chip, the backward pass
    uses the target weights, as hardware allows.

    Args:
        model: A digital PEFT model, trained on its task; changed in place.
        task: The task, of which training rows are drawn.
        ages: The devices and their ages, such as ``"pcm-hermes-2@0s..1y"``; see `parse_ages`.
        steps: Optimiser steps.
        learning_rate: The peak learning rate; by default the adapter's own, at most 0.01.
        batch_size: Examples per step.
        seed: Seed of the examples, the chips and the ages.
        advance: Called after every step.

    Raises:
        ValueError: A device or a time is unknown, a range is reversed, or the model has no adapter
            that can be digital.

    Source:
        docs/method.md, "Recalibration".

    Example:
        ``distil(model, task, "pcm-hermes-2@0s..1y,rram-wan2022@0s..1y")``
    """
    ranges = parse_ages(ages)
    check_adapter(model)
    with torch.inference_mode(False):
        deployments = [deploy(model, each.card) for each in ranges]
        rows = draw_examples(task, steps * batch_size, model, seed, at_most=True)
        found = fit_on_chips(
            deployments, [each.model for each in deployments], rows, ranges,
            steps=steps, learning_rate=learning_rate, batch_size=batch_size, seed=seed,
            advance=advance,
        )  # fmt: skip
        set_parameters(model, found)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process has fitted the same adapter; machines of other kinds round otherwise.
            for _, parameter in adapter_parameters(model):
                torch.distributed.broadcast(parameter.data, 0)


def check_adapter(model: nn.Module) -> None:
    """Raise ValueError unless a model has an adapter or a head that stays digital."""
    if not isinstance(model, PeftModel) or not adapter_parameters(model):
        raise ValueError(
            f"The model, a {type(model).__name__}, has no adapter to distil on simulated chips: a "
            "PEFT adapter or a task head, which stay digital, is required."
        )


def fit_on_chips(
    deployments: Sequence[Deployment],
    models: Sequence[Any],
    rows: Batch,
    ranges: Sequence[AgeRange],
    *,
    steps: int,
    learning_rate: float | None,
    batch_size: int,
    seed: int,
    advance: Callable[[], object] = int,
    steps_per_chip: int = _STEPS_PER_CHIP,
) -> dict[str, Tensor]:
    """Return the parameters of an adapter fitted to simulated chips, by name.

    Args:
        deployments: One for each range; programmed and aged, over and over.
        models: The model of each deployment, all with the same adapter; they stay as they are.
        rows: Examples, as `draw_examples` returns them.
        ranges: The ages of each deployment.
        steps, learning_rate, batch_size, seed, advance: As in `distil`.
        steps_per_chip: Steps between two chips.
    """
    first = models[0]
    teacher = Teacher(deployments[0], first, HIDDEN_WEIGHT)
    names = dict(adapter_parameters(first))
    students = [d.copy_model(m, own=names) for d, m in zip(deployments, models, strict=True)]
    parameters = dict(adapter_parameters(cast(PeftModel, students[0])))
    for student in students:
        _share(student, parameters)
    count = len(next(iter(rows.values())))
    generator = torch.Generator().manual_seed(seed)
    rate = learning_rate or refit_rate(first)
    index = 0

    def loss(step: int) -> Tensor:
        nonlocal index
        if step % steps_per_chip == 0:
            chip = derive_seed(seed, "simulated", step // steps_per_chip)
            index, age = draw(ranges, chip)
            deployments[index].program(_FIRST_CHIP + chip % 2**31).drift_to(age)
        chosen = torch.randint(count, (batch_size,), generator=generator)
        return teacher.loss(students[index], pick(rows, chosen))

    for _ in descend(loss, list(parameters.values()), steps, rate, deployments):
        advance()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def set_parameters(model: PeftModel, values: dict[str, Tensor]) -> None:
    """Write the parameters of the adapter and the head, by name."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(model):
            parameter.copy_(values[name])


def _share(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Make a model compute with the given parameters instead of its own of the same names."""
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = parameter
