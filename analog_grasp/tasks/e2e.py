"""Data of the E2E NLG Challenge: descriptions of restaurants from meaning representations.

A meaning representation is a list such as "name[Zizzi], area[riverside]", and has several
references, each one a row of the official files.

Source:
    J. Novikova, O. Dušek and V. Rieser, "The E2E Dataset: New Challenges for End-to-End
    Generation", SIGDIAL 2017.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
from datasets import Dataset

from analog_grasp.tasks.generation import GenerationTask
from analog_grasp.tasks.tables import csv_rows
from analog_grasp.tasks.text_metrics import COCO_METRICS, TEXT_METRICS, missing_java

# The Hub's own conversion of a data set whose repository contains a script, which is not run.
_HUB_NAME, _HUB_REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
_HUB_COLUMNS = ("meaning_representation", "human_reference")
_COLUMNS = ("mr", "ref")
_TRAIN, _DEV, _TEST = "trainset.csv", "devset.csv", "testset_w_refs.csv"
_HUB_SPLITS = {_TRAIN: "train", _DEV: "validation", _TEST: "test"}
# One meaning representation in five of the development set is measured.
_HELD_OUT = 5


def e2e(data_dir: Path | None = None) -> GenerationTask:
    """Return the challenge as in published results: trainset.csv and testset_w_refs.csv.

    Args:
        data_dir: Folder with these official files; the Hub if None.

    Raises:
        FileNotFoundError: A file is missing, or the Hub cannot be reached.
        ValueError: A file differs in form from the official one.
    """
    train, test = _load("e2e", (_TRAIN, _TEST), data_dir)
    return _task("e2e", train, test)


def e2e_dev(data_dir: Path | None = None) -> GenerationTask:
    """Return a task of the development set (devset.csv) alone; arguments and errors as `e2e`.

    Every fifth meaning representation, in the order of the file, is measured; the others are for
    training. Scores are not comparable with published ones.
    """
    (dev,) = _load("e2e/dev", (_DEV,), data_dir)
    numbers = range(len(dev))
    return _task(
        "e2e/dev",
        dev.select([i for i in numbers if i % _HELD_OUT != _HELD_OUT - 1]),
        dev.select([i for i in numbers if i % _HELD_OUT == _HELD_OUT - 1]),
    )


def linearised(meaning: str) -> str:
    """Return a meaning representation as a prompt, in the form of the runs of the LoRA paper.

    Example:
        >>> linearised("name[Blue Spice], customer rating[5 out of 5]")
        'name : Blue Spice | customer rating : 5 out of 5'
    """
    slots = re.findall(r"([^\[\],]+)\[([^\]]*)\]", meaning)
    return " | ".join(f"{name.strip()} : {value.strip()}".strip() for name, value in slots)


def _task(name: str, train: Dataset, validation: Dataset) -> GenerationTask:
    reason = missing_java()
    if reason is not None:
        warnings.warn(
            f"The task '{name}' is scored without {', '.join(COCO_METRICS)}: {reason}.",
            stacklevel=2,
        )
    kept = [metric for metric in TEXT_METRICS if reason is None or metric not in COCO_METRICS]
    return GenerationTask(name, train, validation, metrics=tuple(kept))


def _load(task: str, files: tuple[str, ...], data_dir: Path | None) -> list[Dataset]:
    if data_dir is None:
        return _from_hub(task, files)
    missing = [file for file in files if not (data_dir / file).is_file()]
    if missing:
        instead = (
            "; the task 'e2e/dev' uses devset.csv alone"
            if (data_dir / _DEV).is_file() and _TRAIN in missing
            else ""
        )
        raise FileNotFoundError(
            f"The task '{task}' finds no {' and no '.join(missing)} in {data_dir}; the data folder "
            f"should contain {' and '.join(files)}, CSV files with a first line of "
            f"{','.join(_COLUMNS)}{instead}."
        )
    return [official_file(data_dir / file) for file in files]


def official_file(path: Path) -> Dataset:
    """Return an official file as rows of a `GenerationTask`: `text` and `references`.

    Raises:
        ValueError: The file differs in form from the official ones.
    """
    rows: list[tuple[str, str]] = []
    lines = csv_rows(path)
    if tuple(first := next(lines, (0, []))[1]) != _COLUMNS:
        raise ValueError(
            f"The first line of {path} is '{','.join(first)[:80]}'; it should be "
            f"{','.join(_COLUMNS)}."
        )
    for line, cells in lines:
        if len(cells) != len(_COLUMNS) or not all(cell.strip() for cell in cells):
            raise ValueError(
                f"Line {line} of {path} has {len(cells)} columns or an empty "
                "one; it should have a meaning representation and a reference."
            )
        rows.append((cells[0], cells[1]))
    if not rows:
        raise ValueError(f"The file {path} has no rows; it should be the official one.")
    return _grouped(rows)


def _from_hub(task: str, files: tuple[str, ...]) -> list[Dataset]:
    try:
        splits: Mapping[str, Dataset] = datasets.load_dataset(_HUB_NAME, revision=_HUB_REVISION)
    except OSError as error:
        raise FileNotFoundError(
            f"The task '{task}' could not be loaded from the Hub ({_HUB_NAME}); give a data folder "
            f"(--data-dir) with the official {' and '.join(files)} instead."
        ) from error
    chosen = (splits[_HUB_SPLITS[file]] for file in files)
    return [_grouped(zip(*(rows[c][:] for c in _HUB_COLUMNS), strict=True)) for rows in chosen]


def _grouped(rows: Iterable[tuple[str, str]]) -> Dataset:
    """Return one row per meaning representation, in the order of first occurrence."""
    references: dict[str, list[str]] = {}
    for meaning, reference in rows:
        references.setdefault(meaning, []).append(reference)
    return Dataset.from_dict(
        {
            "text": [linearised(meaning) for meaning in references],
            "references": list(references.values()),
        }
    )
