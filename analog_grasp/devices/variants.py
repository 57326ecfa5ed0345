"""Variants of a card: other converters, tile and range, faults, and the die of one chip."""

from typing import TYPE_CHECKING, Any, TypedDict

import torch

from analog_grasp.devices.curve import Curve
from analog_grasp.devices.schema import (
    Converters,
    LogarithmicRead,
    PowerLawDrift,
    Read,
    RelativeRead,
    RelaxationDrift,
    TabulatedDrift,
)
from analog_grasp.kernels.rng import normal
from analog_grasp.utils.seed import derive_seed

if TYPE_CHECKING:
    from analog_grasp.devices.card import DeviceCard

# For a card that comes without converters: aihwkit's range and scaling, as the shipped cards have.
_CONVERTERS = Converters(output_range=12.0, input_scaling="abs_max", bound_management="iterative")


class Changes(TypedDict, total=False):
    """What `DeviceCard.with_` changes; what is not named stays as the card has it.

    A card without converters gets, with the first of them, the range and scaling that the shipped
    cards have. Spreads that a card states for a reference g_max follow `g_max`.
    """

    dac_bits: int
    """Resolution of the inputs; 0 for an exact DAC."""
    adc_bits: int
    """Resolution of the outputs; 0 for an exact ADC."""
    output_noise: float
    """Standard deviation of the output noise; see `Converters`."""
    tile_size: int | tuple[int, int]
    """Weights a side, or rows and columns."""
    g_max: float | str
    """The largest conductance: µS, or text such as "30 uS"."""
    die_to_die: float
    """Relative standard deviation, from chip to chip, of the means and of the spreads alike."""
    stuck_off: float
    """Fraction of the devices stuck at g_min."""
    stuck_on: float
    """Fraction of the devices stuck at g_max."""


def changed_sections(card: "DeviceCard", changes: Changes) -> dict[str, Any]:
    """The sections of `card` that `changes` touch, as data still to be checked.

    Raises:
        TypeError: if there is no such change.
    """
    unknown = sorted(set(changes) - set(Changes.__annotations__))
    if unknown:
        raise TypeError(
            f'"{unknown[0]}" is nothing that a card can be changed in: '
            f"use any of {', '.join(Changes.__annotations__)}."
        )
    sections: dict[str, Any] = {}
    wanted: dict[str, Any] = dict(changes)
    converters = {key: wanted[key] for key in Converters.model_fields if key in wanted}
    for bits in ("dac_bits", "adc_bits"):
        if converters.get(bits) == 0:
            converters[bits] = None
    if converters:
        sections["converters"] = {**(card.converters or _CONVERTERS).model_dump(), **converters}
    if "tile_size" in changes:
        size = changes["tile_size"]
        rows, columns = size if isinstance(size, tuple) else (size, size)
        sections["tile"] = {"rows": rows, "columns": columns}
    if "g_max" in changes:
        g_max = changes["g_max"]
        sections["conductance"] = {
            "g_min": f"{card.conductance.g_min!r} uS",
            "g_max": g_max if isinstance(g_max, str) else f"{g_max!r} uS",
            "mapping": card.conductance.mapping,
        }
    if "die_to_die" in changes:
        sections["die_to_die"] = dict.fromkeys(("mean", "spread"), changes["die_to_die"])
    stuck = {key: wanted[f"stuck_{key}"] for key in ("off", "on") if f"stuck_{key}" in wanted}
    if stuck:
        sections["stuck"] = {**(card.stuck.model_dump() if card.stuck else {}), **stuck}
    return sections


def die_sections(card: "DeviceCard", chip: int) -> dict[str, Any]:
    """The sections of `card` as they are on the die of chip instance `chip`; see `DieToDie`."""
    if card.die_to_die is None:
        return {}
    key = derive_seed(chip, "die-to-die")
    first, second = normal(key, (2,), device="cpu", dtype=torch.float64).tolist()
    means = max(1.0 + card.die_to_die.mean * first, 0.0)
    spreads = max(1.0 + card.die_to_die.spread * second, 0.0)
    return {
        "die_to_die": None,
        "programming": _scaled(card.programming, spreads),
        "short_term": _scaled(card.short_term, spreads),
        "drift": _drift(card, means, spreads),
        "read": _read(card.read, spreads),
    }


def _scaled[C: Curve](curve: C | None, factor: float) -> C | None:
    return None if curve is None else curve.scaled(factor)


def _drift(card: "DeviceCard", means: float, spreads: float) -> Any:
    drift = card.drift
    if isinstance(drift, PowerLawDrift):
        curves = {"nu_mean": drift.nu_mean.scaled(means), "nu_std": drift.nu_std.scaled(spreads)}
        return drift.model_copy(update=curves)
    if isinstance(drift, TabulatedDrift):
        table = tuple(
            row.scaled(spreads).model_copy(update={"shift": _scaled(row.shift, means)})
            for row in drift.table
        )
        return drift.model_copy(update={"table": table})
    if isinstance(drift, RelaxationDrift):
        pairs = {
            "mean": tuple(means * value for value in drift.mean),
            "std": tuple(spreads * value for value in drift.std),
        }
        return drift.model_copy(update=pairs)
    return None


def _read(read: Read | None, spreads: float) -> Read | None:
    if isinstance(read, RelativeRead):
        return read.model_copy(update={"q": read.q.scaled(spreads)})
    if isinstance(read, LogarithmicRead):
        return read.model_copy(update={"k": read.k * spreads})
    return None
