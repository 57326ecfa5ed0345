"""Entry point of the command line: the list of commands, exit statuses and error messages."""

import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

# pydantic would look for plugins in every installed distribution, which takes longer than all else.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from analog_grasp.cli.console import RequestError, loading, print_line, sentence, without_chatter

_DONE, _FAILED, _WRONG_REQUEST = 0, 1, 2
# The exit status of typer for a command that Ctrl-C ended.
_INTERRUPTED = 130

# The commands, and the lines that list them: the first of their docstrings, repeated here so that
# the list, and doctor, need nothing that an installation may lack.
COMMANDS = {
    "compare": "Compare adapters over devices and drift times, from training to report.",
    "train": "Train one adapter into a folder that PEFT, deploy and drift can load.",
    "deploy": "Deploy one saved adapter on one device: its score, tiles, weight error and costs.",
    "drift": "Measure saved adapters over devices and drift times, without training.",
    "recalibrate": (
        "Measure saved adapters as they are and re-fitted on aged chips, over drift time."
    ),
    "inspect": "Show the distribution of the scales, shifts and sigmas that adapters have learned.",
    "tune": "Find the noise-aware loss weight with the best score after drift.",
    "devices": "List the device cards, or show one with its source and its noise.",
    "adapters": "List the adapters that can be trained and compared.",
    "report": "Write the tables, figures and page of a run again.",
    "doctor": "Check this installation, and show how to fix what does not work.",
}
# The modules of the commands that take no settings.
_MODULES = {"devices": "catalogue", "adapters": "catalogue", "doctor": "doctor"}


def _is_valid(parameter: Any, value: Any) -> bool:
    """Return whether a value needs no validator, for which typer would load much of pydantic."""
    # A callback, as that of --help, acts on the value.
    if parameter.required or (parameter.callback is not None and value is not None):
        return False
    kinds = [kind for kind in (str, Path, bool) if parameter.type_descriptor.annotation is kind]
    return value is None or any(isinstance(value, kind) for kind in kinds)


class _Option(TyperOption):
    """An option that typer validates only where that can change something."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        return value if _is_valid(self, value) else super().process_value(ctx, value)


class _Argument(TyperArgument):
    """An argument that typer validates only where that can change something."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        return value if _is_valid(self, value) else super().process_value(ctx, value)


def _quick(parameters: list[Any]) -> list[Any]:
    quick: dict[type, type] = {TyperOption: _Option, TyperArgument: _Argument}
    for parameter in parameters:
        parameter.__class__ = quick.get(type(parameter), type(parameter))
    return parameters


class _Command(TyperCommand):
    """A command whose options cost nothing unless they are given, and its plain help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _quick(super().get_params(ctx))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the name of the command with its arguments."""
        formatter.write_usage(
            ctx.command_path, " ".join(["[OPTIONS]", *self._arguments().values()])
        )

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options by panel, which typer does only with tables of rich."""
        arguments = self._arguments()
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            name, text = parameter.get_help_record(ctx)
            # Typer puts a default that is a text in parentheses.
            text = re.sub(r" +\[default: \(?(.*?)\)?(; x>=\d+)?]$", r" [default: \1]", text)
            is_argument = parameter.name in arguments
            panel = "Arguments" if is_argument else parameter.rich_help_panel or "Options"
            panels.setdefault(panel, []).append((arguments.get(parameter.name, name), text))
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def _arguments(self) -> dict[str, str]:
        return {p.name: str(p.metavar) for p in self.params if p.param_type_name == "argument"}


class _Commands(TyperGroup):
    """The list of commands; the module of a command is imported when the command is used."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _quick(super().get_params(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the whole line of each command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, listed, rest
        command = load_command(name)
        ctx.with_resource(without_chatter())
        return name, command, rest


_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
app = typer.Typer(cls=_Commands, **_PLAIN)


def load_command(name: str) -> Any:
    """Import a command and return it as a click command."""
    with loading(name):
        module = import_module(f"analog_grasp.cli.{_MODULES.get(name, 'commands')}")
    alone = typer.Typer(**_PLAIN)
    alone.command(name, cls=_Command)(getattr(module, name))
    return typer.main.get_command(alone)


def _listed() -> None:
    """Placeholder of a command in the list."""


for _name, _line in COMMANDS.items():
    app.command(_name, help=_line)(_listed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The arguments of the process where None.

    Returns:
        The exit status: 0 done, 1 the run failed, 2 the request is wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(arguments, prog_name="analog-grasp", standalone_mode=False)
    except typer.TyperException as error:
        print_line("error", _usage(error, arguments))
        return _WRONG_REQUEST
    except Exception as error:
        # Read from the arguments: the error may come from parsing the options.
        if "--debug" in arguments:
            traceback.print_exception(error)
        print_line("error", sentence(error))
        return _WRONG_REQUEST if isinstance(error, RequestError) else _FAILED
    finally:
        if "torch" not in sys.modules:
            # The end of the process would search all objects for garbage once more.
            gc.freeze()
    if status == _INTERRUPTED:
        print_line("Interrupted", "the command did not finish.")
        return _FAILED
    return status or _DONE


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.")
    ] = False,
) -> None:
    """Adapt frozen transformers for analog in-memory computing.

    Trains GRASP and StochGRASP adapters, deploys them on simulated PCM and RRAM crossbars, and
    compares them.
    """
    if show_version:
        from importlib.metadata import version

        print(f"analog-grasp {version('analog-grasp')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _usage(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return what is wrong with the arguments of a command, and where its help is."""
    named = arguments[:1] if arguments and arguments[0] in COMMANDS else []
    message = error.format_message().replace("Value error, ", "").replace(": Input", ": it")
    message = message.partition(", unable to parse")[0]
    message = re.sub(
        r"^Got unexpected extra argument\(s\) \((.*)\)$", r"Extra argument: \1", message
    )
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See {' '.join(['analog-grasp', *named])} --help."
