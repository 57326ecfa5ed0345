"""The command-line page of the documents, generated from the commands and the settings."""

import inspect
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from analog_grasp.cli.main import COMMANDS, app
from analog_grasp.cli.options import choices, default_text, help_text
from analog_grasp.study.config import SETTINGS, Setting, StudyConfig
from analog_grasp.study.fields import plain_types

HEAD = """# Command line

Generated from the commands by `python tests/documents/pages.py docs/command-line.md`;
`analog-grasp COMMAND --help` prints the same.

Results are written to the standard output, progress and notes to the standard error. The exit
status is 0 if the command succeeded, 1 if the run failed and 2 if the request is wrong. An error is
one sentence; `--debug` shows its traceback.
"""
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TYPES = {bool: "on or off", int: "integer", float: "number", str: "text"}
SETTINGS_HEAD = """## Settings

Every setting has one name: `noise_weight` in a [configuration file](how-to/configuration.md) and in
Python, `--noise-weight` on the command line, which takes precedence. Settings that are on by
default are disabled by `--no-NAME`.
"""


def page() -> str:
    """Return the page as Markdown."""
    group = typer.main.get_command(app)
    parts = [HEAD]
    for name in COMMANDS:
        with group.make_context("analog-grasp", [name], resilient_parsing=True) as context:
            _, command, _ = group.resolve_command(context, [name])
            parts.append(section(name, command))
    settings = "\n".join(line.rstrip() for line in settings_markdown().splitlines())
    return "\n".join([*parts, SETTINGS_HEAD, settings]).rstrip() + "\n"


def section(name: str, command: Any) -> str:
    """Return the section of one command: description, usage, arguments and options, settings."""
    own = [p for p in command.params if p.name not in SETTINGS and p.name != "help"]
    arguments = [p for p in own if p.param_type_name == "argument"]
    usage = " ".join(["analog-grasp", name, "[OPTIONS]", *(metavar(p) for p in arguments)])
    lines = [f"## {name}", "", inspect.cleandoc(command.help), "", f"    {usage}", ""]
    lines += ["| argument or option | default | description |", "| :-- | :-- | :-- |"]
    lines += [row(parameter) for parameter in own]
    if used := sections({p.name for p in command.params}):
        lines += ["", f"Settings: {used}."]
    return "\n".join([*lines, ""])


def row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        label = metavar(parameter)
    else:
        label = max(parameter.opts, key=len)
    default = shown_default(parameter)
    return f"| `{label}` | {default} | {parameter.help} |".replace("|  |", "| |")


def metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def shown_default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.required:
        return "required"
    return "" if parameter.default in (None, False) else str(parameter.default)


def sections(names: set[str]) -> str:
    """Describe the settings that a command takes: whole sections, or some of one by name."""
    parts = []
    for section in StudyConfig.model_fields:
        members = [name for name, setting in SETTINGS.items() if setting.section == section]
        taken = [name for name in members if name in names]
        omitted = [name for name in members if name not in names]
        link = f"[{section}](#{section})"
        if not taken:
            continue
        if not omitted:
            parts.append(link)
        elif len(omitted) < len(taken):
            parts.append(f"{link} without {', '.join(f'`{name}`' for name in omitted)}")
        else:
            parts.append(f"{', '.join(f'`{name}`' for name in taken)} of {link}")
    return "; ".join(parts)


def settings_markdown() -> str:
    """Return a table of all settings by section."""
    lines = []
    for section, info in StudyConfig.model_fields.items():
        summary = str(inspect.getdoc(info.annotation)).split("\n\n")[0]
        lines += [f"### {section.title()}", "", summary, ""]
        lines += ["| setting | default | values | description |", "|---|---|---|---|"]
        for name, setting in SETTINGS.items():
            if setting.section == section:
                default = default_text(setting).replace("|", "\\|")
                lines.append(f"| `{name}` | {default} | {values(setting)} | {help_text(setting)} |")
        lines.append("")
    return "\n".join(lines)


def values(setting: Setting) -> str:
    """Return what a setting accepts: its choices, or its type and range."""
    kinds = [kind for kind in plain_types(setting.info.annotation) if kind is not NoneType]
    others = [kind for kind in kinds if get_origin(kind) is not Literal]
    words = (*choices(setting), *(TYPES.get(kind, "list of texts") for kind in others))
    return " or ".join(words) + "".join(f", {bound}" for bound in bounds(setting.info))


def bounds(annotation: Any) -> Iterator[str]:
    """Yield the limits of a number, as in "at least 1", from constraints on any level."""
    if isinstance(annotation, FieldInfo):
        for constraint in annotation.metadata:
            for key, phrase in LIMITS.items():
                if (limit := getattr(constraint, key, None)) is not None:
                    yield f"{phrase} {limit:,}"
        yield from bounds(annotation.annotation)
    elif get_origin(annotation) is Annotated:
        for part in get_args(annotation)[1:]:
            yield from bounds(part)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from bounds(part)
