"""The tasks of GLUE, from their official files or from the Hub.

Each entry of `GLUE` is one task.

Source:
    A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
    Understanding", ICLR 2019.
"""

import csv
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from datasets import Dataset

from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.tables import csv_rows

_HUB_NAME = "nyu-mll/glue"
_BINARY = {"0": 0, "1": 1}


@dataclass(frozen=True)
class GlueSpec:
    """Location of the sentences and labels of a task, in the official files and on the Hub.

    Args:
        folder: Folder of the official files: train.tsv and those of the development set.
        columns: Columns of these files in their order.
        text: Columns of the sentence, or of the pair of sentences.
        label: Column of the label.
        metrics: Metrics reported by GLUE, the primary one first.
        hub_text: As `text`, on the Hub, where the label column is always `label`; None if the same.
        labels: Label for each cell of the label column; empty for a regression.
        label_names: Names of the classes in the order of the labels; empty for a regression.
        header: True if the first line of the files names the columns.
        dev: Files of the development set by part; the part is "" if there is only one.
        hub_dev: As `dev`, the splits on the Hub.
        corpus: Files of the original corpus of the same form, read in place of missing ones of
            GLUE: training and test set.
        broken_rows: True if the official files have rows broken by line breaks, to be skipped.
        bounds: Lowest and highest label of a regression.
    """

    folder: str
    columns: tuple[str, ...]
    text: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    label: str = "label"
    metrics: tuple[str, ...] = ("accuracy",)
    hub_text: tuple[str, ...] | None = None
    labels: Mapping[str, int] = field(default_factory=lambda: _BINARY)
    header: bool = True
    dev: Mapping[str, str] = field(default_factory=lambda: {"": "dev.tsv"})
    hub_dev: Mapping[str, str] = field(default_factory=lambda: {"": "validation"})
    corpus: tuple[str, ...] = ()
    broken_rows: bool = False
    bounds: tuple[float, float] = (0.0, 0.0)


_SENTENCES = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")

GLUE: dict[str, GlueSpec] = {
    "cola": GlueSpec(
        "CoLA", ("source", "label", "star", "sentence"), ("sentence",),
        ("unacceptable", "acceptable"), metrics=("matthews",), header=False,
    ),
    "sst2": GlueSpec("SST-2", ("sentence", "label"), ("sentence",), ("negative", "positive")),
    "mrpc": GlueSpec(
        "MRPC", ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        ("#1 String", "#2 String"), ("not_equivalent", "equivalent"), label="Quality",
        metrics=("accuracy", "f1"), hub_text=_SENTENCES,
        corpus=("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"),
    ),
    "qqp": GlueSpec(
        "QQP", ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        ("question1", "question2"), ("not_duplicate", "duplicate"), label="is_duplicate",
        metrics=("accuracy", "f1"), broken_rows=True,
    ),
    "mnli": GlueSpec(
        "MNLI",
        (
            "index", "promptID", "pairID", "genre", "sentence1_binary_parse",
            "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
            "sentence1", "sentence2", "gold_label",
        ),
        _SENTENCES, ("entailment", "neutral", "contradiction"), label="gold_label",
        metrics=("accuracy", "accuracy_mm"), hub_text=("premise", "hypothesis"),
        labels={"entailment": 0, "neutral": 1, "contradiction": 2},
        dev={"": "dev_matched.tsv", "mm": "dev_mismatched.tsv"},
        hub_dev={"": "validation_matched", "mm": "validation_mismatched"},
    ),
    "qnli": GlueSpec(
        "QNLI", ("index", "question", "sentence", "label"), ("question", "sentence"), _ENTAILED,
        labels={"entailment": 0, "not_entailment": 1},
    ),
    "rte": GlueSpec(
        "RTE", ("index", *_SENTENCES, "label"), _SENTENCES, _ENTAILED,
        labels={"entailment": 0, "not_entailment": 1},
    ),
    "stsb": GlueSpec(
        "STS-B",
        (
            "index", "genre", "filename", "year", "old_index", "source1", "source2",
            "sentence1", "sentence2", "score",
        ),
        _SENTENCES, label="score", metrics=("pearson", "spearman"), labels={}, bounds=(0.0, 5.0),
    ),
    "wnli": GlueSpec(
        "WNLI", ("index", *_SENTENCES, "label"), _SENTENCES, ("not_entailment", "entailment"),
    ),
}  # fmt: skip


def glue(name: str, data_dir: Path | None = None) -> SentenceTask:
    """Return a task of GLUE.

    Args:
        name: A key of `GLUE`.
        data_dir: Folder that contains the official folder of the task, such as `SST-2` with
            train.tsv and dev.tsv for "sst2"; the Hub if None. For MRPC,
            msr_paraphrase_train.txt and msr_paraphrase_test.txt are read in place of missing
            train.tsv and dev.tsv: the corpus's own training and test sets.

    Raises:
        FileNotFoundError: A file is missing, or the Hub cannot be reached.
        ValueError: A file differs in form from the official one.
    """
    spec = GLUE[name]
    splits = _from_hub(name, spec) if data_dir is None else _from_files(name, spec, data_dir)
    return SentenceTask(f"glue/{name}", *splits, spec.label_names, spec.metrics)


