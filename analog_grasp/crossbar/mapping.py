"""Mapping of weights and inputs to a tile: column scales, clipping, rescaling, converter ranges."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from analog_grasp.crossbar.chip_layer import ChipLayer, computed_digitally
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.profile import profile
from analog_grasp.utils.hooks import seen_inputs

type Clip = float | Literal["least-error"]
"""Clipping of weights: at a multiple of a column's standard deviation, or by least error."""

type RangeRule = float | Literal["least-error"]
"""The rule for a range: a percentile of the magnitudes, or the converter's least squared error."""

# The time at which the error of a clipped column is least.
_CLIP_TIME = "1d"
# Candidates for the largest weight of a column, relative to the largest one that it has.
_CANDIDATES = torch.linspace(1.0, 0.2, 33)
# Bins of the magnitudes of a column, by which its error is computed.
_BINS = 256
# Magnitudes stored per layer and pass: enough for a percentile, few enough for the memory.
_LARGEST_SAMPLE = 1 << 16
# Multiples of this fraction of a length, modulo the length, are distributed evenly over it.
_GOLDEN = (math.sqrt(5) - 1) / 2
# The bins of magnitudes for the least error: 16 to an octave, from 2^-40 to 2^24.
_OCTAVES, _PER_OCTAVE = (-40, 24), 16


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
        scale = scale * _least_clip(weight.float(), scale, card)
    elif clip is not None:
        limit = clip * weight.float().std(1, correction=0)
        # Equal weights have no spread, and no outlier.
        scale = torch.where(limit > 0, torch.minimum(scale, limit), scale)
    return torch.where(scale > 0, scale, 1.0)


def _least_clip(weight: Tensor, largest: Tensor, card: DeviceCard) -> Tensor:
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


def observed_ranges(
    card: DeviceCard,
    layers: Mapping[str, ChipLayer],
    observe: Callable[[], object],
    rule: RangeRule,
) -> dict[str, float]:
    """Return a DAC range for each layer from its inputs in digital forward passes.

    See `Deployment.calibrate`. Inputs are those of the tiles, after rescaling, and without tokens
    that are computed exactly. Layers that were not run, or had no input other than 0, have none.
    """
    summarise, choose = _rule(rule, card, "dac_bits")
    seen = _observed(layers, observe, lambda _, x: summarise(x))
    found = {name: choose(each) for name, each in seen.items()}
    return {name: size for name, size in found.items() if size > 0}


def observed_output_ranges(
    card: DeviceCard,
    layers: Mapping[str, ChipLayer],
    observe: Callable[[], object],
    rule: RangeRule,
) -> dict[str, list[list[float]]]:
    """Return an ADC range for each tile from what its targets give in digital forward passes.

    See `Deployment.calibrate_outputs`. A range is at most that of the card, which tiles keep whose
    outputs are all 0.
    """
    _card_bits(card, "adc_bits")
    summarise, choose = _rule(rule, card, "adc_bits")

    def outputs(layer: Any, x: Tensor) -> list[list[Tensor]]:
        parts = layer.tile_outputs(x.reshape(-1, x.shape[-1]))
        return [[summarise(tile) for tile in part] for part in parts]

    found = {}
    for name, passes in _observed(layers, observe, outputs).items():
        largest = cast(Any, card.converters).output_range
        found[name] = [
            [min(choose(tile) or largest, largest) for tile in zip(*part, strict=True)]
            for part in zip(*passes, strict=True)
        ]
    return found


def rescale_layers(
    layers: Mapping[str, Any], observe: Callable[[], object], exponent: float
) -> None:
    """Rescale the inputs and weights of layers by the inputs in digital forward passes.

    See `Deployment.rescale`. Layers without an input do not change.
    """
    if not 0 <= exponent <= 1:
        raise ValueError(f"The exponent of rescaling is {exponent}: it should be from 0 to 1.")
    seen = _observed(
        layers, observe, lambda _, x: x.reshape(-1, x.shape[-1]).abs().amax(0), scaled=False
    )
    for name, maxima in seen.items():
        scale = input_scale(torch.stack(maxima).amax(0), layers[name].frozen, exponent)
        layers[name].rescale(scale)


