"""Mapping of a weight to tiles: splitting, column scales, clipping, rescaling of the inputs."""

import functools
import math
from typing import Literal, cast

import torch
from torch import Tensor

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.profile import profile
from analog_grasp.utils.seed import derive_seed

type Clip = float | Literal["least-error"]
"""Clipping of weights: at a multiple of a column's standard deviation, or by least error."""

# The time at which the error of a clipped column is least.
_CLIP_TIME = "1d"
# Candidates for the largest weight of a column, relative to the largest one that it has.
_CANDIDATES = torch.linspace(1.0, 0.2, 33)
# Bins of the magnitudes of a column, by which its error is computed.
_BINS = 256


def check_clip(clip: object) -> None:
    """Raise ValueError if a value is no `Clip`.

    Example:
        >>> check_clip(2.5)
    """
    number = isinstance(clip, int | float) and not isinstance(clip, bool)
    if clip != "least-error" and not (number and 0 < cast(float, clip) < math.inf):
        raise ValueError(
            f"clip is {clip!r}: it should be a number of standard deviations above 0, or "
            "'least-error'."
        )


def column_scale(
    weight: Tensor, clip: Clip | None = None, card: DeviceCard | None = None
) -> Tensor:
    """Return the weight of each column that is mapped to 1, float32; 1 for a column of zeros.

    A column is a bit line, one output. Divided by the scale and clipped, its weights lie in
    [-1, 1].

    Args:
        weight: The weights of the tiles that share their inputs, ``(D_out, width)``.
        clip: None for the largest magnitude; a number for at most so many standard deviations;
            ``"least-error"`` for the candidate of least mean squared error.
        card: The device, which ``"least-error"`` requires: its mean and standard deviation after a
            day, with the mean drift compensated.

    Returns:
        ``(D_out,)``.

    Example:
        >>> column_scale(torch.tensor([[0.5, -2.0], [0.0, 0.0]]))
        tensor([2., 1.])
    """
    # Not abs(), which would copy the weight.
    scale = torch.maximum(weight.amax(1), -weight.amin(1)).float()
    if clip == "least-error":
        assert card is not None
        scale = scale * _least_error(weight.float(), scale, card)
    elif clip is not None:
        scale = torch.minimum(scale, clip * weight.float().std(1, correction=0))
    return torch.where(scale > 0, scale, 1.0)


def _least_error(weight: Tensor, largest: Tensor, card: DeviceCard) -> Tensor:
    """Return the best of the candidates for each column, ``(D_out,)``, from its histogram."""
    unit = weight / torch.where(largest > 0, largest, 1.0)[:, None]
    bins = unit.abs_().mul_(_BINS).long().clamp_(max=_BINS - 1)
    bins += _BINS * torch.arange(len(weight), device=weight.device)[:, None]
    counts = torch.bincount(bins.flatten(), minlength=_BINS * len(weight)).view(-1, _BINS).float()
    errors = [counts @ squares.to(counts.device) for squares in _squared_errors(card)]
    return _CANDIDATES.to(weight.device)[torch.stack(errors).argmin(0)]


@functools.lru_cache(maxsize=64)
def _squared_errors(card: DeviceCard) -> list[Tensor]:
    """Return the squared error of the weights of each bin, ``(_BINS,)``, for each candidate."""
    noise = profile(card, "0s" if card.drift is None else _CLIP_TIME)
    # That of the drift compensation.
    gain = float((noise.values**2).sum() / (noise.values * noise.mean).sum())
    middle = (torch.arange(_BINS) + 0.5) / _BINS
    errors = []
    for candidate in _CANDIDATES.tolist():
        squares = torch.zeros_like(middle)
        for sign in (1, -1):
            stored = sign * (middle / candidate).clamp(max=1)
            bias = sign * middle - candidate * gain * noise.mean_at(stored)
            squares += bias.square() + (candidate * gain * noise.std_at(stored)).square()
        errors.append(squares)
    return errors


def tile_seed(chip: int, layer: str, rows: slice, columns: slice) -> int:
    """Return the seed of the devices of one tile of a chip instance."""
    return derive_seed(chip, layer, rows.start, columns.start)


def parts(size: int, largest: int) -> list[slice]:
    """Split an axis as aihwkit does: into parts as even as possible, the larger ones first."""
    count = math.ceil(size / largest)
    ends = [-(-size * i // count) for i in range(count + 1)]
    return [slice(*ends[i : i + 2]) for i in range(count)]


def input_scale(largest_input: Tensor, weight: Tensor, exponent: float) -> Tensor:
    """Return the factor r of each input feature for which ``W diag(r)`` is programmed.

    ``r_k = max|x_k|^a / max_j |w_jk|^(1-a)``; the tiles are fed with ``x / r``. With a = 1 all
    inputs have the same largest value, with a = 0 all features the same largest weight.

    Args:
        largest_input: The largest magnitude of each feature, ``(D,)``; a feature that was always 0
            counts as the smallest of the others.
        weight: The frozen weight, ``(D_out, D)``.
        exponent: a, from 0 to 1.

    Returns:
        ``(D,)``, float32, of geometric mean 1; all 1 where no input was seen.

    Source:
        NORA (DATE 2025), equation for the smoothing factor; the mean of 1 is this project's choice,
        and has no effect, as columns and inputs are scaled.

    Example:
        >>> input_scale(torch.tensor([8.0, 0.5]), torch.tensor([[1.0, 4.0]]), 0.5)
        tensor([2.8284, 0.3536])
    """
    seen = _positive(largest_input.float())
    weights = _positive(torch.maximum(weight.amax(0), -weight.amin(0)).float())
    log = exponent * seen.log() - (1 - exponent) * weights.log()
    return (log - log.mean()).exp()


def _positive(values: Tensor) -> Tensor:
    """Return values with the smallest positive one in place of zeros; 1 if there is none."""
    positive = values[values > 0]
    return torch.where(values > 0, values, positive.min() if len(positive) else 1.0)
