"""The commands put together, and how each of them ends: its exit status and its last words."""

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from analog_grasp.cli import catalogue, single, study
from analog_grasp.cli.console import quiet, tell
from analog_grasp.cli.errors import RequestError, sentence

_DONE, _FAILED, _WRONG_REQUEST = 0, 1, 2
# What typer returns for a command that Ctrl-C ended.
_INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
for _command in (
    study.compare,
    single.train,
    single.deploy,
    study.drift,
    catalogue.devices,
    catalogue.adapters,
    study.report,
):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those of the process where None.

    Returns:
        The exit status: 0 done, 1 the run failed, 2 the request is wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with quiet():
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
