"""One adapter, trained and saved."""

import os
import shutil
from pathlib import Path
from typing import Any

import tomli_w
from peft import PeftModel

from analog_grasp.cli.console import Stages, show
from analog_grasp.cli.errors import RequestError, asking
from analog_grasp.report.tables import scores_line
from analog_grasp.study.adapters import learned_parameters, new_adapter, save_adapter, train_adapter
from analog_grasp.study.config import StudyConfig, first_change, flat, resolve
from analog_grasp.utils.io import read_toml, write_atomically

_ASKED_FILE = "train.toml"


def train_one(
    settings: dict[str, Any],
    adapter: str,
    out: Path | None,
    save_steps: int | None,
    config: Path | None,
) -> None:
    """Train an adapter, or go on from its last checkpoint; save it and tell its score."""
    out = out or Path("runs/train") / adapter
    first = os.environ.get("RANK", "0") == "0"
    with asking():
        _must_be_new(out)
        asked = resolve({**settings, "adapters": (adapter,)}, config)
        data = asked.load_task()
        adapted = new_adapter(asked, data, adapter)
        # Made before the training, which would be lost if it could not be made after it.
        out.mkdir(parents=True, exist_ok=True)
        checkpoints = _checkpoints(out, asked, first)
    with Stages(quiet=not first) as stages:
        train_adapter(adapted, asked, data, f"training {adapter}", stages, checkpoints, save_steps)
    if not first:
        return
    _save(adapted, out)
    shutil.rmtree(checkpoints)
    own, head = learned_parameters(adapted)
    show(f"{adapter}: {own:,} adapter parameters, {head:,} of the task head")
    show(scores_line("digital", data.scores(adapted)))
    show(f"wrote {out}")


def _must_be_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"The output {out} is not empty: name a new folder for the adapter.")


def _checkpoints(out: Path, settings: StudyConfig, first: bool) -> Path:
    """The folder beside the adapter's that its checkpoints are in until it is trained."""
    folder = out.with_name(f".{out.name}.training")
    asked = flat(settings)
    if (folder / _ASKED_FILE).is_file():
        there = read_toml(folder / _ASKED_FILE, f"The file {folder / _ASKED_FILE}")
        if name := first_change(there, asked):
            raise RequestError(
                f"The training in {folder} was begun with {name} {there.get(name)!r} and not "
                f"{asked.get(name)!r}: give the same settings to go on with it, or remove that "
                "folder to begin anew."
            )
    elif first:
        folder.mkdir(exist_ok=True)
        write_atomically(folder / _ASKED_FILE, tomli_w.dumps(asked).encode())
    return folder


def _save(adapted: PeftModel, out: Path) -> None:
    """Write the adapter whole or not at all: half a folder would be refused as not empty."""
    part = out.with_name(f".{out.name}.part")
    try:
        save_adapter(adapted, part)
        out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
