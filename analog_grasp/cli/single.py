"""The command that trains one adapter."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from peft import PeftModel

from analog_grasp.cli import options
from analog_grasp.cli.console import Stages, show
from analog_grasp.cli.errors import RequestError, asking
from analog_grasp.cli.options import DATA, TRAINING, takes
from analog_grasp.experiments import (
    learned_parameters,
    new_adapter,
    resolve,
    save_adapter,
    train_adapter,
)
from analog_grasp.report.tables import scores_line
from analog_grasp.tasks import load_task


@takes(DATA, TRAINING)
def train(
    context: typer.Context,
    adapter: Annotated[str, typer.Option(help="Its name; see `analog-grasp adapters`.")],
    model: options.Model = None,
    seed: options.TrainingSeed = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The adapter's folder, a new one.", show_default="runs/train/ADAPTER"),
    ] = None,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Train one adapter into a folder that PEFT, deploy and drift can load."""
    out = out or Path("runs/train") / adapter
    with asking():
        _must_be_new(out)
        settings = resolve({**options.given(context), "adapters": (adapter,)}, config)
        data = load_task(settings.task, settings.data_dir)
        adapted = new_adapter(settings, data, adapter)
        # Made before the training, which would be lost if it could not be made after it.
        out.mkdir(parents=True, exist_ok=True)
    with Stages() as stages:
        train_adapter(adapted, settings, data, f"training {adapter}", stages)
    _save(adapted, out)
    own, head = learned_parameters(adapted)
    show(f"{adapter}: {own:,} adapter parameters, {head:,} of the task head")
    show(scores_line("digital", data.scores(adapted)))
    show(f"wrote {out}")


def _must_be_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"The output {out} is not empty: name a new folder for the adapter.")


def _save(adapted: PeftModel, out: Path) -> None:
    """Write the adapter whole or not at all: half a folder would be refused as not empty."""
    part = out.with_name(f".{out.name}.part")
    try:
        save_adapter(adapted, part)
        out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
