"""The command that says whether the installation works."""

import traceback
from collections import Counter

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analog_grasp.cli.console import show
from analog_grasp.cli.debug import Debug
from analog_grasp.cli.diagnosis import CHECKS

_STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


def doctor(debug: Debug = False) -> None:
    """Say whether this installation works, and how to mend what does not.

    Ends with status 1 where a check has failed; a note is no failure.
    """
    table = Table("check", "state", "finding", "mend")
    states: Counter[str] = Counter()
    with Console(stderr=True).status("") as status:
        for name, check in CHECKS.items():
            status.update(f"checking: {name}")
            finding = check()
            states[finding.state] += 1
            # As text: a foreign error message may hold what rich takes for markup.
            state = Text(finding.state, _STYLES[finding.state])
            table.add_row(name, state, Text(finding.text), Text(finding.mend))
            if debug and finding.error is not None:
                traceback.print_exception(finding.error)
    show(table)
    if states["failed"]:
        show(f"{states['failed']} of {len(CHECKS)} checks failed: see their mend.")
        raise typer.Exit(1)
    show("This installation works.")
