"""Entry point of the command line: list of commands, exit statuses, errors; devices, adapters."""

import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# pydantic would look for plugins in every installed distribution, which takes longer than all else.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer
from typer.core import TyperCommand, TyperGroup

from analog_grasp.cli.console import (
    Debug,
    RequestError,
    loading,
    print_line,
    request,
    sentence,
    show,
    without_chatter,
)
from analog_grasp.utils.errors import shown

if TYPE_CHECKING:
    from rich.table import Table

    from analog_grasp.devices import CardFigures

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
_MODULES = {"devices": "main", "adapters": "main", "doctor": "doctor"}
_MAPPINGS = {
    "pair": "a weight is the difference of two devices",
    "single": "a weight is one device",
    "signed": "a weight is one signed conductance, as in noise models of weights",
}


def _quick(parameters: list[Any]) -> list[Any]:
    """Let typer validate only what that can change, as it would load much of pydantic."""
    for parameter in parameters:
        parameter.process_value = partial(_processed, parameter)
    return parameters


def _processed(parameter: Any, context: Any, value: Any) -> Any:
    kind = parameter.type_descriptor.annotation
    plain = value is None or (kind in (str, Path, bool) and isinstance(value, kind))
    # A callback, as that of --help, acts on the value.
    acts = parameter.callback is not None and value is not None
    if plain and not parameter.required and not acts:
        return value
    return type(parameter).process_value(parameter, context, value)


class _Command(TyperCommand):
    """A command whose options cost nothing unless they are given, and its plain help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _quick(super().get_params(ctx))

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the name of the command with its arguments."""
        arguments = [str(p.metavar) for p in self.params if p.param_type_name == "argument"]
        formatter.write_usage(ctx.command_path, " ".join(["[OPTIONS]", *arguments]))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options by panel, which typer does only with tables of rich."""
        parameters: list[Any] = self.get_params(ctx)
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in parameters:
            name, text = parameter.get_help_record(ctx)
            # Typer puts a default that is a text in parentheses.
            text = re.sub(r" +\[default: \(?(.*?)\)?(; x>=\d+)?]$", r" [default: \1]", text)
            if parameter.param_type_name == "argument":
                panels.setdefault("Arguments", []).append((parameter.metavar, text))
            else:
                panel = parameter.rich_help_panel or "Options"
                panels.setdefault(panel, []).append((name, text))
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


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


for _name, _line in COMMANDS.items():
    # In place of the command, which is loaded when it is used.
    app.command(_name, help=_line)(lambda: None)


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
    if found := re.match(r"Invalid value for '(--[\w-]+)'(?=: it)", message):
        option = found[1]
        # Typer does not state the value.
        joined = [each.partition("=")[2] for each in arguments if each.startswith(f"{option}=")]
        value = [after for each, after in pairwise(arguments) if each == option] + joined
        message = f"{option} is {shown(value[-1])}{message[found.end() :]}"
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See {' '.join(['analog-grasp', *named])} --help."


def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The card to show: a name or a TOML file; without it all are listed.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the device cards, or show one with its source and its noise."""
    from rich.table import Table

    with request():
        from analog_grasp.devices import card_figures, card_names, check_name

        check_name(name)
        cards = [card_figures(each) for each in ([name] if name else card_names())]
    if name is None:
        show(
            "std: standard deviation of devices programmed to 0.1 / 0.5 / 1.0 of the range, before "
            "any drift compensation"
        )
        table = Table("name", "technology", "range, µS", "std at 0s, µS", "std at 1d, µS", "source")
        for card in cards:
            stds = (" / ".join(f"{std:.2f}" for std in card.stds[time]) for time in ("0s", "1d"))
            name, technology, source = (card.facts[key] for key in ("name", "technology", "source"))
            table.add_row(name, technology, _range(card.facts), *stds, source["citation"])
        show(table)
        return
    (card,) = cards
    show(_facts(card.facts))
    devices, weights = _noise_tables(card)
    show(
        "\nConductance of devices programmed to 0.1, 0.5 and 1.0 of the range: mean ± standard "
        "deviation, µS, before any drift compensation"
    )
    show(devices)
    show(
        "\nStandard deviation of a stored weight, % of the largest weight: what --noise-target "
        f"{name}@TIME refers to"
    )
    show(weights)


def adapters(debug: Debug = False) -> None:
    """List the adapters that can be trained and compared."""
    from rich.table import Table

    from analog_grasp.adapters.registry import ADAPTERS

    table = Table("name", "title", "trained parameters", "placements", "reference")
    for name, method in ADAPTERS.items():
        placements = ", ".join(method.placements)
        table.add_row(name, method.title, method.trains, placements, method.reference)
    show(table)


def _facts(facts: dict[str, Any]) -> str:
    source, tile = facts["source"], facts["tile"]
    lines = [
        f"{facts['name']}: {facts['title']}",
        f"technology: {facts['technology']}",
        f"source: {source['citation']}" + (f", doi:{source['doi']}" if source["doi"] else ""),
        f"taken from: {source['location']}",
        f"valid for: {facts['valid_range']}",
        f"not modelled: {facts['not_modelled']}",
        f"conductance: {_range(facts)} µS, {_MAPPINGS[facts['conductance']['mapping']]}",
        f"tile: {tile['rows']} x {tile['columns']} weights",
    ]
    if stated := facts["mapping"]:
        values = (f"{key} {value}" for key, value in stated.items() if value is not None)
        lines.append(f"mapping: {', '.join(values)}")
    return "\n".join(lines)


def _range(facts: dict[str, Any]) -> str:
    return f"{facts['conductance']['g_min']:g} to {facts['conductance']['g_max']:g}"


def _noise_tables(card: "CardFigures") -> "tuple[Table, Table]":
    """Return the conductance of devices, and the noise of weights, over time."""
    from rich.table import Table

    from analog_grasp.devices import FRACTIONS

    low, high = (card.facts["conductance"][end] for end in ("g_min", "g_max"))
    devices = Table("time", *(f"to {low + part * (high - low):.3g} µS" for part in FRACTIONS))
    for time, means in card.means.items():
        moments = zip(means, card.stds[time], strict=True)
        devices.add_row(time, *(f"{mean:.2f} ± {std:.2f}" for mean, std in moments))
    weights = Table("time", *(f"weight {part:g}" for part in FRACTIONS))
    for time, stds in card.weight_stds.items():
        weights.add_row(time, *(f"{100 * std:.2f}" for std in stds))
    return devices, weights