def _from_files(name: str, spec: GlueSpec, data_dir: Path) -> tuple[Dataset, Dataset]:
    home = data_dir / spec.folder
    files = [("train.tsv", *spec.dev.values()), *([spec.corpus] if spec.corpus else [])]
    missing = [[file for file in each if not (home / file).is_file()] for each in files]
    complete = next((each for each, lacks in zip(files, missing, strict=True) if not lacks), None)
    if complete is None:
        columns = ", ".join(spec.columns)
        header = "a first line of" if spec.header else "no header, but"
        form = f"{header} {columns}" + ("" if spec.header else " in each line")
        other = f" (or {' and '.join(spec.corpus)})" if spec.corpus else ""
        raise FileNotFoundError(
            f"The task 'glue/{name}' finds no {' and no '.join(missing[0])} in {home}; the data "
            f"folder should hold {_expected(spec)}{other}, each with {form}, separated by tabs."
        )
    train, *dev = (_read(home / file, spec) for file in complete)
    return train, _joined(dict(zip(spec.dev, dev, strict=True)))


def _joined(parts: Mapping[str, Dataset]) -> Dataset:
    """Return the parts of a development set as one, with a column `part` if there are several."""
    if len(parts) == 1:
        return parts[""]
    return datasets.concatenate_datasets(
        [rows.add_column("part", [part] * len(rows)) for part, rows in parts.items()]
    )


def _expected(spec: GlueSpec) -> str:
    return " and ".join(f"{spec.folder}/{file}" for file in ("train.tsv", *spec.dev.values()))


def _read(path: Path, spec: GlueSpec) -> Dataset:
    rows: dict[str, list] = {"text": [], "label": []}
    for number, row in _lines(path, spec):
        for target, column in zip(("text", "text_pair"), spec.text, strict=False):
            rows.setdefault(target, []).append(row[column])
        rows["label"].append(_label(path, number, row[spec.label], spec))
    if not rows["label"]:
        raise ValueError(f"The file {path} has no rows; it should be the official one.")
    return Dataset.from_dict(rows)


def _lines(path: Path, spec: GlueSpec) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows by column name, with their line numbers from 1."""
    broken = 0
    # The files have no quoting: a quotation mark belongs to its sentence.
    lines = csv_rows(path, "\t", csv.QUOTE_NONE)
    columns = _header(path, next(lines, (1, []))[1], spec) if spec.header else spec.columns
    for number, cells in lines:
        if spec.broken_rows and len(cells) < len(columns):
            broken += 1
            continue
        if len(cells) != len(columns):
            raise ValueError(
                f"Line {number} of {path} has {len(cells)} columns and should have "
                f"{len(columns)}: {', '.join(columns)}, separated by tabs."
            )
        yield number, dict(zip(columns, cells, strict=True))
    if broken:
        warnings.warn(
            f"{broken} lines of {path} are parts of rows with a line break inside; they are "
            "skipped, as in the data set on the Hub.",
            stacklevel=2,
        )


def _header(path: Path, cells: list[str], spec: GlueSpec) -> tuple[str, ...]:
    # Columns that are not used may differ, as between training and development files of some tasks.
    if not {*spec.text, spec.label} <= set(cells):
        raise ValueError(
            f"The first line of {path} is '{' '.join(cells)[:80]}'; it should name the columns "
            f"{', '.join(spec.columns)}, separated by tabs."
        )
    return tuple(cells)


def _label(path: Path, number: int, cell: str, spec: GlueSpec) -> int | float:
    if spec.labels:
        if cell in spec.labels:
            return spec.labels[cell]
        expected = " or ".join(spec.labels)
    else:
        low, high = spec.bounds
        try:
            if low <= float(cell) <= high:
                return float(cell)
        except ValueError:
            pass
        expected = f"a number from {low:g} to {high:g}"
    raise ValueError(
        f"Line {number} of {path} has the {spec.label} '{cell}'; it should be {expected}."
    )


def _from_hub(name: str, spec: GlueSpec) -> tuple[Dataset, Dataset]:
    try:
        splits = datasets.load_dataset(_HUB_NAME, name)
    except OSError as error:
        raise FileNotFoundError(
            f"The task 'glue/{name}' could not be loaded from the Hub ({_HUB_NAME}); give a data "
            f"folder (--data-dir) with the official files {_expected(spec)} instead."
        ) from error
    dev = {part: _renamed(splits[split], spec) for part, split in spec.hub_dev.items()}
    return _renamed(splits["train"], spec), _joined(dev)


def _renamed(rows: Dataset, spec: GlueSpec) -> Dataset:
    texts = spec.hub_text or spec.text
    columns = dict(zip(("text", "text_pair"), texts, strict=False)) | {"label": "label"}
    return Dataset.from_dict({ours: rows[theirs][:] for ours, theirs in columns.items()})
