"""The commands put together, and how each of them ends: its exit status and its last words."""

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from analog_grasp.cli.console import loading, quiet, tell
from analog_grasp.cli.errors import RequestError, sentence

_DONE, _FAILED, _WRONG_REQUEST = 0, 1, 2
# What typer returns for a command that Ctrl-C ended.
_INTERRUPTED = 130

# The module of each command and its line in the list, which is the first of its docstring. They
# stand here so that the list, and doctor, do without whatever an installation lacks.
COMMANDS = {
    "compare": (
        "commands",
        "Compare adapters over devices and drift times, from training to report.",
    ),
    "train": ("commands", "Train one adapter into a folder that PEFT, deploy and drift can load."),
    "deploy": (
        "commands",
        "Deploy one saved adapter on one device: its score, the tiles and the error of the "
        "weights.",
    ),
    "drift": (
        "commands",
        "Measure saved adapters over devices and drift times; nothing is trained.",
    ),
    "inspect": (
        "commands",
        "Show the scales, shifts and sigmas that adapters have learned, and if they have one mode.",
    ),
    "tune": ("commands", "Find the noise-aware loss weight that keeps the score on ageing chips."),
    "devices": (
        "commands",
        "List the device cards, or show one with its source and its noise figures.",
    ),
    "adapters": ("commands", "List the adapters that can be trained and compared."),
    "report": ("commands", "Write tables, figures and page again from what a run has measured."),
    "doctor": ("doctor", "Say whether this installation works, and how to mend what does not."),
}


class _Commands(TyperGroup):
    """The commands of the list, each imported when it is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, listed, rest
        command = _imported(name)
        ctx.with_resource(quiet())
        return name, command, rest


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)


def _imported(name: str) -> Any:
    """The command itself, from its module."""
    with loading(name):
        module = import_module(f"analog_grasp.cli.{COMMANDS[name][0]}")
    alone = typer.Typer(add_completion=False)
    alone.command(name)(getattr(module, name))
    return typer.main.get_command(alone)


def _listed() -> None:
    """Stands for a command in the list."""


for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(_listed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those of the process where None.

    Returns:
        The exit status: 0 done, 1 the run failed, 2 the request is wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(arguments, prog_name="analog-grasp", standalone_mode=False)
    except typer.TyperException as error:
        tell("error", _usage(error))
        return _WRONG_REQUEST
    except Exception as error:
        # Looked up here and not in the command: what fails may be the reading of its options.
        if "--debug" in arguments:
            traceback.print_exception(error)
        tell("error", sentence(error))
        return _WRONG_REQUEST if isinstance(error, RequestError) else _FAILED
    if status == _INTERRUPTED:
        tell("Interrupted", "the command did not finish.")
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

    GRASP and StochGRASP adapters: trained, deployed on simulated PCM and RRAM crossbars, compared.
    """
    if show_version:
        print(f"analog-grasp {version('analog-grasp')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the words of a command, and where the right ones stand."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "analog-grasp"
    message = error.format_message()
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See {command} --help."
