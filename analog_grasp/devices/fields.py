"""Field types of cards and cost models: quantities with units, bounded numbers, sections' base."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from analog_grasp.utils.time import UNIT_SECONDS, times_unit

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")
_MICROSIEMENS = {"nS": 1e-3, "uS": 1.0, "µS": 1.0, "μS": 1.0, "mS": 1e3, "S": 1e6}
_OHM = {"mOhm": 1e-3, "Ohm": 1.0, "kOhm": 1e3}
_JOULE = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1.0}
_SQUARE_MILLIMETRE = {"um2": 1e-6, "mm2": 1.0, "cm2": 100.0}


class Section(BaseModel):
    """Base of every part of a card: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def _reader(factors: Mapping[str, float], example_unit: str) -> Callable[[object], float]:
    """Return a validator that reads text with a unit, such as "25 uS", into a float."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(
                f'is not a quantity: write it as a number and a unit, such as "1 {example_unit}"'
            )
        match = _QUANTITY.fullmatch(str(value))
        if match is None:
            raise ValueError(f'cannot be read: write it as in "1 {example_unit}"')
        number, unit = match.groups()
        if not unit:
            raise ValueError(f'has no unit: write it as "{number[:20]} {example_unit}"')
        if unit not in factors:
            known = ", ".join(name for name in factors if name.isascii())
            raise ValueError(f'has the unknown unit "{unit[:20]}": use one of {known}')
        quantity = times_unit(float(number), factors[unit])
        if not math.isfinite(quantity) or quantity < 0:
            raise ValueError("is out of range: it should be finite and not negative")
        return quantity

    return read


def _writer(unit: str) -> PlainSerializer:
    """Return a serializer that writes a float for JSON as the reader takes it."""
    return PlainSerializer(lambda value: f"{value!r} {unit}", str, when_used="json-unless-none")


Conductance = Annotated[
    float, BeforeValidator(_reader(_MICROSIEMENS, "uS")), Field(le=1e6), _writer("uS")
]
"""A conductance, µS."""

Seconds = Annotated[
    float, BeforeValidator(_reader(UNIT_SECONDS, "s")), Field(gt=0, le=1e12), _writer("s")
]
"""A time, s, above 0."""

Resistance = Annotated[
    float, BeforeValidator(_reader(_OHM, "Ohm")), Field(gt=0, le=1e6), _writer("Ohm")
]
"""A resistance, Ohm, above 0."""

Energy = Annotated[float, BeforeValidator(_reader(_JOULE, "pJ")), Field(gt=0), _writer("J")]
"""An energy, J, above 0."""

Area = Annotated[
    float, BeforeValidator(_reader(_SQUARE_MILLIMETRE, "mm2")), Field(gt=0), _writer("mm2")
]
"""An area, mm^2, above 0."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Pair = Annotated[tuple[Number, Number], Field(strict=False)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Bits = Annotated[int, Field(ge=2, le=16)]
Count = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
