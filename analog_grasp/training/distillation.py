"""Distillation on a chip: unlabelled examples, the digital model as teacher, and the loss."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorWithPadding
from transformers.modeling_outputs import ModelOutput

from analog_grasp.adapters.registry import ADAPTERS, kind_of
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.chip_layer import chip_layer
from analog_grasp.crossbar.forward_hooks import computed_digitally
from analog_grasp.tasks import LanguageModelingTask, Task, tokenizer_for
from analog_grasp.tasks.base import position_limit
from analog_grasp.training.converter_loop import StraightThrough

Batch = dict[str, Tensor]
HIDDEN_WEIGHT = 0.3
"""Default weight of the hidden states in the distillation loss."""
# Of an adapter that has learned its task: half of what GRASP learns the task with.
_LARGEST_RATE = 1e-2
_ROUNDING = 1e-6
_SHARE = 1e-3


def draw_examples(
    data: Task | Sequence[str], count: int, model: nn.Module, seed: int, at_most: bool = False
) -> Batch:
    """Return examples as one padded batch of token ids, ``(count, tokens)``, where the model is.

    Args:
        data: A task, of which training rows are drawn, or texts, of which the first are taken.
        count: The number of examples, at least 2.
        model: The model that reads them: it determines the tokenizer, the order of the labels and
            the largest number of tokens.
        seed: Seed of the rows drawn from a task.
        at_most: Accept fewer examples than `count`.

    Raises:
        ValueError: There are fewer examples than `count`, or `count` is below 2.
    """
    if isinstance(data, LanguageModelingTask):
        # Its examples are chunks of the text, of which a row can have several or a part.
        tokenizer = data.tokenizer_of(model)
        chunks = data.training_rows(model, tokenizer)
        count = _checked_count(count, len(chunks), at_most)
        order = torch.randperm(len(chunks), generator=torch.Generator().manual_seed(seed))
        batch = data.collator(tokenizer)([chunks[int(i)] for i in order[:count]])
    elif isinstance(data, Task):
        few = data.subset(train=_checked_count(count, len(data.train), at_most), seed=seed)
        tokenizer = few.tokenizer_of(model)
        rows, collate = few.training_rows(model, tokenizer), few.collator(tokenizer)
        batch = collate([rows[i] for i in range(len(rows))])
    else:
        texts = list(data[: _checked_count(count, len(data), at_most)])
        tokenizer = tokenizer_for(model)
        tokens = tokenizer(texts, truncation=True, max_length=position_limit(model))
        listed = [{name: tokens[name][i] for name in tokens} for i in range(len(texts))]
        batch = DataCollatorWithPadding(tokenizer)(listed)
    place = next(model.parameters()).device
    return {name: values.to(place) for name, values in batch.items()}


def _checked_count(count: int, available: int, at_most: bool) -> int:
    count = min(count, available) if at_most else count
    if not 2 <= count <= available:
        raise ValueError(
            f"examples is {count}: from 2 to {available}, the number of those given, is accepted."
        )
    return count


def pick(batch: Batch, rows: Tensor) -> Batch:
    """Return some examples of a batch, without the padding that they all share."""
    chosen = {name: values[rows] for name, values in batch.items()}
    mask = chosen.get("attention_mask")
    if mask is None:
        return chosen
    used = mask.any(0).nonzero()
    first, end = int(used[0]), int(used[-1]) + 1
    return {n: v[:, first:end] if v.shape == mask.shape else v for n, v in chosen.items()}


def _inputs(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != "labels"}


def adapter_parameters(model: PeftModel) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the active digital adapter and the task head, by name."""
    prefix = str(model.base_model.prefix)
    active = f".{model.active_adapter}."
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if active in f"{name}." and (prefix in name or ".modules_to_save." in name)
    ]


def check_deployed(deployment: Deployment, model: nn.Module | None) -> PeftModel:
    """Return the model on a chip whose adapter is to be fitted: by default ``deployment.model``.

    Raises:
        ValueError: The adapter is folded, programmed or absent.
    """
    model = deployment.model if model is None else model
    if deployment.placement != "digital" or not isinstance(model, PeftModel):
        raise ValueError(
            f"The placement is {deployment.placement!r} and the model a {type(model).__name__}: "
            "only a digital PEFT adapter can be recalibrated."
        )
    if not adapter_parameters(model):
        raise ValueError("The active adapter has no parameter and no task head to recalibrate.")
    return model


def refit_rate(model: nn.Module) -> float:
    """Return the default learning rate of a fit on chips: the method's own, at most 0.01."""
    return min(ADAPTERS[kind_of(model) or "lora"].learning_rate, _LARGEST_RATE)


def count_devices(deployment: Deployment) -> int:
    """Return the number of memory devices that hold the weights on tiles."""
    weights = sum(chip_layer(layer).cells for layer in deployment.layers.values())
    return weights * (2 if deployment.card.conductance.mapping == "pair" else 1)


