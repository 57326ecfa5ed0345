"""Options of the commands, derived from the settings of a study.

An option that is not given is None, so that a config file or the setting's default supplies it.
"""

import functools
import inspect as signatures
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from analog_grasp.cli.console import Debug
from analog_grasp.study.config import SETTINGS, Setting
from analog_grasp.study.fields import joined, plain_types, split_names

_NUMBERS: dict[Any, str] = {int: "int", float: "float"}

Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file of settings; options on the command line take precedence."),
]
Out = Annotated[Path, typer.Option(help="The run's folder; an interrupted run is resumed.")]
_QUIET = "Show errors only; run.log keeps every measurement and note."
_VERBOSE = "Show each cell as it is measured."
# Type and default of each.
_RUN: dict[str, tuple[Any, Any]] = {
    "config": (Config, None),
    "debug": (Debug, False),
    "quiet": (Annotated[bool, typer.Option("--quiet", help=_QUIET)], False),
    "verbose": (Annotated[bool, typer.Option("--verbose", help=_VERBOSE)], False),
}


def takes[**P](
    *sections: str,
    without: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    out: str = "",
    **defaults: Any,
) -> Callable[[Callable[P, None]], Callable[..., None]]:
    """Give a command an option for each setting of some sections, before the command's own.

    The command finds the settings in its context by `given`, and the options of a run by `_study`.

    Args:
        sections: Names of sections of `StudyConfig`.
        without: Settings of these sections to omit.
        also: Further settings.
        out: Default folder of a study, whose further options are `_RUN`.
        defaults: Defaults of the command to show, where they are not those of the settings.
    """
    shared = {
        name: _option(name, setting, defaults.get(name))
        for name, setting in SETTINGS.items()
        if (setting.section in sections and name not in without) or name in also
    }

    def with_settings(command: Callable[P, None]) -> Callable[..., None]:
        own = signatures.signature(command, eval_str=True).parameters
        keyword = functools.partial(signatures.Parameter, kind=signatures.Parameter.KEYWORD_ONLY)
        settings = [keyword(name, default=None, annotation=kind) for name, kind in shared.items()]
        mine = [p.replace(kind=p.KEYWORD_ONLY) for p in own.values()]
        needed = [parameter for parameter in mine if parameter.default is parameter.empty]
        if out:
            mine.append(keyword("out", default=Path(out), annotation=Out))
            mine += [keyword(n, default=d, annotation=kind) for n, (kind, d) in _RUN.items()]

        @functools.wraps(command)
        def run(**options: Any) -> None:
            command(**{name: value for name, value in options.items() if name in own})  # type: ignore[call-arg]  # those that its signature names

        run.__signature__ = signatures.Signature(  # type: ignore[attr-defined]  # what typer reads
            [*needed, *settings, *(parameter for parameter in mine if parameter not in needed)]
        )
        return run

    return with_settings


def given(context: typer.Context) -> dict[str, Any]:
    """Return the settings among the options of a command, as `resolve` takes them.

    A text that may hold several values is split at its commas.
    """
    values = {name: context.params[name] for name in SETTINGS if name in context.params}
    for name, value in values.items():
        setting = SETTINGS[name]
        if isinstance(value, str) and value != setting.info.default and _holds_several(setting):
            values[name] = split_names(value)
    return values


def _option(name: str, setting: Setting, default: Any) -> Any:
    kinds = _alternatives(setting)
    # The configuration reads numbers from text too, and its errors show what was given.
    kind = bool if kinds == [bool] else str
    # A number, or a word.
    mixed = {_NUMBERS.get(each, "str"): None for each in kinds}
    shown = "list" if _holds_several(setting) else "|".join(mixed)
    flag = f"--{name.replace('_', '-')}"
    # No file may grant remote code, so that there is nothing to switch off.
    if kind is bool and name != "trust_remote_code":
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(
        flag,
        help=help_text(setting),
        show_default=default_text(setting, default),
        metavar=None if kind is bool else f"<{shown}>",
        rich_help_panel=setting.section.title(),
    )
    return Annotated[kind | None, option]


def help_text(setting: Setting) -> str:
    """Return the description of a setting, with its choices and the adapters that it applies to."""
    text, adapters = str(setting.info.description), setting.note.adapters
    listed = choices(setting)
    if not all(choice in text for choice in listed):
        text += f" One of {', '.join(listed)}."
    if not adapters:
        return text
    return f"{text} Applies to {joined(adapters)}."


def default_text(setting: Setting, default: Any = None) -> str:
    """Return the default of a setting as text, or another one of a command."""
    if default is None and setting.note.default is not None:
        return setting.note.default
    default = setting.info.default if default is None else default
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(default) if isinstance(default, tuple) else str(default)


def choices(setting: Setting) -> list[str]:
    """Return the words that a setting accepts; none if it accepts others too."""
    words = [kind for kind in _alternatives(setting) if get_origin(kind) is Literal]
    return [str(choice) for kind in words for choice in get_args(kind)]


def _alternatives(setting: Setting) -> list[Any]:
    """Return the types that a setting may have, without None."""
    return [kind for kind in plain_types(setting.info.annotation) if kind is not NoneType]


def _holds_several(setting: Setting) -> bool:
    return any(get_origin(kind) is tuple for kind in _alternatives(setting))
