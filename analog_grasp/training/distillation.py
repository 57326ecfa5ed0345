"""Distillation of the digital model into an adapter on chips: loss, fit, second stage.

In the second stage of training, chips that no measurement uses are programmed and aged, and the
adapter is fitted so that its outputs on them match the digital ones. The chip changes every few
steps, so that the adapter corrects the change that all chips of a device share, not the errors of
one chip.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional
from transformers.modeling_outputs import ModelOutput

from analog_grasp.adapters.registry import ADAPTERS, kind_of, own_learning_rate
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.crossbar.chip_layer import ChipLayer, computed_digitally
from analog_grasp.devices.ages import AgeRange, Ages, draw, parse_ages
from analog_grasp.tasks import Task
from analog_grasp.training.adapter_parameters import (
    adapter_parameters,
    check_adapter,
    set_parameters,
)
from analog_grasp.training.converter_loop import StraightThrough
from analog_grasp.training.examples import Batch, count_of, draw_batches, draw_examples, pick
from analog_grasp.training.learning_rates import SIZE_ROWS, input_sizes, one_output, rate_factors
from analog_grasp.training.weight_noise import fits_bfloat16
from analog_grasp.utils.errors import check_finite, check_whole
from analog_grasp.utils.hooks import replaced_forward
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import SHIFT_LR_RATIO

HIDDEN_WEIGHT = 0.3
"""Default weight of the hidden states in the distillation loss."""
STEPS = 300
"""Default number of optimiser steps of the second stage."""
# Of an adapter that has learned its task: half of what GRASP learns the task with.
_LARGEST_RATE = 1e-2
_ROUNDING = 1e-6
_SHARE = 1e-3
# Digital outputs are kept up to this size in bytes, and computed for every batch beyond it.
_LARGEST_TARGETS = 2**30
_TARGET = "target "
# Of the second stage; 32 examples per step gave the same accuracy.
_BATCH_SIZE = 16
# Digital outputs are computed for so many examples at once.
_TARGETS_AT_ONCE = 32
_STEPS_PER_CHIP = 3
# Beyond the seeds of a study's chips, so that no simulated chip is one that is measured.
_FIRST_CHIP = 2**33


def inputs_of(batch: Batch) -> Batch:
    """Return the inputs of a model in a batch."""
    return {
        name: values
        for name, values in batch.items()
        if name != "labels" and not name.startswith(_TARGET)
    }


def has_targets(batch: Batch) -> bool:
    """Return whether a batch has the digital outputs for its examples."""
    return f"{_TARGET}0" in batch


def refit_rate(model: nn.Module) -> float:
    """Return the default learning rate of a fit on chips: the method's own, at most 0.01."""
    return min(ADAPTERS[kind_of(model) or "lora"].learning_rate, _LARGEST_RATE)


@contextmanager
def backward_through_targets(deployments: Sequence[Deployment]) -> Iterator[None]:
    """Give the layers on tiles the gradient of their target weights within the block.

    The forward pass is that of the chip, with its converters and read noise. The weights that the
    chip actually holds are unknown on hardware, so the backward pass uses the target weights:
    ``y = W_target x + (y_chip - W_target x).detach()``. All deployments are of the same model.
    """
    targets: dict[str, Tensor] = {}
    functions: dict[nn.Module, Callable[..., Tensor]] = {}
    for name, layer in ((n, layer) for each in deployments for n, layer in each.layers.items()):
        if name not in targets:
            frozen = layer.frozen
            with torch.inference_mode(False):
                targets[name] = frozen.bfloat16() if fits_bfloat16(frozen) else frozen
        functions[layer] = partial(_read, layer, targets[name])
    with replaced_forward(functions):
        yield


def _read(layer: nn.Module, target: Tensor, x: Tensor, add_bias: bool = True) -> Tensor:
    """Return the output of a layer on tiles, differentiable through its target weight."""
    read = partial(type(layer).forward, layer, add_bias=add_bias)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return read(x)
    return StraightThrough.apply(x, target, read)


