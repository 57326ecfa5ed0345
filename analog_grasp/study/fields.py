"""Field types of the settings: names, counts, shares, and notes for help texts and checks."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


@dataclass(frozen=True)
class Note:
    """Further facts about a field, for help texts and checks.

    Attributes:
        default: The text shown for a default of None.
        adapters: The adapters on which the setting has an effect; all where empty.
        needs: Another setting, a test of its value, and the phrase for an accepted value:
            without it the setting has no effect.
        changeable: May change when a run is resumed, as no measured value depends on it.
    """

    default: str | None = None
    adapters: tuple[str, ...] = ()
    needs: tuple[str, Callable[[Any], bool], str] | None = None
    changeable: bool = False


def split_names(text: str) -> tuple[str, ...]:
    """Split a text at its commas, but not within the path of a file that exists.

    Example:
        >>> split_names("grasp, lora")
        ('grasp', 'lora')
    """
    parts, names = text.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        # Unlike that of Path, it is False for what can be no path.
        exists = os.path.exists
        end = next((end for end in ends if exists(",".join(parts[:end]).strip())), 1)
        names.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    return tuple(name for name in names if name)


def number_or_text(value: Any) -> Any:
    """Return the number that a text states, or the value as it is."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def as_names(value: Any) -> Any:
    """Return the names in a text, or the value as it is."""
    return split_names(value) if isinstance(value, str) else value


def unique(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values; raise ValueError if one occurs twice."""
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} is listed more than once")
    return values


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(as_names),
    AfterValidator(unique),
    Field(min_length=1, max_length=1000),
]
DevicesAtTimes = Annotated[
    tuple[str, ...], BeforeValidator(as_names), AfterValidator(unique), Field(max_length=100)
]
Count = Annotated[int, Field(ge=1, le=10_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[int, Field(ge=0, le=16)]
NUMBER = BeforeValidator(number_or_text)
NumberOrDevice = Annotated[float | str, NUMBER]

GRASP = Note(adapters=("grasp", "stochgrasp"))
STOCHGRASP = Note(adapters=("stochgrasp",))
TARGETED = Note(adapters=("grasp", "stochgrasp", "lora"))
CARD = Note("the card's")
PROGRAMMED = Note(needs=("placement", lambda p: p == "programmed", "the placement programmed"))


class Section(BaseModel):
    """Base of the sections: frozen, without unknown fields and infinite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )
