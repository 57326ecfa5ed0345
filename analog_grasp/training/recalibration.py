"""Recalibration: digital adapters re-fitted on an aged chip, from a few examples.

The frozen devices of a chip cannot be reprogrammed cheaply; the digital adapter can be rewritten
at any time. Examples are run on the chip as it is now and through the digital model, and the
adapter and the task head are fitted so that the outputs on the chip match the digital ones.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.crossbar import Deployment
from analog_grasp.tasks import Task
from analog_grasp.training.adapter_parameters import check_deployed, own_copy
from analog_grasp.training.distillation import Teacher, refit_rate
from analog_grasp.training.examples import Batch, draw_examples, pick, vocabulary_of
from analog_grasp.training.fit_methods import (
    METHODS,
    ROUNDING,
    Descent,
    Fit,
    check_method,
    finest_groups,
    refine,
)
from analog_grasp.training.schedule import as_trained
from analog_grasp.utils.errors import check_finite, check_whole, unknown_name
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.types import REFIT_STEPS, RefitMethod

Backward = Literal["target", "chip"]
_REPORT_FILE = "recalibration.json"
# Ten times that of the second stage: each of few examples has few outputs, but many hidden states.
_HIDDEN_WEIGHT = 3.0


@dataclass(frozen=True)
class Recalibration:
    """A re-fitted model on its chip, with the gain and the cost of the fit.

    Attributes:
        model: The re-fitted model, on the chip of the deployment.
        device: The card's name.
        chip: The chip instance.
        time_s: The age of the chip, s since programming.
        method: The method.
        examples: The number of examples, those held out included.
        labels: Whether their labels were used.
        settings: The other settings, with the values used; those without effect are missing.
        loss_before: The loss on the held-out examples with the adapter as it was.
        loss_after: The same, with the same noise, with the adapter that was kept.
        examples_read: How many examples the chip computed in total.
        seconds: The time taken, s.
        parameters: The number of parameters rewritten; 0 if the adapter was kept as it was.
        bytes: Their size in memory.
        weights: The weights on tiles, all of which reprogramming would write; `analog_grasp.costs`
            states the devices that hold them.
    """

    model: PeftModel = field(repr=False)
    device: str
    chip: int
    time_s: float
    method: RefitMethod
    examples: int
    labels: bool
    settings: dict[str, object]
    loss_before: float
    loss_after: float
    examples_read: int
    seconds: float
    parameters: int
    bytes: int
    weights: int

    @property
    def improved(self) -> bool:
        """Return whether the re-fitted adapter was kept: better on the held-out examples."""
        return self.parameters > 0

    def report(self) -> dict[str, object]:
        """Return every attribute but the model."""
        values = {name: value for name, value in vars(self).items() if name != "model"}
        return {**values, "improved": self.improved}

    def save(self, path: str | Path) -> None:
        """Write the adapter as a PEFT folder, with recalibration.json beside its files.

        Raises:
            OSError: The folder cannot be written.
        """
        self.model.save_pretrained(str(path), save_embedding_layers=False)
        text = json.dumps(self.report(), indent=1)
        write_atomically(Path(path) / _REPORT_FILE, text.encode())


def recalibrate(
    deployment: Deployment,
    data: Task | Sequence[str],
    *,
    examples: int = 64,
    labels: bool = False,
    method: RefitMethod = "gradient",
    backward: Backward | None = None,
    groups: int | None = None,
    hidden_weight: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
    start: nn.Module | None = None,
) -> Recalibration:
    """Re-fit the digital adapter and the task head on a chip at its present age.

    A quarter of the examples is held out. The adapter with the smallest loss on them is kept,
    which is the first one if no other is better, both measured with the same noise. The
    deployment's own model and the caller's adapter stay as they are.

    Args:
        deployment: A programmed chip with a digital adapter.
        data: A task, of which training rows are drawn, or texts.
        examples: The number of examples, at least 2.
        labels: Fit to the labels of a task instead of the outputs of the digital model.
        method: ``"gradient"``, Adam on the distillation loss; half of the examples of a step have
            other words in place of three in ten; ``"least-squares"``, one layer after the other in
            closed form; ``"statistics"``, which matches the mean and the standard deviation of each
            group's inputs. The last two are for GRASP and StochGRASP, fit scales and shifts alone,
            and have none of the settings of gradients below.
        backward: The weights of the backward pass: ``"target"`` (default), which are known on
            hardware, or ``"chip"``, the present ones, which only a simulation knows: an upper
            bound.
        groups: Divide the groups of a GRASP adapter into so many, a multiple of the present number;
            more parameters are then fitted, and the adapter that is kept has them. By default as
            many as there are features in the narrowest layer for ``"gradient"``, where they can be
            divided so, and the present ones for the other methods.
        hidden_weight: Weight of the hidden states in the distillation loss, beside the outputs; by
            default 3.
        steps: Optimiser steps of the method ``"gradient"``; by default 200.
        learning_rate: Its peak learning rate; by default the adapter's own, at most 0.01.
        batch_size: Its batch size; by default 32, or all examples if they are fewer.
        seed: Seed of the examples, of those held out and of the batches.
        model: A model from `Deployment.attach`, by default ``deployment.model``, whose outputs in
            digital arithmetic are the target: with its adapter as it is, or as it was before it
            followed a schedule.
        start: The model on this chip that the fit begins with, such as that of an earlier
            recalibration; by default `model`.

    Raises:
        ValueError: The chip is not programmed; a model is not on it; the adapter is folded,
            programmed, merged, disabled or missing; too few examples, or fewer than a batch; blank
            texts; labels of texts; an unknown method; a method that does not suit the adapter; a
            setting that has no effect; a number out of its range; NaN or infinite outputs; `groups`
            for another adapter, or that do not divide the present ones.

    Source:
        docs/method.md, "Recalibration".

    Example:
        ``recalibrate(deployment.program(0).drift_to("1y"), task, examples=64).model``
    """
    target = check_deployed(deployment, model)
    chosen = target if start is None else check_deployed(deployment, start)
    given = {
        "backward": backward,
        "hidden_weight": hidden_weight,
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    _check(deployment, chosen, data, labels, method, given)
    begin = time.perf_counter()
    batch = draw_examples(data, examples, chosen, seed)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    held_out, fitted = order[: max(1, examples // 4)], order[max(1, examples // 4) :]
    if batch_size is not None and len(fitted) < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, but {len(fitted)} of the {examples} examples are fitted "
            "to: give more examples or a smaller batch."
        )
    student = own_copy(deployment, chosen)
    if groups is None and not METHODS[method].by_layer:
        groups = finest_groups(student)
    if groups is not None:
        refine(student, groups)
    weight = _HIDDEN_WEIGHT if hidden_weight is None else hidden_weight
    teacher = Teacher.of_chip(deployment, as_trained(deployment, target), weight)
    if labels:
        loss: Callable[[nn.Module, Batch], Tensor] = _label_loss
    else:
        batch, loss = teacher.prepared(batch), teacher.loss
    rounding = ROUNDING[deployment.dtype] * (1 + weight)
    fit = Fit(student, pick(batch, fitted), pick(batch, held_out), loss, rounding)
    descent = Descent(
        steps or REFIT_STEPS,
        learning_rate or refit_rate(chosen),
        min(batch_size or 32, len(fitted)),
        seed,
        [] if backward == "chip" else [deployment],
        # Of a changed text only the digital outputs are known.
        None if labels else vocabulary_of(data, chosen),
    )
    METHODS[method].fit(fit, teacher, descent)
    rewritten, before, after = fit.finish()
    if not rewritten:
        student = own_copy(deployment, chosen)
    used: dict[str, object] = {"seed": seed, "groups": groups}
    if not labels:
        used["hidden_weight"] = weight
    if not METHODS[method].by_layer:
        used |= {"backward": backward or "target"}
        used |= {name: getattr(descent, name) for name in ("steps", "learning_rate", "batch_size")}
    return Recalibration(
        model=student.requires_grad_(False),
        device=deployment.card.name,
        chip=deployment.seed or 0,
        time_s=deployment.time_s,
        method=method,
        examples=examples,
        labels=labels,
        settings=used,
        loss_before=before,
        loss_after=after,
        examples_read=fit.examples_read,
        seconds=time.perf_counter() - begin,
        parameters=sum(p.numel() for p in rewritten),
        bytes=sum(p.numel() * p.element_size() for p in rewritten),
        weights=sum(layer.cells for layer in deployment.layers.values()),
    )


def _check(
    deployment: Deployment,
    model: PeftModel,
    data: Task | Sequence[str],
    labels: bool,
    method: RefitMethod,
    given: dict[str, Any],
) -> None:
    """Raise ValueError where the request is not valid; `given` are settings, None by default."""
    if method not in METHODS:
        raise ValueError(unknown_name("method", method, METHODS))
    if given["backward"] not in (None, *get_args(Backward)):
        raise ValueError(unknown_name("backward", given["backward"], get_args(Backward)))
    if deployment.seed is None:
        raise ValueError("The chip is not programmed: call program(seed) before recalibrate.")
    if labels and not isinstance(data, Task):
        raise ValueError("labels is True, but texts have no labels: give a task.")
    by_layer, config = METHODS[method].by_layer, model.active_peft_config
    check_method(method, config)
    idle = ["backward", "steps", "learning_rate", "batch_size"] if by_layer else []
    idle += ["hidden_weight"] if labels else []
    for name in idle:
        if given[name] is not None:
            raise ValueError(
                f"{name} is {given[name]!r}, which has no effect "
                f"{f'on the method {method!r}' if by_layer else 'where labels are used'}: omit it."
            )
    if by_layer and labels:
        raise ValueError(
            f"labels is True, but the method {method!r} fits to the digital layers: use 'gradient'."
        )
    for name in ("steps", "batch_size"):
        if given[name] is not None:
            check_whole(name, given[name])
    for name, above in (("learning_rate", True), ("hidden_weight", False)):
        if given[name] is not None:
            check_finite(name, given[name], above)


def _label_loss(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss
