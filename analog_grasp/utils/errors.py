"""What is wrong with a device card, in one sentence."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class CardError(ValueError):
    """A device card that cannot be found, read or believed; the message is one sentence."""


def unknown_name(kind: str, value: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not among those known, with a suggestion.

    Args:
        kind: What is named, such as ``"device"``.
        value: The name as given.
        known: The names that are accepted, in the order in which they are listed.

    Example:
        >>> unknown_name("adapter", "gras", ["grasp", "lora"])
        "Unknown adapter 'gras'. Did you mean 'grasp'? Available: grasp, lora."
    """
    names = list(known)
    close = difflib.get_close_matches(str(value)[:60], names, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {shown(value)}.{suggestion} Available: {', '.join(names)}."


def sentence(error: ValidationError, data: dict[str, Any], known_keys: set[str]) -> str:
    """The first thing wrong with a card, in one sentence that names the key.

    Args:
        error: what pydantic raised.
        data: the card as it stands in the file, so that the key is named as its author wrote it.
        known_keys: every key that a card can have, for a suggestion in place of an unknown one.

    Returns:
        A sentence without its full stop.
    """
    problems = error.errors(include_url=False)
    # A misspelt key is also a missing one: the misspelling is the news.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    key = _key(first, data)
    kind = first["type"]
    if kind == "value_error":
        return f"{key} {first['ctx']['error']}".strip()
    if kind == "missing":
        return f"{key} is missing: a card has to state it"
    if kind == "extra_forbidden":
        return f"{key} is not a known key{_suggestion(str(first['loc'][-1]), known_keys)}"
    if kind == "union_tag_not_found":
        return f"{key}.model is missing: a card has to state it"
    if kind == "union_tag_invalid":
        return f"{key}.model is unknown: it should be one of {first['ctx']['expected_tags']}"
    wanted = first["msg"].replace("Input should", "it should").replace("String should", "it should")
    return f"{key} is {shown(first['input'])}: {wanted}"


def _key(error: ErrorDetails, data: Any) -> str:
    """The dotted key, leaving out steps that only the models have: union tags, implied pieces."""
    key = ""
    here: Any = data
    steps = error["loc"]
    for number, step in enumerate(steps):
        if _has(here, step):
            here = here[step]
        elif not (number == len(steps) - 1 and error["type"] == "missing"):
            continue
        key += f"[{step}]" if isinstance(step, int) else f".{_part(step)}"
    return key.removeprefix(".")


def _part(step: str) -> str:
    """A part of a key as its author wrote it: in quotes where it is no plain word."""
    return step[:60] if re.fullmatch(r"[\w-]+", step) else shown(step, 60)


def _has(part: Any, step: int | str) -> bool:
    if isinstance(part, list):
        return isinstance(step, int) and step < len(part)
    return isinstance(part, dict) and step in part


def _suggestion(key: str, known_keys: set[str]) -> str:
    close = difflib.get_close_matches(key[:60], sorted(known_keys), n=1)
    return f': did you mean "{close[0]}"?' if close else ": leave it out"


def shown(value: object, longest: int = 40) -> str:
    """A value as an error shows it: no longer than a sentence bears.

    Example:
        >>> shown("x" * 50, 10)
        "'xxxxxxxxx..."
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A number of thousands of digits, or a list within a list within a list...
        return f"too large a {type(value).__name__} to be shown"
    return text if len(text) <= longest else f"{text[:longest]}..."
