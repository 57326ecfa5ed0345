"""Methods that fit the parameters of an adapter on a chip: by gradients, or layer by layer."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.nn.functional import one_hot

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.layer import GraspLinear, group_index
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.chip_layer import ChipLayer
from analog_grasp.crossbar.forward_hooks import hooks_of
from analog_grasp.training.adapter_parameters import adapter_parameters
from analog_grasp.training.distillation import Teacher, descend, has_targets, inputs_of
from analog_grasp.training.examples import Batch, count_of, pick, replace_tokens
from analog_grasp.utils.errors import check_whole
from analog_grasp.utils.hooks import seen_inputs
from analog_grasp.utils.types import RefitMethod

# Differences of losses within the rounding of the weights on tiles are no improvement.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-5, torch.bfloat16: 1e-5}
# Measurements of the held-out loss during a fit by gradients.
_EVALUATIONS = 10
# Held-out tokens, padding included, that are computed at once: the logits of a language model are
# as large as its vocabulary.
_HELD_OUT_TOKENS = 4096
# Ridges relative to the mean diagonal of the normal equations, from cautious to free.
_RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
# Shares of the way to equal statistics.
_SHARES = (0.25, 0.5, 0.75, 1.0)

_FitLayer = Callable[[str, GraspLinear, Tensor, float], tuple[Tensor, Tensor]]
"""Returns scales and shifts of a named layer from its inputs ``(N, D)`` and a strength."""


class Fit:
    """The parameters being fitted, and the best of them on held-out examples.

    Args:
        student: The model that is fitted, on the chip.
        fitted: The examples that it is fitted to.
        held_out: The examples that decide which parameters are kept.
        loss: Returns the loss of a model on a batch.
        rounding: What a loss may differ by from rounding alone.

    Attributes:
        parameters: The parameters of the adapter and the head, by name.
        examples_read: How many examples the chip has computed.

    Raises:
        ValueError: The loss on the held-out examples is NaN or infinite before the fit.
    """

    def __init__(
        self,
        student: PeftModel,
        fitted: Batch,
        held_out: Batch,
        loss: Callable[[nn.Module, Batch], Tensor],
        rounding: float,
    ) -> None:
        self.student, self.fitted = student, fitted
        self._loss, self._rounding = loss, rounding
        rows = torch.arange(count_of(held_out))
        at_once = max(1, _HELD_OUT_TOKENS // held_out["input_ids"].shape[1])
        self._held_out = [pick(held_out, some) for some in rows.split(at_once)]
        self.parameters = dict(adapter_parameters(student))
        self.examples_read = 0
        self._first = self._best = self._state()
        self._smallest = self._held_out_loss()
        if not math.isfinite(self._smallest):
            # No other loss is smaller than NaN, so that the fit would change nothing.
            raise ValueError(
                f"The loss on the held-out examples is {self._smallest} before the fit: a model "
                "with finite outputs, digital and on the chip, is required."
            )

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch on the chip."""
        self.examples_read += count_of(batch)
        return self._loss(self.student, batch)

    def read(self, reads: int) -> None:
        """Run the fitted examples on the chip, for what hooks do with so many reads of them."""
        self.examples_read += reads * count_of(self.fitted)
        with torch.no_grad():
            self.student(**inputs_of(self.fitted))

    def evaluate(self) -> None:
        """Measure the held-out loss, and remember the parameters if it is the smallest so far."""
        found = self._held_out_loss()
        if found < self._smallest - self._rounding:
            self._smallest, self._best = found, self._state()

    def restart(self) -> None:
        """Restore the parameters as they were at first."""
        self._restore(self._first)

    def finish(self) -> tuple[list[Tensor], float, float]:
        """Restore the best parameters, if they are better than the first ones.

        Both are measured once more with the same noise: the smallest of several losses is that
        with the most favourable noise as well.

        Returns:
            The parameters that differ from the first, and the losses of the first and of those
            that are kept.
        """
        before, after = (self._loss_of(state) for state in (self._first, self._best))
        if not after < before - self._rounding:
            self._restore(self._first)
            return [], before, before
        changed = [p for n, p in self._best.items() if not torch.equal(p, self._first[n])]
        return changed, before, after

    def _loss_of(self, state: dict[str, Tensor]) -> float:
        """Restore parameters, and return their held-out loss, always with the same noise."""
        self._restore(state)
        with hooks_of(self.student).first_passes():
            return self._held_out_loss()

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        losses = [float(self.loss(part)) * count_of(part) for part in self._held_out]
        return sum(losses) / sum(map(count_of, self._held_out))

    def _state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _restore(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


class Descent(NamedTuple):
    """The settings of a fit by gradients; see `recalibrate`."""

    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    deployments: Sequence[Deployment]
    """Chips whose layers have the gradient of their target weights."""
    vocabulary: Tensor | None
    """Token ids that replace others, ``(V,)``; None if the examples stay as they are."""


def fit_by_gradient(fit: Fit, teacher: Teacher, settings: Descent) -> None:
    """Minimise the loss on the fitted examples by Adam.

    Few examples have few words. In half of the examples of a step others of the vocabulary replace
    some of them, as the digital model has outputs for any text.
    """
    count, steps = count_of(fit.fitted), settings.steps
    generator = torch.Generator().manual_seed(settings.seed)

    def loss(_: int) -> Tensor:
        rows = torch.randperm(count, generator=generator)[: settings.batch_size]
        batch = pick(fit.fitted, rows)
        changed = len(rows) // 2
        if settings.vocabulary is None or not changed:
            return fit.loss(batch)
        first = {name: values[:changed] for name, values in batch.items()}
        first = replace_tokens(first, settings.vocabulary, generator)
        if has_targets(batch):
            first = teacher.with_targets(first)
        return fit.loss({name: torch.cat([first[name], v[changed:]]) for name, v in batch.items()})

    every = max(1, steps // _EVALUATIONS)
    parameters = list(fit.parameters.values())
    rate, deployments = settings.learning_rate, settings.deployments
    rates = teacher.rate_factors(fit.student, fit.fitted, rate)
    for step in descend(loss, parameters, steps, rate, deployments, rates):
        if step % every == 0 or step == steps:
            fit.evaluate()


def fit_least_squares(fit: Fit, teacher: Teacher, settings: Descent) -> None:
    """Fit the scales and shifts of every layer in closed form, for several ridges.

    With the layers before it fixed, the chip output of a layer is linear in its 2K parameters
    apart from converter rounding. Each layer is fitted to the output that the digital layer gives
    for the same inputs, with the target weights as regressors and one read of the chip.
    """
    _fit_layers(fit, lambda _, layer, x, ridge: _least_squares(layer, x, ridge), _RIDGES, reads=2)


def fit_statistics(fit: Fit, teacher: Teacher, settings: Descent) -> None:
    """Match the mean and standard deviation of each group's inputs to the digital ones.

    The difference is removed in part or in full; see `_SHARES`.
    """
    digital = _digital_inputs(teacher, fit.fitted)

    def fit_layer(name: str, layer: GraspLinear, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        return _statistics(layer, x, _vectors(digital[name], fit.fitted), share)

    _fit_layers(fit, fit_layer, _SHARES, reads=1)


class Method(NamedTuple):
    """A method of recalibration.

    Attributes:
        fit: Fits the parameters, and measures them on the held-out examples as it goes.
        by_layer: It fits the scales and shifts of GRASP, one layer after the other, to the digital
            layers, and so has neither gradients nor labels, and leaves the task head as it is.
    """

    fit: Callable[[Fit, Teacher, Descent], None]
    by_layer: bool


METHODS: dict[RefitMethod, Method] = {
    "gradient": Method(fit_by_gradient, by_layer=False),
    "least-squares": Method(fit_least_squares, by_layer=True),
    "statistics": Method(fit_statistics, by_layer=True),
}


def _fit_layers(fit: Fit, fit_layer: _FitLayer, strengths: tuple[float, ...], reads: int) -> None:
    """Fit all layers with each strength in turn, each with so many reads, and measure them."""
    layers, done = dict(_grasp_layers(fit.student)), set()

    def refit(strength: float, name: str, layer: GraspLinear, x: Tensor) -> None:
        if name in done:
            raise ValueError(
                f"The layer {name} is called several times in a forward pass, for which only "
                "the method 'gradient' is suitable."
            )
        done.add(name)
        fitted = fit_layer(name, layer, _vectors(x, fit.fitted), strength)
        for parameter, value in zip(layer.means(layer.active_adapters[0]), fitted, strict=True):
            parameter.copy_(value)

    for strength in strengths:
        fit.restart()
        done.clear()
        # One pass: a layer is fitted just before it computes, so its inputs are those of the
        # layers fitted before it.
        with seen_inputs(layers, partial(refit, strength)):
            fit.read(reads)
        fit.evaluate()


def _vectors(inputs: Tensor, batch: Batch) -> Tensor:
    """Return the input vectors of a layer without padding, ``(N, D)``."""
    # A pooler sees one vector per example, other layers one per token.
    return inputs[batch["attention_mask"].bool()] if inputs.dim() == 3 else inputs


def _grasp_layers(model: nn.Module) -> list[tuple[str, GraspLinear]]:
    """Return the layers that have the active adapter."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, GraspLinear)]
    return [(name, layer) for name, layer in layers if layer.active_adapters[0] in layer.group_of]


def _digital_inputs(teacher: Teacher, batch: Batch) -> dict[str, Tensor]:
    """Return the inputs of each layer in the digital model."""
    seen: dict[str, Tensor] = {}
    layers = dict(_grasp_layers(teacher.model))
    with seen_inputs(layers, lambda name, _, x: seen.update({name: x.detach()})):
        teacher.outputs(batch)
    return seen


def _statistics(
    layer: GraspLinear, x: Tensor, digital: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Return scales and shifts with which the inputs of each group have the digital statistics.

    Args:
        layer: The layer.
        x: Its inputs on the chip, ``(N, D)``.
        digital: Its inputs in the digital model, ``(N, D)``.
        share: The share of the difference that is removed, 0 to 1.
    """
    name = layer.active_adapters[0]
    scale, shift = layer.means(name)
    # A variance is a difference of sums.
    x, digital = x.float(), digital.float()
    groups = one_hot(layer.group_of[name], len(scale)).to(x.dtype)
    sizes = len(x) * groups.sum(0)

    def moments(v: Tensor) -> tuple[Tensor, Tensor]:
        mean = (v @ groups).sum(0) / sizes
        variance = (v.square() @ groups).sum(0) / sizes - mean.square()
        return mean, variance.clamp_min(torch.finfo(v.dtype).eps).sqrt()

    (mean, std), (digital_mean, digital_std) = moments(x), moments(digital)
    new_scale = scale * digital_std / std
    new_shift = shift + scale * digital_mean - new_scale * mean
    return scale + share * (new_scale - scale), shift + share * (new_shift - shift)


def _least_squares(layer: GraspLinear, x: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the scales and shifts that bring the chip's output to that of the target weights.

    Solves ``min |T - y - A d|^2 + ridge |d|^2`` for the change d of the 2K parameters: T is the
    output of the target weights W for the same inputs, y the chip's, and column k of A the product
    of W with the inputs of group k (scales) or with its indicator (shifts). With ``H = W^T W`` and
    ``S = x^T x``, the normal equations are sums over groups of ``S * H`` and ``H``.

    Args:
        layer: The layer.
        x: Its inputs on the chip, ``(N, D)``.
        ridge: Relative to the mean of the diagonal of ``A^T A``, for scales and shifts apart.
    """
    name = layer.active_adapters[0]
    scale, shift = layer.means(name)
    group, count = layer.group_of[name], len(scale)
    tiles: Any = layer.get_base_layer()
    if not isinstance(tiles, ChipLayer):
        return scale, shift
    weight = tiles.frozen.float()
    modulated = x * scale[group] + shift[group]
    target = modulated @ weight.T
    read = layer.base_layer(modulated)
    residual = (target - (read if tiles.bias is None else read - tiles.bias)) @ weight
    groups = one_hot(group, count).double()
    products = (weight.T @ weight).double()
    wide = x.double()
    by_scale = groups.T @ ((wide.T @ wide) * products) @ groups
    mixed = groups.T @ (wide.sum(0)[:, None] * products) @ groups
    by_shift = len(x) * (groups.T @ products @ groups)
    gram = torch.cat([torch.cat([by_scale, mixed], 1), torch.cat([mixed.T, by_shift], 1)])
    right = torch.cat([groups.T @ (wide * residual).sum(0), groups.T @ residual.sum(0).double()])
    mean = gram.diagonal().view(2, count).mean(1).repeat_interleave(count)
    damped = gram + torch.diag(ridge * mean.clamp_min(torch.finfo(torch.float64).tiny))
    change = torch.linalg.lstsq(damped, right[:, None]).solution.squeeze(1).to(scale.dtype)
    return scale + change[:count], shift + change[count:]


def check_method(method: RefitMethod, config: PeftConfig) -> None:
    """Raise ValueError where a method does not suit an adapter."""
    affine = getattr(config, "form", None) == "affine" and getattr(config, "learn_shift", False)
    if METHODS[method].by_layer and not affine:
        raise ValueError(
            f"The method {method!r} is for GRASP and StochGRASP of the form 'affine' with shifts: "
            "use 'gradient' for this adapter."
        )


def refine(model: PeftModel, groups: int) -> None:
    """Divide the groups of the active GRASP adapter into parts with their values, in place.

    The outputs stay as they are. Each part can then be fitted on its own.

    Args:
        model: The model.
        groups: The new number of groups per layer, such as a multiple of the present one.

    Raises:
        ValueError: The adapter is neither GRASP nor StochGRASP, or a new group would have features
            of several present ones.

    Example:
        ``refine(model, 384)``
    """
    name = str(model.active_adapter)
    config = model.peft_config[name]
    if not isinstance(config, GraspConfig):
        raise ValueError(
            f"groups is {groups}, which has no effect on {config.peft_type}: it applies to GRASP "
            "and StochGRASP."
        )
    check_whole("groups", groups)
    for _, layer in _grasp_layers(model):
        divided = _divided(layer, name, config, groups)
        if divided is None:
            present = int(layer.group_of[name].max()) + 1
            raise ValueError(
                f"groups is {groups}, which does not divide the adapter's {present} "
                f"{config.grouping} groups into parts: a multiple of {present} does."
            )
        layer.group_of[name], parent = divided
        for kind in layer.adapter_layer_names:
            values = getattr(layer, kind)
            if name in values:
                values[name] = nn.Parameter(
                    values[name].detach()[parent].clone(), requires_grad=values[name].requires_grad
                )
    config.groups = groups


def finest_groups(model: PeftModel) -> int | None:
    """Return the most groups per layer that `refine` can make: at most one per feature of a layer.

    None for an adapter that has no groups, or whose layers differ in their number.
    """
    name = str(model.active_adapter)
    config = model.peft_config[name]
    layers = [layer for _, layer in _grasp_layers(model)]
    present = {int(layer.group_of[name].max()) + 1 for layer in layers}
    if not isinstance(config, GraspConfig) or len(present) != 1:
        return None
    (groups,) = present
    narrowest = min(layer.in_features for layer in layers)
    for finer in range(narrowest // groups * groups, groups, -groups):
        if all(_divided(layer, name, config, finer) for layer in layers):
            return finer
    return None


def _divided(
    layer: GraspLinear, name: str, config: GraspConfig, groups: int
) -> tuple[Tensor, Tensor] | None:
    """Return the new group of each feature, and the present group of each new one.

    None if a new group would have features of several present ones.
    """
    old = layer.group_of[name]
    new = group_index(layer.in_features, groups, config.grouping, config.grouping_seed).to(
        old.device
    )
    parent = torch.zeros(groups, dtype=old.dtype, device=old.device)
    parent[new] = old
    return (new, parent) if torch.equal(parent[new], old) else None