def descend(
    loss: Callable[[int], Tensor],
    parameters: Sequence[nn.Parameter],
    steps: int,
    learning_rate: float,
    deployments: Sequence[Deployment] = (),
    rates: Mapping[nn.Parameter, float] = {},
) -> Iterator[int]:
    """Minimise a loss by Adam, with warm-up and linear decay; yield the steps done after each.

    Args:
        loss: Returns the loss of a step, whose number counts from 0.
        parameters: The parameters that are fitted.
        steps: Optimiser steps.
        learning_rate: The peak learning rate.
        deployments: Chips whose layers have the gradient of their target weights.
        rates: What multiplies the learning rate of some of the parameters.
    """
    groups = defaultdict(list)
    for parameter in parameters:
        groups[learning_rate * rates.get(parameter, 1.0)].append(parameter.requires_grad_(True))
    optimizer = torch.optim.Adam([{"params": members, "lr": r} for r, members in groups.items()])
    # A warm-up of at least half a step, as OneCycleLR divides by its length.
    warm_up = max(0.1, 1.5 / (steps + 1))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, list(groups), total_steps=steps + 1, pct_start=warm_up, anneal_strategy="linear"
    )
    with backward_through_targets(deployments):
        for step in range(steps):
            with torch.inference_mode(False), torch.enable_grad():
                optimizer.zero_grad()
                loss(step).backward()
            optimizer.step()
            schedule.step()
            yield step + 1


