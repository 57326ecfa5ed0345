"""Packages whose names come from their modules when they are first asked for."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_from(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package that loads little by itself.

    torch, peft and aihwkit take seconds to load, which a command that tells its options, or a
    process that needs one module of a package, can do without.

    Args:
        package: Its name.
        homes: Its public names, and the module within it that each comes from.

    Source:
        PEP 562.

    Example:
        >>> find, listed = names_from("analog_grasp.utils", {"parse_time": "time"})
        >>> find("parse_time")("1h"), "parse_time" in listed()
        (3600.0, True)
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find, lambda: sorted({*vars(import_module(package)), *homes})
