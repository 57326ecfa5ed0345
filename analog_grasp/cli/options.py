"""Command-line options, derived from the settings of a study.

An option that is not given is None, so that a config file or the setting's default supplies it.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from analog_grasp.study.config import SETTINGS, Setting, StudyConfig, plain_types
from analog_grasp.study.sections import split_names

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file of settings; those on the command line win."),
]
Out = Annotated[Path, typer.Option(help="The run's folder; an interrupted run is resumed.")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Show errors only; run.log keeps every measurement and note."),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show each cell as it is measured.")]


def takes[**P](
    *sections: str, without: tuple[str, ...] = (), also: tuple[str, ...] = (), model: str = ""
) -> Callable[[Callable[P, None]], Callable[..., None]]:
    """Give a command an option for each setting of some sections, before the command's own.

    The command finds them in its context by `given`.

    Args:
        sections: Names of sections of `StudyConfig`.
        without: Settings of these sections to omit.
        also: Further settings.
        model: The default shown for --model, where it is not the built-in model.
    """
    shared = {
        name: _option(name, setting, model)
        for name, setting in SETTINGS.items()
        if (setting.section in sections and name not in without) or name in also
    }

    def with_settings(command: Callable[P, None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        keyword = inspect.Parameter.KEYWORD_ONLY
        settings = [
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in shared.items()
        ]
        mine = [parameter.replace(kind=keyword) for parameter in own.values()]
        needed = [parameter for parameter in mine if parameter.default is parameter.empty]

        @functools.wraps(command)
        def run(**options: Any) -> None:
            command(**{name: value for name, value in options.items() if name in own})  # type: ignore[call-arg]  # those that its signature names

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
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


def settings_markdown() -> str:
    """Return a table of all settings by section, for the reference page.

    Example:
        >>> "| `batch_size` | 32 | " in settings_markdown()
        True
    """
    lines = []
    for section, info in StudyConfig.model_fields.items():
        summary = str(inspect.getdoc(info.annotation)).split("\n\n")[0]
        lines += [f"### {section.title()}", "", summary, ""]
        lines += ["| setting | default | values | description |", "|---|---|---|---|"]
        for name, setting in SETTINGS.items():
            if setting.section == section:
                values = _values(setting)
                default = _default(setting).replace("|", "\\|")
                lines.append(f"| `{name}` | {default} | {values} | {_help(setting)} |")
        lines.append("")
    return "\n".join(lines)


def _option(name: str, setting: Setting, model: str) -> Any:
    kind = _kind(setting)
    flag = f"--{name.replace('_', '-')}"
    default: str | bool = model if name == "model" and model else _default(setting)
    panel = setting.section.title()
    if kind is bool:
        default = False
        # No file may grant remote code, so that there is nothing to switch off.
        if name != "trust_remote_code":
            # In a panel of their own, as the second flag takes a column of its width.
            flag, panel = f"{flag}/--no-{flag[2:]}", f"{panel} switches"
    option = typer.Option(
        flag,
        help=_help(setting),
        show_default=default,
        rich_help_panel=panel,
    )
    return Annotated[kind | None, option]


def _help(setting: Setting) -> str:
    text, adapters = str(setting.info.description), setting.note.adapters
    choices = _choices(setting)
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    return f"{text} Applies to {' and '.join(adapters)}." if adapters else text


def _default(setting: Setting) -> str:
    default = setting.info.default
    if setting.note.default is not None:
        return setting.note.default
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _alternatives(setting: Setting) -> list[Any]:
    """Return the types that a setting may have, without None."""
    return [kind for kind in plain_types(setting.info.annotation) if kind is not NoneType]


def _kind(setting: Setting) -> type:
    """Return the type by which the command line reads a setting; the configuration checks it."""
    kinds = _alternatives(setting)
    return kinds[0] if len(kinds) == 1 and kinds[0] in (bool, int, float) else str


def _holds_several(setting: Setting) -> bool:
    return any(get_origin(kind) is tuple for kind in _alternatives(setting))


def _choices(setting: Setting) -> list[str]:
    kinds = _alternatives(setting)
    return [
        str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
    ]


def _values(setting: Setting) -> str:
    """Return what a setting accepts: its choices, or its type and range."""
    names: Mapping[Any, str] = {
        bool: "on or off", int: "integer", float: "number", str: "text",
    }  # fmt: skip
    others = [kind for kind in _alternatives(setting) if get_origin(kind) is not Literal]
    kinds = (*_choices(setting), *(names.get(kind, "list of texts") for kind in others))
    return " or ".join(kinds) + "".join(f", {bound}" for bound in _bounds(setting.info))


def _bounds(annotation: Any) -> Iterator[str]:
    """Yield the limits of a number, as in "at least 1", from constraints on any level."""
    if isinstance(annotation, FieldInfo):
        for constraint in annotation.metadata:
            for key, phrase in _LIMITS.items():
                if (limit := getattr(constraint, key, None)) is not None:
                    yield f"{phrase} {limit:,}"
        yield from _bounds(annotation.annotation)
    elif get_origin(annotation) is Annotated:
        for part in get_args(annotation)[1:]:
            yield from _bounds(part)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _bounds(part)
