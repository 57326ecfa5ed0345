"""Device cards: one published memory device as data, read from a TOML file and checked."""

import difflib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, Unpack, get_args

import torch
from pydantic import Field, ValidationError, model_validator

from analog_grasp.devices.curve import Curve, Piece, Section, SpreadCurve
from analog_grasp.devices.schema import (
    Circuit,
    ConductanceRange,
    Converters,
    DieToDie,
    Drift,
    LogarithmicRead,
    PowerLawDrift,
    Read,
    RelativeRead,
    RelaxationDrift,
    Source,
    Stuck,
    TabulatedDrift,
    TabulatedSpread,
    Text,
    TileSize,
)
from analog_grasp.devices.variants import Changes, changed_sections, die_sections
from analog_grasp.utils.errors import CardError, sentence, shown
from analog_grasp.utils.io import read_toml
from analog_grasp.utils.time import format_time, parse_time

if TYPE_CHECKING:
    from analog_grasp.devices.profile import Profile

Effect = Literal["programming", "drift", "read", "converters", "circuit"]

_LEVEL_CARD = "gaussian"


class DeviceCard(Section):
    """What is known of one device: conductance range, programming spread, drift, noise, source.

    A card is a TOML file; the shipped ones lie in `device_models/`. A section that is absent
    means that the card does not have that effect. Conductances are in µS, times in seconds.

    Attributes:
        name: the card's name.
        technology: "PCM", "RRAM", "SONOS", or "none" for a card of no real device.
        title: one line on the device.
        source: where the numbers come from.
        valid_range: for which conductances and times the numbers hold.
        not_modelled: what the device does and the card leaves out.
        conductance: the range, and the mapping of weights to conductances.
        drift: change with time, or None.
        programming: spread of the conductance reached, µS, or None.
        read: accumulated read noise, or None.
        short_term: noise drawn anew at every read: the standard deviation, µS, of one device's
            conductance from read to read, as a function of its present conductance; or None.
        die_to_die: what differs from chip to chip, or None.
        stuck: fractions of devices that cannot be programmed, or None.
        converters: DAC, ADC and output noise; None for exact arithmetic.
        circuit: wire resistance and nonlinear read-out, or None.
        tile: the size of one crossbar tile, in weights.

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
    # Before `programming`, so that an error in a table's first row is told where it was written.
    drift: Drift | None = None
    programming: SpreadCurve | None = None
    read: Read | None = None
    short_term: SpreadCurve | None = None
    die_to_die: DieToDie | None = None
    stuck: Stuck | None = None
    converters: Converters | None = None
    circuit: Circuit | None = None
    tile: TileSize

    @classmethod
    def load(cls, device: "str | Path | DeviceCard") -> "DeviceCard":
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
        if isinstance(device, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
            return cls._from_data(_read(Path(device)), text)
        name, colon, level = text.partition(":")
        if name not in cls.names():
            raise CardError(_unknown(name, cls.names()))
        data = _read(_folder() / f"{name}.toml")
        if colon:
            data = _at_level(data, name, level)
        return cls._from_data(data, text)

    def at(self, time: float | str) -> "DeviceAtTime":
        """Return this device at a drift time, as `noise_target` and `injection` take it.

        Args:
            time: Time since programming: seconds, or text such as "1d".

        Raises:
            ValueError: The time is unreadable, negative or not finite.

        Example:
            >>> str(DeviceCard.load("pcm-hermes-2").at("24h"))
            'pcm-hermes-2@1d'
        """
        return DeviceAtTime(self, parse_time(time))

    @classmethod
    def names(cls) -> list[str]:
        """The names of the shipped cards, sorted.

        Example:
            >>> "ideal" in DeviceCard.names()
            True
        """
        return sorted(path.stem for path in _folder().glob("*.toml"))

    def without(self, *effects: Effect) -> Self:
        """A copy with effects switched off, so that the others can be studied alone.

        Args:
            effects: any of "programming", "drift", "read", "converters", "circuit"; "read" is both
                the accumulated and the short-term read noise.

        Raises:
            ValueError: if an effect is unknown.

        Example:
            >>> DeviceCard.load("pcm-hermes-2").without("read", "converters").read is None
            True
        """
        for effect in effects:
            if effect not in get_args(Effect):
                known = ", ".join(get_args(Effect))
                raise ValueError(f'effect "{effect}" is unknown: use any of {known}.')
        off = {*effects, "short_term"} if "read" in effects else effects
        return self.model_copy(update=dict.fromkeys(off))

    def with_(self, **changes: Unpack[Changes]) -> Self:
        """A copy with other converters, tile, conductance range or faults; see `Changes`.

        Raises:
            CardError: if the changed card is not valid.

        Example:
            >>> card = DeviceCard.load("pcm-hermes-2").with_(adc_bits=6, stuck_off=0.001)
            >>> card.converters.adc_bits, card.converters.dac_bits, card.stuck.off
            (6, 8, 0.001)
        """
        return self._from_data({**dict(self), **changed_sections(self, changes)}, self.name)

    def die(self, chip: int) -> Self:
        """The card of one chip instance, whose means and spreads are those of its die.

        Args:
            chip: names the chip instance.

        Example:
            >>> card = DeviceCard.load("gaussian").with_(die_to_die=0.1)
            >>> card.die(1).programming == card.die(2).programming
            False
        """
        return self if self.die_to_die is None else self.model_copy(update=die_sections(self, chip))

    def profile(self, time: float | str) -> "Profile":
        """The target noise profile at a drift time; see `analog_grasp.devices.profile.profile`.

        Args:
            time: time since programming: seconds, or text such as "1d".
        """
        # Imported here because a profile is made with the noise model, which is made from a card.
        from analog_grasp.devices.profile import profile

        return profile(self, time)

    @classmethod
    def _from_data(cls, data: dict[str, Any], shown: str) -> Self:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problem = sentence(error, data, _known_keys())
        raise CardError(f'device card "{shown}": {problem}.')

    @model_validator(mode="before")
    @classmethod
    def _programmed_state(cls, data: Any) -> Any:
        """Take the programming spread of a tabulated card from the first row of its table."""
        drift = data.get("drift") if isinstance(data, dict) else None
        table = drift.get("table") if isinstance(drift, dict) else None
        if not isinstance(table, list) or not table or not isinstance(table[0], dict):
            return data
        if "programming" in data:
            raise ValueError(
                "programming is stated twice: leave it out, since drift.table begins with it"
            )
        first = {k: value for k, value in table[0].items() if k not in ("time", "shift")}
        return {**data, "programming": first}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.technology != "none" and self.source.doi is None:
            raise ValueError("source.doi is missing: a card of a real device has to state it")
        g_min, g_max = self.conductance.g_min, self.conductance.g_max
        g = torch.linspace(g_min, g_max, 2001, dtype=torch.float64)
        for key, curve in self._spreads():
            # The unclamped curve, which a SpreadCurve's own `at` hides.
            spread = Curve.at(curve, g, g_max)
            lowest = int(spread.argmin())
            if spread[lowest] < 0:
                raise ValueError(
                    f"{key} gives a negative spread at {float(g[lowest]):g} uS: correct its "
                    "coefficients or give it min = 0"
                )
            if spread.max() > 10 * g_max:
                raise ValueError(
                    f"{key} gives a spread above ten times g_max: correct its coefficients"
                )
        return self

    def _spreads(self) -> list[tuple[str, Curve]]:
        """Every curve that is a standard deviation, with its key."""
        spreads: list[tuple[str, Curve]] = []
        if isinstance(self.drift, TabulatedDrift):
            spreads += [(f"drift.table[{i}]", row) for i, row in enumerate(self.drift.table)]
        elif self.programming is not None:
            spreads.append(("programming", self.programming))
        if isinstance(self.drift, PowerLawDrift):
            spreads.append(("drift.nu_std", self.drift.nu_std))
        if isinstance(self.read, RelativeRead):
            spreads.append(("read.q", self.read.q))
        if self.short_term is not None:
            spreads.append(("short_term", self.short_term))
        return spreads


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
        """Read ``"NAME@TIME"`` or ``"PATH@TIME"``; a device at a time is returned as it is.

        Raises:
            CardError: The card is unknown, or its file is missing, unreadable or invalid.
            ValueError: There is no time, or it is unreadable, negative or not finite.
        """
        if isinstance(device, DeviceAtTime):
            return device
        name, at, time = device.rpartition("@")
        if not at:
            raise ValueError(
                f"{shown(device)} has no drift time: write a device and a time, "
                'such as "pcm-hermes-2@1d".'
            )
        return DeviceCard.load(name).at(time)

    def __str__(self) -> str:
        return f"{self.card.name}@{format_time(self.time)}"


def _folder() -> Path:
    """The folder of the shipped cards: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "device_models"
    return inside if inside.is_dir() else package.parent / "device_models"


