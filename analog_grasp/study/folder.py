"""The folder of a run: who it belongs to, and what it says of itself."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from analog_grasp.study.config import (
    CHANGEABLE,
    RECORDS,
    StudyConfig,
    first_change,
    flat,
    resolve,
)
from analog_grasp.utils.io import read_toml, write_atomically

_PACKAGES = ("analog-grasp", "torch", "aihwkit", "transformers", "peft", "numpy")
RUN_FILE = "run.toml"
STORE_FILE = "results.sqlite"
LOG_FILE = "run.log"


def claim(directory: Path, settings: StudyConfig) -> None:
    """Make a folder the one of a run, or find that it is already: then the run goes on.

    Writes run.toml: the settings, the versions and the seeds of the chip instances. How the work
    is done may change as the run goes on; what it measures may not.

    Raises:
        ValueError: The folder holds another run, or files that are not of a run.
        OSError: The folder cannot be made or written.
    """
    if (directory / RUN_FILE).is_file():
        if _check_same(directory, settings) == settings:
            return
    elif directory.exists() and (not directory.is_dir() or any(visible(directory))):
        raise ValueError(
            f"The output {directory} holds files that are not of a run: name an empty or new "
            "folder."
        )
    directory.mkdir(parents=True, exist_ok=True)
    asked = flat(settings)
    records = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in _PACKAGES},
        "chips": {"seeds": [settings.run.seed + repeat for repeat in range(settings.run.repeats)]},
    }
    write_atomically(directory / RUN_FILE, tomli_w.dumps(asked | records).encode())


def visible(directory: Path) -> list[Path]:
    """The files of a folder but those that another process is just writing."""
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


def read(directory: Path) -> tuple[StudyConfig, dict[str, Any]]:
    """Return the settings of a run and what it recorded (versions, chips).

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: Its run.toml is damaged.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"The folder {directory} holds no run: it should hold {RUN_FILE} and {STORE_FILE}, "
            "which compare writes."
        )
    settings = resolve({}, path)
    recorded = read_toml(path, f"The file {path}")
    return settings, {name: recorded[name] for name in RECORDS if name in recorded}


def _check_same(directory: Path, settings: StudyConfig) -> StudyConfig:
    """The settings of the run that is there, which must be these but for those that may change."""
    there, _ = read(directory)
    before, now = (flat(each, CHANGEABLE) for each in (there, settings))
    if name := first_change(before, now):
        raise ValueError(
            f"The output {directory} holds another run, whose {name} is {before.get(name)!r} and "
            f"not {now.get(name)!r}: name another folder, or the same settings to go on with that run."
        )
    return there
