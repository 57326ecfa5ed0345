"""What adapters have learned, shown."""

from collections.abc import Sequence
from pathlib import Path

from analog_grasp.cli.console import show
from analog_grasp.cli.errors import asking
from analog_grasp.report import rich_table
from analog_grasp.report.inspection import LEGEND, inspected, sentences, tables, write_inspection


def show_learned(folders: Sequence[Path], out: Path | None) -> None:
    """Tables of the adapters' numbers; their files too, where a folder is given for them."""
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