@contextmanager
def backward_through_targets(deployment: Deployment) -> Iterator[None]:
    """Give the layers on tiles the gradient of their target weights within the block.

    The forward pass is that of the chip, with its converters and read noise. The weights that the
    chip actually holds are unknown on hardware, so the backward pass uses the target weights:
    ``y = W_target x + (y_chip - W_target x).detach()``.
    """
    layers = list(deployment.layers.values())
    try:
        for layer in layers:
            layer.__dict__["forward"] = partial(_read, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _read(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a layer on tiles, differentiable through its target weight."""
    read = partial(type(layer).forward, layer)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return read(x)
    return StraightThrough.apply(x, chip_layer(layer).frozen, read)


def descend(
    loss: Callable[[int], Tensor],
    parameters: Sequence[nn.Parameter],
    steps: int,
    learning_rate: float,
    deployments: Sequence[Deployment] = (),
) -> Iterator[int]:
    """Minimise a loss by Adam, with warm-up and linear decay; yield the steps done after each.

    Args:
        loss: Returns the loss of a step, whose number counts from 0.
        parameters: The parameters that are fitted.
        steps: Optimiser steps.
        learning_rate: The peak learning rate.
        deployments: Chips whose layers have the gradient of their target weights.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=0.1, anneal_strategy="linear"
    )
    for step in range(steps):
        with ExitStack() as stack:
            for deployment in deployments:
                stack.enter_context(backward_through_targets(deployment))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            optimizer.zero_grad()
            loss(step).backward()
        optimizer.step()
        schedule.step()
        yield step + 1


class Teacher:
    """The digital model: a deployed model whose layers compute with their frozen weights.

    Args:
        deployment: The chip.
        model: A PEFT model on the chip, as it is before recalibration.
        hidden_weight: Weight of the hidden states in the loss; 0 for the outputs only.
    """

    def __init__(self, deployment: Deployment, model: nn.Module, hidden_weight: float) -> None:
        self._layers = list(deployment.layers.values())
        self.model = deployment.copy_model(model, own=())
        self._hidden_weight = hidden_weight

    def outputs(self, batch: Batch) -> ModelOutput:
        """Return the digital outputs for a batch."""
        with computed_digitally(self._layers), torch.no_grad():
            return self.model(**_inputs(batch), output_hidden_states=self._hidden_weight > 0)

    def loss(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the distance between a model's outputs on the chip and the digital ones.

        The Kullback-Leibler divergence of the classes (of the tokens, for a language model), or
        the squared error of a regression relative to its variance; plus `hidden_weight` times the
        squared error of each hidden state relative to its variance, summed over the layers.
        """
        target = self.outputs(batch)
        found = student(**_inputs(batch), output_hidden_states=self._hidden_weight > 0)
        tokens = batch["attention_mask"].bool()
        loss = _output_loss(found.logits, target.logits, tokens)
        if self._hidden_weight:
            pairs = zip(found.hidden_states[1:], target.hidden_states[1:], strict=True)
            errors = [_relative_error(ours[tokens], digital[tokens]) for ours, digital in pairs]
            loss = loss + self._hidden_weight * torch.stack(errors).sum()
        return loss


def _output_loss(found: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
    if found.shape[-1] == 1:
        return _relative_error(found, target)
    if found.dim() == 3:
        found, target = found[tokens], target[tokens]
    return functional.kl_div(
        found.float().log_softmax(-1), target.float().log_softmax(-1),
        log_target=True, reduction="batchmean",
    )  # fmt: skip


def _relative_error(found: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error relative to the variance of the target.

    A share of its mean square is added, as a single example has no variance.
    """
    wide = target.float()
    scale = wide.var(correction=0) + _SHARE * wide.square().mean()
    return functional.mse_loss(found.float(), wide) / scale.clamp_min(_ROUNDING)


class Fit:
    """The parameters being fitted, and the best of them on held-out examples.

    Args:
        student: The model that is fitted, on the chip.
        fitted: The examples that it is fitted to.
        held_out: The examples that decide which parameters are kept.
        loss: Returns the loss of a model on a batch.

    Attributes:
        parameters: The parameters of the adapter and the head, by name.
        losses: The losses on the held-out examples, the first before any change.
        best: The index of the smallest.
        examples_read: How many examples the chip has computed.
    """

    def __init__(
        self,
        student: PeftModel,
        fitted: Batch,
        held_out: Batch,
        loss: Callable[[nn.Module, Batch], Tensor],
    ) -> None:
        self.student, self.fitted, self.held_out = student, fitted, held_out
        self._loss = loss
        self.parameters = dict(adapter_parameters(student))
        self.losses: list[float] = []
        self.best = 0
        self.examples_read = 0
        self._first = self._state()
        self._best = self._first
        self.evaluate()

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch on the chip."""
        self.examples_read += len(next(iter(batch.values())))
        return self._loss(self.student, batch)

    def read(self, batch: Batch) -> None:
        """Run a batch on the chip, for what hooks do with it."""
        self.examples_read += len(next(iter(batch.values())))
        with torch.no_grad():
            self.student(**_inputs(batch))

    def evaluate(self) -> None:
        """Measure the held-out loss, and remember the parameters if it is the smallest so far."""
        with torch.no_grad():
            self.losses.append(float(self.loss(self.held_out)))
        # Differences within float32's rounding are no improvement.
        if self.losses[-1] < self.losses[self.best] - _ROUNDING:
            self.best, self._best = len(self.losses) - 1, self._state()

    def restart(self) -> None:
        """Restore the parameters as they were at first."""
        self._restore(self._first)

    def finish(self) -> list[Tensor]:
        """Restore the best parameters; return those that differ from the first."""
        self._restore(self._best)
        return [p for n, p in self._best.items() if not torch.equal(p, self._first[n])]

    def _state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])
