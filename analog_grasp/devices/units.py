"""Physical quantities in device cards: text with a unit, such as "25 uS", becomes a float."""

import math
import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, Field

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")

_MICROSIEMENS = {"nS": 1e-3, "uS": 1.0, "µS": 1.0, "μS": 1.0, "mS": 1e3, "S": 1e6}
_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "y": 365 * 86_400.0,
}
_OHM = {"mOhm": 1e-3, "Ohm": 1.0, "kOhm": 1e3}


def _reader(factors: dict[str, float], example_unit: str) -> Callable[[object], float]:
    """A validator that reads a quantity in one of the units of `factors`."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(
                f'is no quantity: write it as a number and a unit, such as "1 {example_unit}"'
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
        # Dividing by a power of ten is rounded once, multiplying by 1e-9 twice.
        factor = factors[unit]
        quantity = float(number) * factor if factor >= 1 else float(number) / round(1 / factor)
        if not math.isfinite(quantity) or quantity < 0:
            raise ValueError("is out of range: it should be finite and not negative")
        return quantity

    return read


Conductance = Annotated[float, BeforeValidator(_reader(_MICROSIEMENS, "uS")), Field(le=1e6)]
"""A conductance, µS."""

Seconds = Annotated[float, BeforeValidator(_reader(_SECONDS, "s")), Field(gt=0, le=1e12)]
"""A time, s, above 0."""

Resistance = Annotated[float, BeforeValidator(_reader(_OHM, "Ohm")), Field(gt=0, le=1e6)]
"""A resistance, Ohm, above 0."""
