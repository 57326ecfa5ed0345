"""Names and checks of folders, atomic writes, bounded reads of TOML files of unknown origin."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any
from uuid import uuid4

LARGEST_FILE = 256 << 10
# The time to parse a dotted key grows with the square of its number of parts.
_LONGEST_LINE = 4096
_DEEPEST = 32
# No card or setting is a date or time.
_SCALARS = (str, bool, int, float)
# Unicode category Cc without tab and line feed: terminals interpret them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def check_model_folder(path: Path) -> None:
    """Raise FileNotFoundError if a path is a folder, but not that of a pre-trained model.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_model_folder(Path(folder))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: The model folder ... has no config.json; it should be a folder ...
    """
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"The model folder {path} has no config.json; it should be a folder written by "
            "save_pretrained of transformers."
        )


def read_toml(path: Path, subject: str) -> dict[str, Any]:
    """Return the content of a TOML file from an untrusted source.

    Args:
        path: The file.
        subject: The subject of an error's sentence, such as "The config file run.toml".

    Raises:
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be read.
        ValueError: The file is not valid TOML, or exceeds a limit: 256 KiB, 32 levels, lines of
            4,096 bytes, integers of 64 bits, no dates, no control characters.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.toml"
        ...     _ = path.write_text("a = " + "[" * 40 + "]" * 40)
        ...     read_toml(path, "The file mine.toml")
        Traceback (most recent call last):
        ValueError: The file mine.toml is not valid TOML: it is nested too deeply.
    """
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{subject} {what}: give the path of a TOML file.")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise OSError(f"{subject} cannot be read: {error}.") from None
    if len(content) > LARGEST_FILE:
        raise ValueError(
            f"{subject} is larger than {LARGEST_FILE >> 10} KiB: such a file is a few kilobytes."
        )
    if max(map(len, content.splitlines()), default=0) > _LONGEST_LINE:
        raise ValueError(
            f"{subject} has a line of more than {_LONGEST_LINE} bytes: break it into several."
        )
    try:
        data = tomllib.loads(content.decode("utf-8"))
        _check(data)
    except (ValueError, RecursionError) as error:
        # Python's own message on recursion does not describe the file.
        deep = isinstance(error, RecursionError)
        reason = "it is nested too deeply" if deep else str(error)[:200].rstrip(".")
        raise ValueError(f"{subject} is not valid TOML: {reason}.") from None
    return data


def _check(part: Any, depth: int = 0) -> None:
    """Raise ValueError for values that no card or setting may have."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(part, dict):
        for key, value in part.items():
            _check(key, depth)
            _check(value, depth + 1)
    elif isinstance(part, list):
        for value in part:
            _check(value, depth + 1)
    elif not isinstance(part, _SCALARS):
        raise ValueError(f"it contains the date or time {part}, where text or a number is accepted")
    elif isinstance(part, int) and not -(2**63) <= part < 2**63:
        raise ValueError("it contains an integer of more than 64 bits")
    elif isinstance(part, str) and _CONTROL.search(part):
        raise ValueError("it contains text with control characters")


def write_atomically(path: Path | str, content: bytes) -> None:
    """Replace a file in an existing folder in one step, so that no reader sees a partial file.

    Raises:
        OSError: The file cannot be written; an older one is kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", b"whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    # Neither threads nor machines that share a folder write the same part.
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def place_name(text: str) -> str:
    """Return the name of a folder for a device, whose name may have a colon."""
    return text.replace(":", "-")
