"""The task `csv`: classification or regression of texts in CSV, TSV or JSON lines files."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import datasets
from datasets import Dataset

from analog_grasp.tasks.classification import SentenceTask

_TRAIN, _VALIDATION = ("train",), ("validation", "valid", "dev", "test")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
# Cells that denote a missing or an infinite number.
_MISSING = ("na", "n/a", "nan", "null", "none", "inf", "-inf", "+inf", "infinity", "-infinity")

_LONGEST_CELL = 2**31 - 1

# Line numbers and labels.
Labels = list[tuple[int, Any]]


def table_task(
    data_dir: Path | None, text_column: str | None = None, label_column: str | None = None
) -> SentenceTask:
    """Return the task of a folder with a training and a validation file.

    The files are train and validation (or valid, dev, test) with the suffix .csv, .tsv or .jsonl
    (one JSON object per line; also .json). The first line of a CSV or TSV file names the columns.
    The labels determine the kind of the task:

    - names or integers: classes, scored by accuracy and F1 (macro-F1 for more than two);
    - numbers of which one has a decimal point: a regression (Pearson, Spearman, mean squared
      error);
    - lists of names (JSON only): several labels per text, scored by micro-F1, macro-F1 and the
      fraction of texts with all labels right.

    Args:
        data_dir: The folder.
        text_column: Column of the text, or two columns separated by a comma for pairs of texts; if
            None, "text", with "text_pair" if there is such a column.
        label_column: Column of the label; "label" if None.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: No folder is given, two files have the same name but for the suffix, a column is
            missing or there twice, or a cell is invalid; the message names the line.

    Example:
        >>> import tempfile
        >>> rows = "text,label\\nFine,good\\nNo,bad\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "dev"):
        ...         _ = (Path(folder) / f"{name}.csv").write_text(rows)
        ...     table_task(Path(folder)).label_names
        ('bad', 'good')
    """
    if data_dir is None:
        raise ValueError(
            "The task 'csv' requires a data folder (--data-dir) with a training and a validation "
            "file, such as train.csv and validation.csv."
        )
    paths = [_find(data_dir, stems) for stems in (_TRAIN, _VALIDATION)]
    splits = [_rows(path, text_column, label_column or "label") for path in paths]
    every = [label for _, labels in splits for _, label in labels]
    several = any(isinstance(label, list) for label in every)
    names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("pearson", "spearman", "mse")
    if several or not _are_numbers(every):
        names = _class_names(splits[0][1], paths[0])
        metrics = ("accuracy", "f1" if len(names) == 2 else "macro_f1")
    if several:
        metrics = ("f1", "macro_f1", "accuracy")
    train, validation = (
        Dataset.from_dict(
            {**texts, "label": [_encode(label, names, several, path, n) for n, label in labels]}
        )
        for path, (texts, labels) in zip(paths, splits, strict=True)
    )
    return SentenceTask("csv", train, validation, names, metrics, multi_label=several)


def _find(data_dir: Path, stems: tuple[str, ...]) -> Path:
    names = [f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES]
    found = [data_dir / name for name in names if (data_dir / name).is_file()]
    if same := [path.name for path in found[1:] if path.stem == found[0].stem]:
        raise ValueError(
            f"The folder {data_dir} has the files {found[0].name} and {same[0]}; it should contain "
            f"one {stems[0]} file."
        )
    if found:
        return found[0]
    raise FileNotFoundError(
        f"The task 'csv' finds no {stems[0]} file in {data_dir}; it should contain one of "
        f"{', '.join(names)}."
    )


def _rows(
    path: Path, text_column: str | None, label_column: str
) -> tuple[dict[str, list[str]], Labels]:
    """Return the texts by column of the task, and the labels with their line numbers."""
    texts: dict[str, list[str]] = {}
    labels: Labels = []
    for line, row in _lines(path):
        if text_column is None:
            sources = ["text", *(["text_pair"] if "text_pair" in row else [])]
        else:
            sources = [part.strip() for part in text_column.split(",")]
        if len(sources) > 2:
            raise ValueError(
                f"The text_column is '{text_column}'; it should name one or two columns."
            )
        missing = [name for name in (*sources, label_column) if name not in row]
        if missing:
            raise ValueError(
                f"Line {line} of {path} has no column '{missing[0]}'; its columns are "
                f"{', '.join(row)} (see --text-column and --label-column)."
            )
        for target, source in zip(("text", "text_pair"), sources, strict=False):
            if not _is_text(row[source]) or not row[source].strip():
                raise ValueError(
                    f"Line {line} of {path} has the {source} {row[source]!r}; it should be a text "
                    "that is not blank."
                )
            texts.setdefault(target, []).append(row[source])
        label = row[label_column]
        label = label.strip() if isinstance(label, str) else label
        if label is None or label == "":
            raise ValueError(f"Line {line} of {path} has no {label_column}; it should have one.")
        entries = label if type(label) is list else [label]
        if not all(_is_text(x) or isinstance(x, int | float) for x in entries):
            raise ValueError(
                f"Line {line} of {path} has the {label_column} {str(label)[:80]!r}; it should be a "
                "name, a number or a list of names."
            )
        labels.append((line, label))
    if not labels:
        raise ValueError(f"The file {path} has no rows; it should have some.")
    if len({len(column) for column in texts.values()}) > 1:
        raise ValueError(f"The file {path} has a text_pair in some rows only; it should in all.")
    return texts, labels


def hub_splits(
    what: str, instead: str, *name: str | None, **settings: str
) -> Mapping[str, Dataset]:
    """Return the splits of a data set on the Hub, of which `instead` says what to give instead.

    Raises:
        FileNotFoundError: The Hub cannot be reached, or has no such data set.
        ValueError: The data set cannot be loaded.
    """
    try:
        return datasets.load_dataset(*name, **settings)
    except OSError as error:
        raise FileNotFoundError(
            f"The {what} could not be loaded from the Hub, which cannot be reached or has no data "
            f"set {name[0]}; give {instead} instead."
        ) from error
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:300].rstrip(".")
        raise ValueError(f"The {what} could not be loaded: {reason}.") from error


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a file of UTF-8 text, with or without a byte order mark, its line ends as they are.

    Raises:
        ValueError: What is read is not UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"The file {path} is not UTF-8 text; it should be.") from error


def csv_rows(
    path: Path, delimiter: str = ",", quoting: Any = csv.QUOTE_MINIMAL
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file, with the line numbers of their ends from 1.

    Raises:
        ValueError: The file is not UTF-8 or not valid CSV; the message names the line.
    """
    with text_file(path) as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        # Of the module, and 131,072 characters by default.
        limit = csv.field_size_limit(_LONGEST_CELL)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:
            raise ValueError(
                f"Line {reader.line_num} of {path} is not valid CSV ({error})."
            ) from error
        finally:
            csv.field_size_limit(limit)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows by column name, with the line numbers of their ends from 1."""
    if path.suffix in (".jsonl", ".json"):
        with text_file(path) as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield number, _json_object(path, number, text)
        return
    rows = csv_rows(path, "\t" if path.suffix == ".tsv" else ",")
    filled = ((line, cells) for line, cells in rows if any(cell.strip() for cell in cells))
    first, names = next(filled, (0, []))
    header = [name.strip() for name in names]
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(
            f"Line {first} of {path} names the column '{twice[0]}' twice; each name should be "
            "there once."
        )
    for line, cells in rows:
        if cells and len(cells) != len(header):
            raise ValueError(
                f"Line {line} of {path} has {len(cells)} columns and should "
                f"have {len(header)}: {', '.join(header)}."
            )
        if cells:
            yield line, dict(zip(header, cells, strict=True))


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    twice: list[str] = []

    def row_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(pairs)

    try:
        row = json.loads(line, object_pairs_hook=row_of)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"Line {number} of {path} should be a JSON object, one per line.")
    if twice:
        raise ValueError(
            f"Line {number} of {path} names '{twice[0]}' twice; each name should be there once."
        )
    return row


def _are_numbers(labels: list[Any]) -> bool:
    """Return whether labels are those of a regression: numbers, one of which is no integer."""
    present = [label for label in labels if str(label).lower() not in _MISSING]
    if any(_number(label) is None for label in present):
        return False
    return any(
        isinstance(label, float) or not str(label).lstrip("+-").isdigit() for label in present
    )


def _is_text(cell: Any) -> bool:
    """Return True for text without lone surrogates, which JSON can contain and UTF-8 cannot."""
    return isinstance(cell, str) and not any("\ud800" <= letter <= "\udfff" for letter in cell)


def _number(label: Any) -> float | None:
    # Python reads underscores between digits, as in 1_1.
    if isinstance(label, str) and "_" in label:
        return None
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(label, bool) else None


def _class_names(labels: Labels, path: Path) -> tuple[str, ...]:
    """Return the names of the classes in order: integers by value, other names alphabetically."""
    names = {
        str(name) for _, label in labels for name in (label if isinstance(label, list) else [label])
    }
    numeric = {name for name in names if _number(name) is not None}
    if numeric and {name.lower() for name in names - numeric} <= set(_MISSING):
        names = numeric
    if len(names) < 2:
        raise ValueError(
            f"The labels in {path} are {', '.join(names) or 'none'}; there should be two classes "
            "or more."
        )
    return tuple(sorted(names, key=lambda name: (_number(name) or 0.0, name)))


def _encode(label: Any, names: tuple[str, ...], several: bool, path: Path, line: int) -> Any:
    """Return a label as the number, the index, or the list of indicators that a task has."""
    if several:
        expected = f"a list of names from {', '.join(names)}"
        if isinstance(label, list) and {str(name) for name in label} <= set(names):
            return [int(name in {str(each) for each in label}) for name in names]
    elif names:
        expected = f"one of those in the training file: {', '.join(names)}"
        if str(label) in names:
            return names.index(str(label))
    else:
        expected, number = "a finite number", _number(label)
        if number is not None:
            return number
    raise ValueError(
        f"Line {line} of {path} has the label {label!r}; it should be {expected[:300]}."
    )
