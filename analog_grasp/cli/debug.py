"""The option that every command has."""

from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]
