"""Write tolerances of frozen weights: the accuracy to which each device is programmed and verified.

A tolerance is half the width of the accepted range about a weight's target, in units of the
conductance range, which is the largest weight of a column; infinite for a single pulse without
verification. Tolerances are given by layer, broadcast to its weight ``(D_out, D)``: one for all
weights, one per group of input features as StochGRASP learns them, or two kinds of weights as in
selective verification.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import base_name, is_quantised
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.programming import WriteTolerance
from analog_grasp.utils.errors import shown, unknown_name

if TYPE_CHECKING:
    from analog_grasp.crossbar.deployment import Deployment

# The standard deviation of a uniform error within a tolerance, per tolerance.
_UNIFORM = 1 / math.sqrt(3)


def set_write_tolerances(
    deployment: "Deployment", tolerances: float | Mapping[str, float | Tensor]
) -> "Deployment":
    """Set the tolerances to which the frozen weights are written, and return the deployment.

    A chip that is programmed is programmed again, with the same seed, and aged to the same time.

    Args:
        deployment: On a card that states its program-and-verify.
        tolerances: One tolerance for all frozen weights, or a number or tensor for each layer by
            its name in the base model.

    Raises:
        ValueError: The card states no program-and-verify, or as `check_tolerances`.

    Source:
        docs/method.md, "Write tolerances".

    Example:
        ``set_write_tolerances(deploy(model, "rram-wan2022"), 0.05).program(seed=0)``
    """
    WriteTolerance(deployment.card)
    layers = _layers(deployment)
    if not isinstance(tolerances, Mapping):
        tolerances = dict.fromkeys(layers, tolerances)
    shapes = {name: layer.frozen.shape for name, layer in layers.items()}
    checked = check_tolerances(tolerances, shapes)
    for name, layer in layers.items():
        layer.write_tolerance = checked.get(name)
    return deployment.program_again()


def write_tolerances(deployment: "Deployment") -> dict[str, Tensor]:
    """Return the write tolerances that are set on a deployment, by layer."""
    layers = _layers(deployment, strict=False)
    return {n: x.write_tolerance for n, x in layers.items() if x.write_tolerance is not None}


def check_tolerances(
    tolerances: Mapping[str, float | Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return write tolerances as tensors, by layer.

    Args:
        tolerances: A number or tensor for each layer.
        shapes: The shape of the weight of each layer on tiles, ``(D_out, D)``.

    Raises:
        ValueError: A layer is unknown, or a tolerance is not a number, is not above 0, or has a
            shape that does not fit.

    Example:
        >>> check_tolerances({"dense": 0.1}, {"dense": (8, 4)})
        {'dense': tensor(0.1000)}
    """
    checked = {}
    for name, given in tolerances.items():
        if name not in shapes:
            raise ValueError(unknown_name("layer", name, shapes))
        try:
            tolerance = given if isinstance(given, Tensor) else torch.tensor(float(given))
        except (TypeError, ValueError):
            raise ValueError(
                f"The write tolerance of the layer {name} is {shown(given)}: a number or a tensor "
                "is accepted."
            ) from None
        if not bool((tolerance > 0).all()):
            raise ValueError(
                f"A write tolerance of the layer {name} is {float(tolerance.min()):g}, which is "
                "not above 0: give half the width of the accepted range, in units of the "
                "conductance range."
            )
        shape = tuple(shapes[name])
        try:
            tolerance.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"The write tolerances of the layer {name} have the shape "
                f"{tuple(tolerance.shape)}, which does not fit its weight of {shape}: give "
                "tolerances that broadcast to it."
            ) from None
        checked[name] = tolerance
    return checked


def learned_tolerances(deployment: "Deployment", factor: float = 1.0) -> dict[str, Tensor]:
    """Return the write tolerances that the StochGRASP adapter of a deployment has learned.

    A group's relative standard deviation, ``sigma_s / |mu_s|``, is that of each of its weights.
    The tolerance of the group is that of a uniform error of this size for the root mean square of
    its weights, so that small weights need no finer one.

    Args:
        deployment: With a digital StochGRASP adapter.
        factor: Multiplies every tolerance, to trade accuracy for pulses.

    Returns:
        By layer, ``(1, D)``, the same for all features of a group.

    Raises:
        ValueError: The adapter's placement is not ``"digital"``, the model has no StochGRASP layer
            on tiles, or the tiles are aihwkit's.
    """
    _layers(deployment)
    if deployment.placement != "digital":
        raise ValueError(
            f"placement is {deployment.placement!r}, but the learned standard deviations are read "
            "from a digital StochGRASP adapter: deploy it with placement='digital'."
        )
    found = {}
    for module in deployment.model.modules():
        if not isinstance(module, StochGraspLinear):
            continue
        layer: Any = module.get_base_layer()
        if isinstance(layer, CrossbarLinear):
            adapter = module.active_adapters[0]
            scale, _ = module.means(adapter)
            sigma, _ = module.sigmas(adapter)
            relative = (sigma / scale.abs().clamp(min=1e-6)).detach()
            group = module.group_of[adapter]
            square = layer.targets().square().mean(0)
            by_group = torch.zeros_like(relative).index_add_(0, group, square.to(relative))
            count = torch.bincount(group, minlength=len(relative)).clamp(min=1)
            size = (by_group / count).sqrt()
            found[layer.name] = (factor / _UNIFORM * relative * size)[group][None]
    if not found:
        raise ValueError(
            "The deployed model has no StochGRASP layer on tiles, whose learned standard "
            "deviations are write tolerances: deploy a StochGRASP adapter, or give tolerances."
        )
    return found


