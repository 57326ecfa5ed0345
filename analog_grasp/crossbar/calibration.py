"""Calibration on data: static ranges of converters, and factors that rescale inputs and weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from analog_grasp.crossbar.chip_layer import ChipLayer, chip_layer
from analog_grasp.crossbar.forward_hooks import computed_digitally
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.crossbar.mapping import input_scale

type RangeRule = float | Literal["least-error"]
"""The rule for an input range: a percentile of the inputs, or least squared error of the DAC."""

# Magnitudes stored per layer and pass: enough for a percentile, few enough for the memory.
_LARGEST_SAMPLE = 1 << 16
# The bins of magnitudes for the least error: 16 to an octave, from 2^-40 to 2^24.
_OCTAVES, _PER_OCTAVE = (-40, 24), 16


def observed_ranges(
    layers: Mapping[str, nn.Module], observe: Callable[[], object], rule: RangeRule
) -> dict[str, float]:
    """Return a DAC range for each layer from its inputs in digital forward passes.

    Inputs are those of the tiles, after rescaling, and without tokens that are computed exactly.

    Args:
        layers: Layers on tiles, by name.
        observe: Runs the model on data.
        rule: A percentile of the magnitudes, 100 for the maximum; or ``"least-error"``, the range
            with the least mean squared error of clipping and rounding to the card's DAC.

    Returns:
        The ranges of the layers that were run and had an input other than 0, by name.

    Raises:
        ValueError: The percentile is not above 0 and at most 100, or the card has an exact DAC,
            for which no range has an error.
    """
    summarise, choose = _rule(rule, layers, "dac_bits")
    seen = _observed(layers, observe, lambda layer, x: summarise(x))
    found = {name: choose(each) for name, each in seen.items()}
    return {name: size for name, size in found.items() if size > 0}


def observed_output_ranges(
    layers: Mapping[str, nn.Module], observe: Callable[[], object], rule: RangeRule
) -> dict[str, list[list[float]]]:
    """Return an ADC range for each tile from what its targets give in digital forward passes.

    Args:
        layers: Layers on tiles of class `CrossbarLinear`, by name.
        observe: Runs the model on data.
        rule: As in `observed_ranges`, of the outputs and the card's ADC.

    Returns:
        For each layer that was run, by name, the ranges of the tiles of each part of the inputs, at
        most that of the card; it is that of the card for tiles whose outputs are all 0.

    Raises:
        ValueError: As `observed_ranges`.
    """
    _card_bits(layers, "adc_bits")
    summarise, choose = _rule(rule, layers, "adc_bits")

    def outputs(layer: ChipLayer, x: Tensor) -> list[list[Tensor]]:
        parts = cast(CrossbarLinear, layer).tile_outputs(x.reshape(-1, x.shape[-1]))
        return [[summarise(tile) for tile in part] for part in parts]

    found = {}
    for name, passes in _observed(layers, observe, outputs).items():
        largest = cast(Any, chip_layer(layers[name]).card.converters).output_range
        found[name] = [
            [min(choose(tile) or largest, largest) for tile in zip(*part, strict=True)]
            for part in zip(*passes, strict=True)
        ]
    return found


def _rule(
    rule: Any, layers: Mapping[str, nn.Module], converter: str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Sequence[Tensor]], float]]:
    """Return the summary of a pass by which a rule chooses a range, and the choice."""
    if rule == "least-error":
        bits = _card_bits(layers, converter)
        return _histogram, lambda seen: _least_error(sum(seen), bits)
    if not isinstance(rule, int | float) or not 0 < rule <= 100:
        raise ValueError(
            f"The percentile for a range is {rule}: it should be above 0 and at most 100, which is "
            "the maximum; or 'least-error'."
        )
    return partial(_sample, percentile=rule), lambda seen: _percentile(torch.cat(list(seen)), rule)


def rescale_layers(
    layers: Mapping[str, nn.Module], observe: Callable[[], object], exponent: float
) -> None:
    """Rescale the inputs and weights of layers on tiles by the inputs in digital forward passes.

    Args:
        layers: Layers on tiles, by name; those without an input are left as they are.
        observe: Runs the model on data.
        exponent: a of `input_scale`.

    Raises:
        ValueError: The exponent is not from 0 to 1.
    """
    if not 0 <= exponent <= 1:
        raise ValueError(f"The exponent of rescaling is {exponent}: it should be from 0 to 1.")

    def largest(_: ChipLayer, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).abs().amax(0)

    for name, maxima in _observed(layers, observe, largest, scaled=False).items():
        layer = chip_layer(layers[name])
        layer.rescale(input_scale(torch.stack(maxima).amax(0), layer.frozen, exponent))


def input_scales(layers: Mapping[str, nn.Module]) -> dict[str, list[float]]:
    """Return the factors of the layers that were rescaled, by name."""
    scales = {name: chip_layer(layer).input_scale for name, layer in layers.items()}
    return {name: scale.tolist() for name, scale in scales.items() if scale is not None}


def set_input_scales(
    layers: Mapping[str, nn.Module], scales: Mapping[str, Sequence[float]]
) -> None:
    """Rescale layers by the factors of `input_scales`."""
    for name, scale in scales.items():
        chip_layer(layers[name]).rescale(torch.tensor(scale, dtype=torch.float32))


def _observed[T](
    layers: Mapping[str, nn.Module],
    observe: Callable[[], object],
    measure: Callable[[ChipLayer, Tensor], T],
    scaled: bool = True,
) -> dict[str, list[T]]:
    """Return a measure of the inputs of each layer, one per pass with an input."""
    seen: dict[str, list[T]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x, layer = inputs[0].detach().float(), chip_layer(module)
            if scaled and layer.input_scale is not None:
                x = x / layer.input_scale
            if layer.exact_at is not None and x.dim() == 3:
                others = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
                others[torch.arange(len(x)), layer.exact_at] = False
                x = x[others]
            if x.numel():
                seen.setdefault(name, []).append(measure(layer, x))

        return hook

    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    try:
        with computed_digitally(layers.values()), torch.no_grad():
            observe()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _sample(x: Tensor, percentile: float) -> Tensor:
    """Return magnitudes: the largest for the percentile 100, else evenly spaced ones."""
    magnitudes = x.abs().flatten()
    if percentile == 100:
        return magnitudes.max()[None]
    return magnitudes[:: -(-len(magnitudes) // _LARGEST_SAMPLE)]


def _percentile(values: Tensor, percentile: float) -> float:
    """Return a percentile by sorting: torch.quantile does not take tensors of this size."""
    return float(values.kthvalue(max(math.ceil(len(values) * percentile / 100), 1)).values)


def _card_bits(layers: Mapping[str, nn.Module], converter: str) -> int:
    """Return the bits of a converter of the card, "dac_bits" or "adc_bits".

    Raises:
        ValueError: The converter is exact.
    """
    card = chip_layer(next(iter(layers.values()))).card
    bits = getattr(card.converters, converter, None)
    if bits is None:
        kind = converter.removesuffix("_bits").upper()
        raise ValueError(
            f"The card {card.name} has an exact {kind}, for which every range has the same error: "
            f"give a percentile, or a card with {converter}."
        )
    return cast(int, bits)


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
    low, high = _OCTAVES
    edges = torch.linspace(low, high, len(counts) + 1, dtype=torch.float64).exp2()
    middle = (edges[1:] * edges[:-1]).sqrt()
    top = int(counts.nonzero().max())
    # Ranges at the upper edge of a bin, down to a thousandth of the largest input.
    candidates = edges[max(top + 2 - 10 * _PER_OCTAVE, 1) : top + 2]
    step = (candidates / (2 ** (bits - 1) - 1))[:, None]
    rounded = torch.where(middle < step / 2, middle.square(), step.square() / 12)
    clipped = (middle - candidates[:, None]).clamp(min=0).square()
    error = (counts * torch.where(middle > candidates[:, None], clipped, rounded)).sum(1)
    return float(candidates[error.argmin()])
