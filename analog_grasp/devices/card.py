"""Device cards: one memory device as data, read from a TOML file, checked, and varied."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypedDict, Unpack, get_args

from pydantic import Field, model_validator

from analog_grasp.devices import card_names, cards_folder, check_name, is_path
from analog_grasp.devices.fields import Curve, Section, StdCurve, Text
from analog_grasp.devices.schema import (
    Circuit,
    ConductanceRange,
    Converters,
    DieToDie,
    Drift,
    LayerMapping,
    LogarithmicRead,
    PowerLawDrift,
    ProgrammedState,
    Read,
    RelativeRead,
    RelaxationDrift,
    Source,
    Stuck,
    TabulatedDrift,
    TileSize,
    WriteVerify,
)
from analog_grasp.utils.errors import CardError, shown, unknown_name
from analog_grasp.utils.io import read_toml
from analog_grasp.utils.time import format_time, parse_time

Effect = Literal["programming", "drift", "read", "converters", "circuit", "mapping"]

_NOISE_LEVEL_CARD = "gaussian"
# Of a card without converters that gets some: aihwkit's range and scaling, as in the shipped cards.
_CONVERTERS = Converters(output_range=12.0, input_scaling="abs_max", bound_management="iterative")


class Changes(TypedDict, total=False):
    """The changes that `DeviceCard.with_` accepts; everything else stays as it is.

    A card without converters gets, with the first of them, the range and scaling of the shipped
    cards. Standard deviations stated for a reference g_max scale with `g_max`.
    """

    dac_bits: int
    """Resolution of the inputs; 0 for an exact DAC."""
    adc_bits: int
    """Resolution of the outputs; 0 for an exact ADC."""
    output_noise: float
    """Standard deviation of the output noise; see `Converters`."""
    output_range: float
    """Largest output of every tile; see `Converters`."""
    input_scaling: Literal["abs_max", "constant", "none"]
    """Scaling of input vectors; see `Converters`. It replaces a range that the card calibrates."""
    tile_size: int | tuple[int, int]
    """Weights per side of a tile, or rows and columns."""
    g_max: float | str
    """The largest conductance: µS, or text such as "30 uS"."""
    die_to_die: float
    """Relative standard deviation, from chip to chip, of both factors of `DieToDie`."""
    stuck_off: float
    """Fraction of the devices stuck at g_min."""
    stuck_on: float
    """Fraction of the devices stuck at g_max."""


class DeviceCard(Section):
    """One memory device: conductance range, programming noise, drift, read noise, source.

    A card is a TOML file; the shipped ones are in `device_models/`. The card does not have the
    effect of a section that is absent. Conductances are in µS, times in seconds.

    Attributes:
        name: The card's name.
        technology: "PCM", "RRAM", "SONOS", or "none" for a card of no real device.
        title: One line about the device.
        source: Source of the data.
        valid_range: Conductances and times for which the data hold.
        not_modelled: Effects of the device that the card does not have.
        conductance: The range, and the mapping of weights to conductances.
        drift: Change with time, or None.
        programming: Standard deviation and mean error of the programmed conductance, µS, or None.
        read: Accumulated read noise, or None.
        short_term: Noise drawn at every read: the standard deviation, µS, of one device's
            conductance from read to read, as a function of its present conductance; or None.
        die_to_die: Variation from chip to chip, or None.
        stuck: Fractions of devices that cannot be programmed, or None.
        write: Program-and-verify with which the devices were programmed, or None; see
            `analog_grasp.devices.programming`.
        converters: DAC, ADC and output noise; None for exact arithmetic.
        circuit: Wire resistance and nonlinear read-out, or None.
        mapping: The mapping of a model's layers to the tiles, or None for the default.
        tile: The size of one crossbar tile, in weights.

    Example:
        >>> card = DeviceCard.load("pcm-nandakumar2019")
        >>> card.conductance.g_max
        25.0
        >>> card.without("drift").drift is None
        True
    """

    name: Annotated[str, Field(pattern=r"^[\w.:+-]+$", max_length=80)]
    technology: Literal["PCM", "RRAM", "SONOS", "none"]
    title: Text
    source: Source
    valid_range: Text
    not_modelled: Text
    conductance: ConductanceRange
    # Before `programming`, so that an error in a table's first row is reported with its own key.
    drift: Drift | None = None
    programming: ProgrammedState | None = None
    read: Read | None = None
    short_term: StdCurve | None = None
    die_to_die: DieToDie | None = None
    stuck: Stuck | None = None
    write: WriteVerify | None = None
    converters: Converters | None = None
    circuit: Circuit | None = None
    mapping: LayerMapping | None = None
    tile: TileSize

    def __hash__(self) -> int:
        # Cards are keys of caches: a hash of every coefficient would cost more than a small tile.
        return hash(self.name)

    @classmethod
    def load(cls, device: "Device") -> "DeviceCard":
        """Return a card by name or path; a card is returned as it is.

        Text that ends in ".toml" or contains a path separator is a path. The card `gaussian` takes
        a noise level, relative to the largest weight, after a colon.

        Args:
            device: Such as ``"pcm-hermes-2"``, ``"gaussian:0.05"``, ``"cards/mine.toml"``.

        Raises:
            CardError: The card is unknown, or its file is missing, unreadable or invalid.

        Example:
            >>> DeviceCard.load("gaussian:0.1").programming.pieces[0].coefficients
            (2.5,)
        """
        if isinstance(device, DeviceCard):
            return device
        text = str(device)
        if is_path(device):
            return cls.from_data(_read(Path(device)), f'Device card "{text}"')
        check_name(text)
        name, colon, level = text.partition(":")
        data = _read(cards_folder() / f"{name}.toml")
        if colon:
            data = _at_noise_level(data, name, level)
        return cls.from_data(data, f'Device card "{text}"')

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the shipped cards, sorted."""
        return card_names()

    def at(self, time: float | str) -> "DeviceAtTime":
        """Return this device at a time since programming: seconds, or text such as "1d".

        Raises:
            ValueError: The time is unreadable, negative or not finite.

        Example:
            >>> str(DeviceCard.load("pcm-hermes-2").at("24h"))
            'pcm-hermes-2@1d'
        """
        return DeviceAtTime(self, parse_time(time))

    def beyond_data(self, seconds: float) -> str | None:
        """Return, as a sentence, how the card is read at a time for which it has no data, or None.

        The sentence does not depend on the time.

        Example:
            >>> DeviceCard.load("rram-wan2022").beyond_data(1e5) is None
            True
        """
        drift = self.drift
        if seconds == 0:
            return None
        if isinstance(drift, TabulatedDrift) and seconds > drift.table[-1].time:
            last = format_time(drift.table[-1].time)
            how = f"that of {last}" if drift.beyond == "hold" else "extrapolated in ln t"
            message = f"is tabulated up to {last}: from then on its standard deviation is {how}"
        # A card whose drift was switched off states so; one without drift data does not.
        elif self.technology != "none" and "drift" not in self.model_fields_set:
            message = "has no drift data: it is read at all times as at 0s"
            if self.read is not None:
                message = "has no drift data: only its read noise depends on the time"
        else:
            return None
        return f'Device card "{self.name}" {message}.'

    def without(self, *effects: Effect) -> Self:
        """Return a copy without some effects, so that others can be studied alone.

        Args:
            effects: Any of "programming", "drift", "read", "converters", "circuit", "mapping";
                "read" is both the accumulated and the short-term read noise.

        Raises:
            ValueError: An effect is unknown.

        Example:
            >>> DeviceCard.load("pcm-hermes-2").without("read", "converters").read is None
            True
        """
        if unknown := set(effects) - set(get_args(Effect)):
            raise ValueError(unknown_name("effect", min(unknown), get_args(Effect)))
        off = {*effects, "short_term"} if "read" in effects else effects
        return self.model_copy(update=dict.fromkeys(off))

    def with_(self, **changes: Unpack[Changes]) -> Self:
        """Return a copy with other converters, tile, conductance range or faults; see `Changes`.

        Raises:
            CardError: The changed card is not valid.
            TypeError: A change is unknown.

        Example:
            >>> card = DeviceCard.load("pcm-hermes-2").with_(adc_bits=6, stuck_off=0.001)
            >>> card.converters.adc_bits, card.converters.dac_bits, card.stuck.off
            (6, 8, 0.001)
        """
        stated = {name: getattr(self, name) for name in self.model_fields_set}
        data = {**stated, **_changed_sections(self, changes)}
        return self.from_data(data, f'Device card "{self.name}"')

    def scaled(self, means: float, stds: float) -> Self:
        """Return a card whose means of change and standard deviations are multiplied.

        Variation from die to die is kept.

        Args:
            means: Factor of drift exponents, relaxation and shifts in time; that of programming,
                which a chip has from the first, stays.
            stds: Factor of the standard deviations of programming, drift and read noise.

        Example:
            >>> card = DeviceCard.load("gaussian").scaled(1.0, 2.0)
            >>> card.programming.pieces[0].coefficients
            (2.5,)
        """
        factors = dict.fromkeys(("programming", "short_term", "read"), (stds,))
        sections = {name: getattr(self, name) for name in (*factors, "drift")}
        # An absent section is not set: it is not one that was switched off.
        return self.model_copy(
            update={
                name: section.scaled(*factors.get(name, (means, stds)))
                for name, section in sections.items()
                if section is not None
            }
        )

    @model_validator(mode="before")
    @classmethod
    def _programmed_state(cls, data: Any) -> Any:
        """Take the programming noise of a tabulated card from the first row of its table."""
        drift = data.get("drift") if isinstance(data, dict) else None
        table = drift.get("table") if isinstance(drift, dict) else None
        if not isinstance(table, list) or not table or not isinstance(table[0], dict):
            return data
        if "programming" in data:
            raise ValueError("programming is stated twice: remove it, as drift.table has it")
        first = {k: value for k, value in table[0].items() if k not in ("time", "shift")}
        return {**data, "programming": first}

    @model_validator(mode="after")
    def _check_curves(self) -> Self:
        # Imported here, as it takes longer than to find that a name is wrong.
        import numpy as np

        g_max = self.conductance.g_max
        lowest_g = -g_max if self.conductance.mapping == "signed" else self.conductance.g_min
        g = np.linspace(lowest_g, g_max, 2001)
        for key, what, curve in self._curves():
            if curve is None:
                continue
            # Not `StdCurve.at`, which clips at 0.
            values = Curve.at(curve, g, g_max)
            lowest = int(values.argmin())
            if what == "standard deviation" and values[lowest] < 0:
                raise ValueError(
                    f"{key} gives a negative standard deviation at {float(g[lowest]):g} uS: "
                    "correct its coefficients or give it min = 0"
                )
            unit, limit = (1.0, "10") if what == "drift exponent" else (g_max, "ten times g_max")
            # A value that is no number is not at most the limit.
            if not np.abs(values).max() <= 10 * unit:
                raise ValueError(f"{key} gives a {what} above {limit}: correct its coefficients")
        return self

    @model_validator(mode="after")
    def _check_signs(self) -> Self:
        if self.conductance.mapping != "signed":
            return self
        if isinstance(self.drift, RelaxationDrift):
            raise ValueError(
                'drift.model is "relaxation", which clips conductances at g_min, but '
                'conductance.mapping is "signed": use "pair" or "single"'
            )
        if isinstance(self.read, LogarithmicRead):
            raise ValueError(
                'read.model is "logarithmic", which has no value below 0, but conductance.mapping '
                'is "signed": use "pair" or "single"'
            )
        return self

    def _curves(self) -> Iterator[tuple[str, str, Curve | None]]:
        """Yield every curve with its key and what it states; None for an absent one."""
        std, drift = "standard deviation", self.drift
        rows: dict[str, ProgrammedState | None] = {"programming": self.programming}
        if isinstance(drift, TabulatedDrift):
            rows = {f"drift.table[{i}]": row for i, row in enumerate(drift.table)}
        for key, row in rows.items():
            yield key, std, row
            yield f"{key}.shift", "shift", row and row.shift
        if isinstance(drift, PowerLawDrift):
            yield "drift.nu_mean", "drift exponent", drift.nu_mean
            yield "drift.nu_std", std, drift.nu_std
        if isinstance(self.read, RelativeRead):
            yield "read.q", std, self.read.q
        yield "short_term", std, self.short_term