def _observed[T](
    layers: Mapping[str, ChipLayer],
    observe: Callable[[], object],
    measure: Callable[[ChipLayer, Tensor], T],
    scaled: bool = True,
) -> dict[str, list[T]]:
    """Return a measure of the inputs of each layer, one per pass with an input."""
    seen: dict[str, list[T]] = {}

    def record(name: str, layer: ChipLayer, inputs: Tensor) -> None:
        x = inputs.detach().float()
        if scaled and layer.input_scale is not None:
            x = x / layer.input_scale
        if layer.exact is not None and (place := layer.exact.places(x)) is not None:
            others = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
            others[place] = False
            x = x[others]
        if x.numel():
            seen.setdefault(name, []).append(measure(layer, x))

    with seen_inputs(layers, record), computed_digitally(layers.values()), torch.no_grad():
        observe()
    return seen


def _rule(
    rule: Any, card: DeviceCard, converter: str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Sequence[Tensor]], float]]:
    """Return the summary of a pass by which a rule chooses a range, and the choice."""
    if rule == "least-error":
        bits = _card_bits(card, converter)
        return _histogram, lambda seen: _least_error(sum(seen), bits)
    if not isinstance(rule, int | float) or isinstance(rule, bool) or not 0 < rule <= 100:
        raise ValueError(
            f"The percentile for a range is {rule!r}: it should be a number above 0 and at most "
            "100, which is the maximum; or 'least-error'."
        )
    return functools.partial(_sample, percentile=rule), lambda seen: _percentile(seen, rule)


def _sample(x: Tensor, percentile: float) -> Tensor:
    """Return magnitudes: the largest for the percentile 100, else evenly distributed ones."""
    magnitudes = x.abs().flatten()
    if percentile == 100:
        return magnitudes.max()[None]
    count = len(magnitudes)
    if count <= _LARGEST_SAMPLE:
        return magnitudes
    step = round(count * _GOLDEN)
    # With a common factor the sample would have some features and positions only.
    while math.gcd(step, count) > 1:
        step += 1
    return magnitudes[torch.arange(_LARGEST_SAMPLE, device=x.device) * step % count]


def _percentile(seen: Sequence[Tensor], percentile: float) -> float:
    # torch.quantile does not take tensors of this size.
    values = torch.cat(list(seen))
    return float(values.kthvalue(max(math.ceil(len(values) * percentile / 100), 1)).values)


def _card_bits(card: DeviceCard, converter: str) -> int:
    """Return the bits of a converter of the card; raise ValueError if it is exact."""
    bits: int | None = getattr(card.converters, converter, None)
    if bits is None:
        kind = converter.removesuffix("_bits").upper()
        raise ValueError(
            f"The card {card.name} has an exact {kind}, for which every range has the same error: "
            f"give a percentile, or a card with {converter}."
        )
    return bits


def _histogram(x: Tensor) -> Tensor:
    """Return the number of magnitudes in each bin of the logarithm; zeros are in none."""
    low, high = _OCTAVES
    logarithms = x[x != 0].abs().log2()
    bins = (high - low) * _PER_OCTAVE
    return torch.histc(logarithms.clamp(low, high), bins, low, high).double().cpu()


def _least_error(counts: Any, bits: int) -> float:
    """Return the range of least squared error for a histogram of magnitudes; 0 if it is empty."""
    if not float(counts.sum()):
        return 0.0
    edges = torch.linspace(*_OCTAVES, len(counts) + 1, dtype=torch.float64).exp2()
    middle = (edges[1:] * edges[:-1]).sqrt()
    top = int(counts.nonzero().max())
    # Ranges at the upper edge of a bin, down to a thousandth of the largest input.
    candidates = edges[max(top + 2 - 10 * _PER_OCTAVE, 1) : top + 2]
    step = (candidates / (2 ** (bits - 1) - 1))[:, None]
    rounded = torch.where(middle < step / 2, middle.square(), step.square() / 12)
    clipped = (middle - candidates[:, None]).clamp(min=0).square()
    error = (counts * torch.where(middle > candidates[:, None], clipped, rounded)).sum(1)
    return float(candidates[error.argmin()])