def _read(path: Path) -> dict[str, Any]:
    """The data of a card's file."""
    try:
        return read_toml(path, f'device card "{path}"')
    except (OSError, ValueError) as error:
        raise CardError(str(error)) from None


def _unknown(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name[:80], names, n=1)
    hint = f'did you mean "{close[0]}"? The' if close else "the"
    return f'device card "{name[:80]}" does not exist: {hint} shipped cards are {", ".join(names)}.'


def _at_level(data: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """The data of the Gaussian card at another noise level."""
    if name != _LEVEL_CARD:
        raise CardError(
            f'device card "{name}" takes no noise level: only {_LEVEL_CARD} does, '
            f'as in "{_LEVEL_CARD}:0.05".'
        )
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if not 0 <= level <= 1:
        raise CardError(
            f'device card "{name}:{text[:40]}" has no valid noise level: '
            f'write a number between 0 and 1, as in "{_LEVEL_CARD}@0.05".'
        )
    g_max = ConductanceRange.model_validate(data["conductance"]).g_max
    programming = {**data["programming"], "coefficients": [level * g_max]}
    return {**data, "name": f"{name}:{level:g}", "programming": programming}


def _known_keys() -> set[str]:
    """Every key that a card can have."""
    models = (
        DeviceCard,
        Source,
        ConductanceRange,
        PowerLawDrift,
        TabulatedDrift,
        TabulatedSpread,
        RelaxationDrift,
        Piece,
        RelativeRead,
        LogarithmicRead,
        DieToDie,
        Stuck,
        Converters,
        Circuit,
        TileSize,
    )
    return {key for model in models for key in model.model_fields}