type Device = str | Path | DeviceCard
"""A device as arguments take it: the name of a card, the path of a TOML file, or a card."""


class DeviceAtTime(NamedTuple):
    """A device at a drift time.

    Example:
        >>> device = DeviceAtTime.parse("gaussian:0.02@1h")
        >>> device.card.name, device.time, str(device)
        ('gaussian:0.02', 3600.0, 'gaussian:0.02@1h')
    """

    card: DeviceCard
    time: float
    """Time since programming, s."""

    @classmethod
    def parse(cls, device: "str | DeviceAtTime") -> "DeviceAtTime":
        """Return the device of ``"NAME@TIME"`` or ``"PATH@TIME"``; one at a time as it is.

        Raises:
            CardError: The card is unknown, or its file is missing, unreadable or invalid.
            ValueError: The time is absent, unreadable, negative or not finite.
        """
        if isinstance(device, DeviceAtTime):
            return device
        name, at, time = device.rpartition("@") if isinstance(device, str) else ("", "", "")
        if not at:
            raise ValueError(
                f"{shown(device)} has no drift time: write a device and a time, "
                'such as "pcm-hermes-2@1d".'
            )
        return DeviceCard.load(name).at(time)

    def __str__(self) -> str:
        return f"{self.card.name}@{format_time(self.time)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path, f'Device card "{path}"')
    except (OSError, ValueError) as error:
        raise CardError(str(error)) from None


