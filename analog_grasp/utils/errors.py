"""Sentences for errors: unknown names, invalid fields, and values shown at a bounded length."""

import difflib
import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


# Accepted names are not listed with a suggestion where there are more.
_LISTED = 30


class CardError(ValueError):
    """A device card that is missing, unreadable or invalid; the message is one sentence."""


def unknown_name(kind: str, value: object, known: Iterable[str]) -> str:
    """Return the sentence for an unknown name, with a suggestion.

    Args:
        kind: The kind of thing that is named, such as ``"device"``.
        value: The name as given.
        known: The accepted names, in the order in which they are listed.

    Example:
        >>> unknown_name("adapter", "gras", ["grasp", "lora"])
        "Unknown adapter 'gras'. Did you mean 'grasp'? Available: grasp, lora."
    """
    names = list(known)
    close = difflib.get_close_matches(str(value)[:60], names, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    # A long list would hide the suggestion.
    listed = "" if close and len(names) > _LISTED else f" Available: {', '.join(names)}."
    return f"Unknown {kind} {shown(value)}.{suggestion}{listed}"


def first_problem(error: "ValidationError") -> "ErrorDetails":
    """Return the problem of a pydantic error to report: an unknown key, or else the first one."""
    problems = error.errors(include_url=False)
    # A misspelt key is also a missing one; the misspelling is the cause.
    return next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])


def describe_problem(problem: "ErrorDetails", key: str, known_keys: Iterable[str] = ()) -> str:
    """Return a problem as a sentence about `key`, without its full stop.

    Args:
        problem: As `first_problem` returns it.
        key: The key or setting, as its author knows it.
        known_keys: The accepted keys, for a suggestion in place of an unknown one.

    Example:
        >>> from pydantic import BaseModel, Field, ValidationError
        >>> class Tile(BaseModel):
        ...     rows: int = Field(ge=1)
        >>> try:
        ...     Tile(rows=0)
        ... except ValidationError as error:
        ...     describe_problem(first_problem(error), "tile.rows")
        'tile.rows is 0: it should be greater than or equal to 1'
    """
    kind = problem["type"]
    if kind == "value_error":
        return f"{key} {problem['ctx']['error']}".strip()
    if kind == "missing":
        return f"{key} is missing: it is required"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1])[:60], sorted(known_keys), n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        return f"{key} is not a known key{hint}"
    if kind == "union_tag_not_found":
        return f"{key}.model is missing: it is required"
    if kind == "union_tag_invalid":
        return f"{key}.model is unknown: it should be one of {problem['ctx']['expected_tags']}"
    message = re.sub(r"^(Input|String) should", "it should", problem["msg"])
    message = message.partition(", unable to parse")[0]
    return f"{key} is {shown(problem['input'])}: {message}"


def key_in(data: Any, problem: "ErrorDetails") -> str:
    """Return the dotted key of a problem as it is written in `data`.

    Steps that exist in the models only, such as union tags and implied pieces, are skipped.

    Args:
        data: The data that was validated.
        problem: As `first_problem` returns it.

    Example:
        >>> key_in({"a": [{"b": 1}]}, {"type": "int_type", "loc": ("a", 0, "tag", "b")})
        'a[0].b'
    """
    key, steps = "", problem["loc"]
    for number, step in enumerate(steps):
        items = isinstance(data, list | tuple) and isinstance(step, int) and step < len(data)
        if items or (isinstance(data, dict) and step in data):
            data = data[step]
        elif not (number == len(steps) - 1 and problem["type"] == "missing"):
            continue
        if isinstance(step, int):
            key += f"[{step}]"
        else:
            key += f".{step[:60] if re.fullmatch(r'[\w-]+', step) else shown(step, 60)}"
    return key.removeprefix(".")


def shown(value: object, longest: int = 40) -> str:
    """Return the repr of a value, or of texts joined by commas, cut to a bounded length.

    Example:
        >>> shown("x" * 50, 10)
        "'xxxxxxxxx..."
    """
    if value and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        value = ", ".join(value)
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # An integer of thousands of digits, or deeply nested lists.
        return f"too large a {type(value).__name__} to be shown"
    return text if len(text) <= longest else f"{text[:longest]}..."


def last_line(error: Exception) -> str:
    """Return the last line of an error message, which often holds the reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300].rstrip(".")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless a value is a whole number of at least `least`.

    Example:
        >>> check_whole("steps", 2)
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{name} is {shown(value)}: a whole number of at least {least} is accepted."
        )


def check_finite(name: str, value: object, above: bool = False) -> None:
    """Raise ValueError unless a value is a finite number from 0 on, or above 0.

    Example:
        >>> check_finite("learning_rate", 0.02, above=True)
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    in_range = is_number and 0 <= cast(float, value) <= sys.float_info.max
    if not in_range or (above and value == 0):
        accepted = "above 0" if above else "from 0 on"
        raise ValueError(f"{name} is {shown(value)}: a finite number {accepted} is accepted.")


def check_packages(what: str, extra: str, *packages: str) -> None:
    """Raise ValueError if a package is missing, with the extra that installs it.

    Example:
        >>> check_packages("Arithmetic", "numbers", "numpy")
    """
    for package in packages:
        if find_spec(package) is None:
            raise ValueError(
                f"{what} requires the package {package}, which is not installed: run pip install "
                f"'analog-grasp[{extra}]'."
            )
