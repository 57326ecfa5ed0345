"""What there is to choose from, shown: devices and adapters."""

import numpy as np
import torch
from rich.table import Table

from analog_grasp.cli.console import show
from analog_grasp.cli.errors import asking
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.utils.time import parse_time

# Where the spread is shown: how far up the conductance range a device is programmed.
_LEVELS = (0.1, 0.5, 1.0)
_TIMES = ("0s", "1h", "1d", "30d", "1y")
# As many devices as a profile samples: the standard error of a spread is then 0.6 %.
_SAMPLES = 16_384


def show_devices(name: str | None) -> None:
    """Every card in a line, or all of one."""
    if name is None:
        show(
            "Spread: standard deviation of devices programmed to 0.1 / 0.5 / 1.0 of the range, "
            "before any drift compensation"
        )
        show(_card_table([DeviceCard.load(each) for each in DeviceCard.names()]))
        return
    with asking():
        card = DeviceCard.load(name)
    for line in _facts(card):
        show(line)
    show(
        "\nConductance of devices programmed to 0.1, 0.5 and 1.0 of the range: mean ± standard "
        "deviation, µS, before any drift compensation"
    )
    show(_conductance_table(card))
    show(
        "\nStandard deviation of a stored weight, % of the largest weight: what --noise-target "
        f"{name}@TIME takes"
    )
    show(_weight_table(card))


def show_adapters() -> None:
    """A table of the adapters."""
    # peft takes longer to import than all that the list of devices needs.
    from analog_grasp.adapters.registry import ADAPTERS

    table = Table("name", "title", "what is trained", "where it can live", "reference")
    for name, method in ADAPTERS.items():
        places = ", ".join(method.placements)
        table.add_row(name, method.title, method.trains, places, method.reference)
    show(table)


def _card_table(cards: list[DeviceCard]) -> Table:
    table = Table(
        "name", "technology", "range, µS", "spread at 0s, µS", "spread at 1d, µS", "source"
    )
    for card in cards:
        spreads = (
            " / ".join(f"{_reached(card, level, time)[1]:.2f}" for level in _LEVELS)
            for time in ("0s", "1d")
        )
        table.add_row(card.name, card.technology, _range(card), *spreads, card.source.citation)
    return table


def _facts(card: DeviceCard) -> list[str]:
    source = card.source
    return [
        f"{card.name}: {card.title}",
        f"technology: {card.technology}",
        f"source: {source.citation}" + (f", doi:{source.doi}" if source.doi else ""),
        f"taken from: {source.location}",
        f"valid for: {card.valid_range}",
        f"not modelled: {card.not_modelled}",
        f"conductance: {_range(card)} µS, {_MAPPINGS[card.conductance.mapping]}",
        f"tile: {card.tile.rows} x {card.tile.columns} weights",
    ]


_MAPPINGS = {
    "pair": "two devices a weight, which is their difference",
    "single": "one device a weight",
    "signed": "one signed conductance a weight, which no real device can do",
}


def _conductance_table(card: DeviceCard) -> Table:
    low, high = card.conductance.g_min, card.conductance.g_max
    goals = (f"to {low + level * (high - low):.3g} µS" for level in _LEVELS)
    table = Table("time", *goals)
    for time in _TIMES:
        reached = (_reached(card, level, time) for level in _LEVELS)
        table.add_row(time, *(f"{mean:.2f} ± {std:.2f}" for mean, std in reached))
    return table


def _weight_table(card: DeviceCard) -> Table:
    table = Table("time", *(f"weight {level:g}" for level in _LEVELS))
    for time in _TIMES:
        spread = card.profile(time).std_at(np.array(_LEVELS))
        table.add_row(time, *(f"{100 * std:.2f}" for std in spread))
    return table


def _reached(card: DeviceCard, level: float, time: str) -> tuple[float, float]:
    """Mean and spread, µS, of single devices that were programmed to one conductance."""
    low, high = card.conductance.g_min, card.conductance.g_max
    target = torch.full((_SAMPLES,), low + level * (high - low), dtype=torch.float64)
    model = CardNoiseModel(card)
    programmed = model.apply_programming_noise_to_conductance(target)
    drift = model.generate_drift_coefficients(target)
    read = model.apply_drift_noise_to_conductance(programmed, drift, parse_time(time))
    return float(read.mean()), float(read.std())


def _range(card: DeviceCard) -> str:
    return f"{card.conductance.g_min:g} to {card.conductance.g_max:g}"
