"""Base, notes, types and checks that the fields of all sections of settings share."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


@dataclass(frozen=True)
class Note:
    """Further facts about a field, for help texts and checks.

    Attributes:
        default: The text shown for a default of None.
        adapters: The adapters on which the setting has an effect; all where empty.
        needs: Other settings without which it has no effect: each with a test of its value and the
            phrase for an accepted one.
        changeable: May change when a run is resumed, as no measured value depends on it.
    """

    default: str | None = None
    adapters: tuple[str, ...] = ()
    needs: tuple[tuple[str, Callable[[Any], bool], str], ...] = ()
    changeable: bool = False


class Section(BaseModel):
    """Base of the sections: frozen, without unknown fields and infinite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain_values(cls, value: Any, info: ValidationInfo) -> Any:
        # Python counts with true as with 1.
        if isinstance(value, bool):
            types = plain_types(cls.model_fields[str(info.field_name)].annotation)
            if bool not in types and (int in types or float in types):
                raise ValueError(f"it should be a {'' if float in types else 'whole '}number")
        if isinstance(value, list | tuple) and any(isinstance(v, os.PathLike) for v in value):
            return [os.fspath(v) if isinstance(v, os.PathLike) else v for v in value]
        return os.fspath(value) if isinstance(value, os.PathLike) else value


def plain_types(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, without constraints."""
    if get_origin(annotation) is Annotated:
        return plain_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in plain_types(part)]
    return [annotation]


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


def joined(names: Sequence[str]) -> str:
    """Return names as a sentence lists them.

    Example:
        >>> joined(["grasp", "stochgrasp", "lora"])
        'grasp, stochgrasp and lora'
    """
    return " and ".join(", ".join(names).rsplit(", ", 1))


def as_names(value: Any) -> Any:
    return split_names(value) if isinstance(value, str) else value


def as_layers(value: Any) -> Any:
    """Return endings of the names of layers, as the command line reads them; or all-linear.

    Example:
        >>> as_layers("query,value"), as_layers("all-linear")
        (('query', 'value'), 'all-linear')
    """
    return value if value == "all-linear" else as_names(value)


def as_times(value: Any) -> Any:
    """Return times as texts; plain numbers are seconds.

    Example:
        >>> as_times([0, "1d"]), as_times("0s,1d")
        (('0', '1d'), ('0s', '1d'))
    """
    if isinstance(value, str):
        return split_names(value)
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(str(v) if type(v) in (int, float) else v for v in values)


def _as_number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def as_counts(value: Any) -> Any:
    return (value,) if isinstance(value, int) else as_names(value)


def unique[T](values: tuple[T, ...]) -> tuple[T, ...]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} is listed more than once")
    return values


_LISTED = (AfterValidator(unique), Field(min_length=1, max_length=1000))
Names = Annotated[tuple[str, ...], BeforeValidator(as_names), *_LISTED]
Times = Annotated[tuple[str, ...], BeforeValidator(as_times), *_LISTED]
Count = Annotated[int, Field(ge=1, le=10_000)]
NUMBER = BeforeValidator(_as_number)

GRASP = Note(adapters=("grasp", "stochgrasp"))