class Teacher:
    """A digital model whose outputs another one learns.

    Args:
        model: A digital model in evaluation mode, or a deployed one.
        hidden_weight: Weight of the hidden states in the loss; 0 for the outputs only.
        layers: The layers of a deployed model, which compute with their frozen weights.
    """

    def __init__(
        self, model: nn.Module, hidden_weight: float, layers: Sequence[ChipLayer] = ()
    ) -> None:
        self.model = model
        self._hidden_weight = hidden_weight
        self._layers = layers

    @classmethod
    def of_chip(cls, deployment: Deployment, model: nn.Module, hidden_weight: float) -> "Teacher":
        """Return the digital model of a PEFT model on a chip, as it is before recalibration."""
        layers = list(deployment.layers.values())
        return cls(deployment.copy_model(model, own=()), hidden_weight, layers)

    def outputs(self, batch: Batch, **options: Any) -> ModelOutput:
        """Return the digital outputs for a batch; `options` are those of the model."""
        options = {"output_hidden_states": self._hidden_weight > 0} | options
        with computed_digitally(self._layers), torch.no_grad():
            return self.model(**inputs_of(batch), **options)

    def rate_factors(
        self, student: nn.Module, batch: Batch, learning_rate: float, shift_lr_ratio: float = 1.0
    ) -> dict[nn.Parameter, float]:
        """Return the factors on a student's learning rate; sizes of inputs are of a few rows."""
        few = pick(batch, torch.arange(min(count_of(batch), SIZE_ROWS)))
        run = partial(self.outputs, few, output_hidden_states=False, **one_output(self.model))
        sizes = input_sizes(self.model, run)
        return rate_factors(student, sizes, learning_rate, shift_lr_ratio)

    def with_targets(self, batch: Batch) -> Batch:
        """Return a batch with its targets, which `pick` selects together with the examples."""
        found = self.outputs(batch)
        hidden = _hidden_states(found) if self._hidden_weight else ()
        count = batch["attention_mask"].shape[1]
        # Without a prompt's virtual tokens, `pick` removes the padding of targets per token too.
        return batch | {
            f"{_TARGET}{i}": values[:, -count:] if values.dim() > 2 else values
            for i, values in enumerate((found.logits, *hidden))
        }

    def prepared(self, batch: Batch, reads: int | None = None) -> Batch:
        """Return all examples with their targets, or without them if these need much memory.

        Without them too if so many `reads` of an example use none of them twice.
        """
        count = count_of(batch)
        if has_targets(batch) or (reads is not None and count >= reads):
            return batch
        first = self.with_targets({n: values[:1] for n, values in batch.items()})
        size = sum(v.nbytes for n, v in first.items() if n.startswith(_TARGET))
        if size * count > _LARGEST_TARGETS:
            return batch
        starts = range(0, count, _TARGETS_AT_ONCE)
        chunks = [{n: v[i : i + _TARGETS_AT_ONCE] for n, v in batch.items()} for i in starts]
        parts = [self.with_targets(chunk) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def loss(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the distance between a model's outputs, such as those on a chip, and these.

        The Kullback-Leibler divergence of the classes (of the tokens, for a language model; of each
        label, where a text can have several), or the squared error of a regression relative to its
        variance; plus `hidden_weight` times the squared error of each hidden state relative to its
        variance, summed over the layers.
        """
        batch = batch if has_targets(batch) else self.with_targets(batch)
        found = student(**inputs_of(batch), output_hidden_states=self._hidden_weight > 0)
        tokens = batch["attention_mask"].bool()
        # A distributed training wraps the student, whose configuration the wrapper does not have.
        bare = getattr(student, "module", student)
        several = "multi_label_classification" in problem_types(self.model, bare)
        loss = _output_loss(found.logits, batch[f"{_TARGET}0"], tokens, several)
        if self._hidden_weight:
            errors = [
                _relative_error(of_tokens(ours, tokens), of_tokens(batch[f"{_TARGET}{i}"], tokens))
                for i, ours in enumerate(_hidden_states(found), 1)
            ]
            loss = loss + self._hidden_weight * torch.stack(errors).sum()
        return loss


def _hidden_states(output: ModelOutput) -> tuple[Tensor, ...]:
    """Return the hidden state after each layer, of an encoder and then of its decoder."""
    if hidden := getattr(output, "hidden_states", None):
        return tuple(hidden[1:])
    encoder, decoder = output["encoder_hidden_states"], output["decoder_hidden_states"]
    return (*encoder[1:], *decoder[1:])


def problem_types(*models: nn.Module) -> list[str]:
    """Return the different problem types that models state; none is stated before a training."""
    found = [getattr(getattr(each, "config", None), "problem_type", None) for each in models]
    return list(dict.fromkeys(filter(None, found)))


def of_tokens(values: Tensor, tokens: Tensor) -> Tensor:
    """Return the values at the tokens of the examples, ``(N, D)``.

    Args:
        values: ``(B, P + T, D)``: after those of P virtual tokens of a prompt, if there are any.
        tokens: True at tokens and False at padding, ``(B, T)``.
    """
    return values[:, -tokens.shape[1] :][tokens]


def _output_loss(found: Tensor, target: Tensor, tokens: Tensor, several: bool) -> Tensor:
    if several:
        # Each logit decides about a label of its own.
        pair = (Bernoulli(logits=logits.float()) for logits in (target, found))
        return kl_divergence(*pair).sum(-1).mean()
    if found.shape[-1] == 1:
        return _relative_error(found, target)
    if found.dim() == 3:
        found, target = of_tokens(found, tokens), of_tokens(target, tokens)
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


def distil(
    model: PeftModel,
    task: Task,
    ages: Ages,
    *,
    steps: int = STEPS,
    learning_rate: float | None = None,
    shift_lr_ratio: float = SHIFT_LR_RATIO,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
    put_on_chip: Callable[..., Deployment] = deploy,
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
        learning_rate: The peak learning rate; by default the adapter's own.
        shift_lr_ratio: The learning rate of GRASP's shifts, as in `train`.
        batch_size: Examples per step.
        seed: Seed of the examples, the chips and the ages.
        put_on_chip: Maps the model to tiles of a card, as it will be used, given them and `dtype`.
        advance: Called after every step.

    Raises:
        ValueError: A device or a time is unknown, a range is reversed, the model has no adapter
            that can be digital, a number is out of its range, or the fit diverges.

    Source:
        docs/method.md, "Recalibration".

    Example:
        ``distil(model, task, "pcm-hermes-2@0s..1y,rram-wan2022@0s..1y")``
    """
    ranges = parse_ages(ages)
    check_adapter(model)
    check_whole("steps", steps)
    check_whole("batch_size", batch_size)
    if learning_rate is not None:
        check_finite("learning_rate", learning_rate, above=True)
    check_finite("shift_lr_ratio", shift_lr_ratio, above=True)
    with torch.inference_mode(False):
        # Fast precision: its error is small compared with the noise of the chips.
        deployments = [put_on_chip(model, each.card, dtype=torch.bfloat16) for each in ranges]
        rows = draw_examples(task, max(2, steps * batch_size), model, seed, at_most=True)
        found = fit_on_chips(
            deployments, [each.model for each in deployments], rows, ranges,
            steps=steps, learning_rate=learning_rate or own_learning_rate(model),
            shift_lr_ratio=shift_lr_ratio, batch_size=batch_size, seed=seed, advance=advance,
        )  # fmt: skip
        set_parameters(model, found)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process has fitted the same adapter; machines of other kinds round otherwise.
            for _, parameter in adapter_parameters(model):
                torch.distributed.broadcast(parameter.data, 0)


def fit_on_chips(
    deployments: Sequence[Deployment],
    models: Sequence[Any],
    rows: Batch,
    ranges: Sequence[AgeRange],
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    shift_lr_ratio: float = 1.0,
    advance: Callable[[], object] = int,
    steps_per_chip: int = _STEPS_PER_CHIP,
) -> dict[str, Tensor]:
    """Return the parameters of an adapter fitted to simulated chips, by name.

    Args:
        deployments: One for each range; programmed and aged, over and over.
        models: The model of each deployment, all with the same adapter; they stay as they are.
        rows: Examples, as `draw_examples` returns them.
        ranges: The ages of each deployment.
        steps, learning_rate, batch_size, seed, shift_lr_ratio, advance: As in `distil`.
        steps_per_chip: Steps between two chips.

    Raises:
        ValueError: A parameter is NaN or infinite after the fit.
    """
    first = models[0]
    teacher = Teacher.of_chip(deployments[0], first, HIDDEN_WEIGHT)
    names = dict(adapter_parameters(first))
    students = [d.copy_model(m, own=names) for d, m in zip(deployments, models, strict=True)]
    parameters = dict(adapter_parameters(cast(PeftModel, students[0])))
    for student in students:
        _share(student, parameters)
    rows = teacher.prepared(rows, steps * batch_size)
    generator = torch.Generator().manual_seed(seed)
    index, batches = 0, torch.empty(0)

    def loss(step: int) -> Tensor:
        nonlocal index, batches
        if step % steps_per_chip == 0:
            chip = derive_seed(seed, "simulated", step // steps_per_chip)
            index, age = draw(ranges, chip)
            deployments[index].program(_FIRST_CHIP + chip % 2**31).drift_to(age)
            # Batches of similar length hold little padding.
            batches = draw_batches(rows, steps_per_chip, batch_size, generator)
        return teacher.loss(students[index], pick(rows, batches[step % steps_per_chip]))

    fitted = list(parameters.values())
    rates = teacher.rate_factors(students[0], rows, learning_rate, shift_lr_ratio)
    for _ in descend(loss, fitted, steps, learning_rate, deployments, rates):
        advance()
    found = {name: parameter.detach() for name, parameter in parameters.items()}
    if not all(bool(values.isfinite().all()) for values in found.values()):
        raise ValueError(
            f"The fit on simulated chips diverged: after {steps} steps at a learning rate of "
            f"{learning_rate:g} a parameter is NaN or infinite; a lower learning rate is required."
        )
    return found


def _share(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Make a model compute with the given parameters instead of its own of the same names."""
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = parameter