def _at_noise_level(data: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """Return the data of the Gaussian card at another noise level."""
    if name != _NOISE_LEVEL_CARD:
        raise CardError(
            f'Device card "{name}" takes no noise level: only {_NOISE_LEVEL_CARD} does, '
            f'as in "{_NOISE_LEVEL_CARD}:0.05".'
        )
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if not 0 <= level <= 1:
        raise CardError(
            f'Device card "{name}:{text[:40]}" has no valid noise level: '
            f'write a number between 0 and 1, as in "{_NOISE_LEVEL_CARD}:0.05".'
        )
    g_max = ConductanceRange.model_validate(data["conductance"]).g_max
    programming = {**data["programming"], "coefficients": [level * g_max]}
    title = f"Gaussian noise of {100 * level:g} % of the largest weight, no drift, exact converters"
    exact = f"{name}:{level!r}".removesuffix(".0")
    return {**data, "name": exact, "title": title, "programming": programming}


def _changed_sections(card: DeviceCard, changes: Changes) -> dict[str, Any]:
    """Return the sections of `card` that `changes` affect, as data not yet validated."""
    unknown = sorted(set(changes) - set(Changes.__annotations__))
    if unknown:
        raise TypeError(unknown_name("change", unknown[0], Changes.__annotations__))
    sections: dict[str, Any] = {}
    values: dict[str, Any] = {name: _plain(value) for name, value in changes.items()}
    converters = {key: values[key] for key in Converters.model_fields if key in values}
    for bits in ("dac_bits", "adc_bits"):
        if converters.get(bits) == 0:
            converters[bits] = None
    if converters:
        sections["converters"] = {**(card.converters or _CONVERTERS).model_dump(), **converters}
    if "input_scaling" in converters and card.mapping:
        # A calibrated range would take precedence.
        stated = card.mapping.model_dump(exclude_unset=True, exclude={"calibrate"})
        sections["mapping"] = stated
    if "tile_size" in changes:
        sections["tile"] = _tile_of(card, values["tile_size"])
    if "g_max" in changes:
        g_max = values["g_max"]
        sections["conductance"] = {
            "g_min": f"{card.conductance.g_min!r} uS",
            "g_max": g_max if isinstance(g_max, str) else f"{g_max!r} uS",
            "mapping": card.conductance.mapping,
        }
    if "die_to_die" in changes:
        sections["die_to_die"] = dict.fromkeys(("mean", "std"), values["die_to_die"])
    stuck = {key: values[f"stuck_{key}"] for key in ("off", "on") if f"stuck_{key}" in values}
    if stuck:
        sections["stuck"] = {**(card.stuck.model_dump() if card.stuck else {}), **stuck}
    return sections


def _tile_of(card: DeviceCard, size: object) -> dict[str, Any]:
    """Return the section `tile` of a size: weights per side, or rows and columns."""
    sides = [_plain(side) for side in size] if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2:
        raise CardError(
            f'Device card "{card.name}": tile_size is {shown(size)}: weights per side, or rows and '
            "columns, are accepted."
        )
    return {"rows": sides[0], "columns": sides[1]}


def _plain(value: Any) -> Any:
    """Return a scalar of numpy or torch as Python's own number; any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value