def selected_tolerances(
    scores: Mapping[str, Tensor], share: float, tolerance: float
) -> dict[str, Tensor]:
    """Return tolerances that verify only the weights with the highest scores.

    Args:
        scores: By layer, ``(D_out, D)``; see `magnitudes` and `sensitivities`.
        share: The share of all weights that is verified, from 0 to 1.
        tolerance: Their tolerance; the others get a single pulse.

    Raises:
        ValueError: The share is not from 0 to 1, or there are no scores.

    Source:
        Selective write-verify: Yan, Hu and Shi, SWIM, DAC 2022, arXiv 2202.08395.

    Example:
        >>> scores = {"dense": torch.tensor([[1.0, 3.0], [2.0, 0.0]])}
        >>> selected_tolerances(scores, 0.5, 0.1)["dense"]
        tensor([[   inf, 0.1000],
                [0.1000,    inf]])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: a share from 0 to 1 is accepted.")
    if not scores:
        raise ValueError("scores is empty: give the scores of at least one layer.")
    every = torch.cat([score.flatten() for score in scores.values()])
    verified = round(share * len(every))
    lowest = math.inf if not verified else every.kthvalue(len(every) - verified + 1).values
    return {
        name: torch.where(score >= lowest, tolerance, math.inf) for name, score in scores.items()
    }


def magnitudes(deployment: "Deployment") -> dict[str, Tensor]:
    """Return the magnitude of each weight by layer, in units of the column maximum."""
    return {name: layer.targets().abs_() for name, layer in _layers(deployment).items()}


def sensitivities(
    deployment: "Deployment", model: nn.Module, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return how much the loss depends on an error of each weight, by layer.

    This is the diagonal of the empirical Fisher matrix, the mean squared gradient, which stands in
    for SWIM's second derivative (choice of this project), in units of the column maximum, since
    write errors are relative to it.

    Args:
        deployment: The deployment, for the scales of its columns.
        model: The digital model; its weights do not change.
        batches: Inputs with labels, one example each.

    Returns:
        By layer, ``(D_out, D)``.

    Raises:
        ValueError: The tiles are aihwkit's, or a layer on tiles has fused or quantised weights.
    """
    on_chip = _layers(deployment)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    names = {id(module): base_name(path) for path, module in model.named_modules()}
    layers = {
        names[id(layer)]: layer
        for layer in linear
        if names[id(layer)] in on_chip and not is_quantised(layer)
    }
    if missing := next((name for name in on_chip if name not in layers), None):
        raise ValueError(
            f"The layer {missing} has no sensitivity, as its weights are fused or quantised: keep "
            "it digital (argument layers), or use magnitudes."
        )
    # Tied linear layers share their tiles, but an embedding that is tied to one stays digital.
    own = {id(x.weight): nn.Parameter(x.weight.detach()) for x in layers.values()}
    replaced = [(layer, layer.weight) for layer in linear if id(layer.weight) in own]
    weights = [own[id(layer.weight)] for layer in layers.values()]
    total = [torch.zeros_like(weight) for weight in weights]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for layer, weight in replaced:
            layer.weight = own[id(weight)]
        for batch in batches:
            loss: Tensor = cast(Any, model)(**batch).loss
            for square, gradient in zip(total, torch.autograd.grad(loss, weights), strict=True):
                square.addcmul_(gradient, gradient)
    finally:
        for layer, weight in replaced:
            layer.weight = weight
        for module in training:
            module.training = True
    scores = {}
    for (name, layer), square in zip(layers.items(), total, strict=True):
        tiles = on_chip[name]
        # The column maximum in units of the frozen weight, also of weights that are clipped.
        scale = torch.cat([s.scale[:, None].expand_as(s.weight) for s in tiles.splits], 1)
        if tiles.input_scale is not None:
            scale = scale / tiles.input_scale
        scores[name] = (square.T if isinstance(layer, Conv1D) else square) * scale.square()
    return scores


def mean_pulses(deployment: "Deployment") -> float | None:
    """Return the programming pulses per device; None if no write tolerance is set."""
    layers = _layers(deployment, strict=False)
    if all(layer.write_tolerance is None for layer in layers.values()):
        return None
    write, card = WriteTolerance(deployment.card), deployment.card
    assert card.write is not None
    total = 0.0
    for layer in layers.values():
        if layer.write_tolerance is None:
            total += card.write.pulses * layer.cells
        else:
            pulses = write.pulses(layer.write_tolerance)
            total += float(pulses.expand(layer.frozen.shape).sum())
    return total / sum(layer.cells for layer in layers.values())


def _layers(deployment: "Deployment", strict: bool = True) -> dict[str, CrossbarLinear]:
    """Return the layers on the tiles of this package, by name."""
    layers = {
        name: layer
        for name, layer in deployment.layers.items()
        if isinstance(layer, CrossbarLinear)
    }
    if strict and len(layers) < len(deployment.layers):
        raise ValueError(
            "Write tolerances need the tiles of this package, but aihwkit's are used: deploy with "
            "tile='torch'."
        )
    return layers
