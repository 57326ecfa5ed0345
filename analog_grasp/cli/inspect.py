"""The command that shows what adapters have learned."""

from pathlib import Path
from typing import Annotated

import typer

from analog_grasp.cli.console import show
from analog_grasp.cli.debug import Debug
from analog_grasp.cli.errors import asking


def inspect(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER_FOLDER...", help="Folders of saved GRASP or StochGRASP adapters."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write inspection.csv, .md, .png, .svg and .pdf to this folder.",
            show_default="off",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the scales, shifts and sigmas that adapters have learned, and if they have one mode.

    Several adapters, such as those of several K, stand side by side. A dip test says for every
    layer whether its numbers lie around one mode or several.
    """
    # Here, so that the help need not wait for matplotlib and pyarrow.
    from analog_grasp.report import rich_table
    from analog_grasp.report.inspection import (
        LEGEND,
        inspected,
        sentences,
        tables,
        write_inspection,
    )

    with asking():
        found = inspected(folders)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    for table in tables(found):
        show(rich_table(table))
    show(LEGEND)
    for sentence in sentences(found):
        show(f"- {sentence}")
    if out is not None:
        for file in write_inspection(found, out):
            show(f"wrote {file}")
