"""The tasks of GLUE, from their official files or from the Hub; each entry of `GLUE` is one task.

Source:
    A. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
    Understanding", ICLR 2019.
"""

import csv
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.tables import csv_rows, hub_splits

_HUB_NAME = "nyu-mll/glue"
_LOWEST, _HIGHEST = 0.0, 5.0


@dataclass(frozen=True)
class GlueSpec:
    """Location of the sentences and labels of a task, in the official files and on the Hub.

    Args:
        folder: Folder of the official files: train.tsv and those of the development set.
        columns: Columns of these files in their order.
        text: Columns of the sentence, or of the pair of sentences.
        label_names: Names of the classes in the order of the labels; empty for a regression, whose
            labels are from 0 to 5.
        label: Column of the label; on the Hub always `label`.
        named: True if the cells of the label column are the names of the classes, not their index.
        metrics: Metrics reported by GLUE, the primary one first.
        hub_text: As `text`, on the Hub; None if the same.
        header: True if the first line of the files names the columns.
        parts: Endings of the names of the development set by part; the part is "" if there is one.
        corpus: Files of the original corpus of the same form, read in place of missing ones of
            GLUE: training and test set.
        broken_rows: True if the official files have rows broken by line breaks, to be skipped.
    """

    folder: str
    columns: tuple[str, ...]
    text: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    label: str = "label"
    named: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    hub_text: tuple[str, ...] | None = None
    header: bool = True
    parts: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    corpus: tuple[str, ...] = ()
    broken_rows: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The official files: of training, and of each part of the development set."""
        return ("train.tsv", *(f"dev{ending}.tsv" for ending in self.parts.values()))


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
        named=True, metrics=("accuracy", "accuracy_mm"), hub_text=("premise", "hypothesis"),
        parts={"": "_matched", "mm": "_mismatched"},
    ),
    "qnli": GlueSpec(
        "QNLI", ("index", "question", "sentence", "label"), ("question", "sentence"), _ENTAILED,
        named=True,
    ),
    "rte": GlueSpec(
        "RTE", ("index", *_SENTENCES, "label"), _SENTENCES, _ENTAILED, named=True,
    ),
    "stsb": GlueSpec(
        "STS-B",
        (
            "index", "genre", "filename", "year", "old_index", "source1", "source2",
            "sentence1", "sentence2", "score",
        ),
        _SENTENCES, label="score", metrics=("pearson", "spearman"),
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
    train, *dev = _from_hub(name, spec) if data_dir is None else _from_files(name, spec, data_dir)
    if len(dev) > 1:
        parts = zip(spec.parts, dev, strict=True)
        dev = [rows.add_column("part", [part] * len(rows)) for part, rows in parts]
    measured = concatenate_datasets(dev)
    return SentenceTask(f"glue/{name}", train, measured, spec.label_names, spec.metrics)


def _from_files(name: str, spec: GlueSpec, data_dir: Path) -> list[Dataset]:
    home = data_dir / spec.folder
    files = [spec.files, *([spec.corpus] if spec.corpus else [])]
    missing = [[file for file in each if not (home / file).is_file()] for each in files]
    complete = next((each for each, lacks in zip(files, missing, strict=True) if not lacks), None)
    if complete is None:
        columns = ", ".join(spec.columns)
        form = f"a first line of {columns}" if spec.header else f"no header, but {columns} in each"
        other = f" (or {' and '.join(spec.corpus)})" if spec.corpus else ""
        raise FileNotFoundError(
            f"The task 'glue/{name}' finds no {' and no '.join(missing[0])} in {home}; the data "
            f"folder should hold {_expected(spec)}{other}, each with {form}"
            f"{'' if spec.header else ' line'}, separated by tabs."
        )
    return [_read(home / file, spec) for file in complete]


def _from_hub(name: str, spec: GlueSpec) -> list[Dataset]:
    instead = f"a data folder (--data-dir) with the official files {_expected(spec)}"
    splits = hub_splits(f"task 'glue/{name}'", instead, _HUB_NAME, name)
    columns = dict(zip(("text", "text_pair"), spec.hub_text or spec.text, strict=False))
    columns["label"] = "label"
    chosen = (splits["train"], *(splits[f"validation{each}"] for each in spec.parts.values()))
    return [
        Dataset.from_dict({ours: rows[theirs][:] for ours, theirs in columns.items()})
        for rows in chosen
    ]


def _expected(spec: GlueSpec) -> str:
    return " and ".join(f"{spec.folder}/{file}" for file in spec.files)


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
    columns = list(spec.columns)
    if spec.header:
        columns = next(lines, (1, []))[1]
        # Unused columns may differ, as between training and development files of some tasks.
        if not {*spec.text, spec.label} <= set(columns):
            raise ValueError(
                f"The first line of {path} is '{' '.join(columns)[:80]}'; it should name the "
                f"columns {', '.join(spec.columns)}, separated by tabs."
            )
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


def _label(path: Path, number: int, cell: str, spec: GlueSpec) -> int | float:
    if spec.label_names:
        known = spec.label_names if spec.named else ("0", "1")
        if cell in known:
            return known.index(cell)
        expected = " or ".join(known)
    else:
        try:
            if _LOWEST <= float(cell) <= _HIGHEST:
                return float(cell)
        except ValueError:
            pass
        expected = f"a number from {_LOWEST:g} to {_HIGHEST:g}"
    raise ValueError(
        f"Line {number} of {path} has the {spec.label} '{cell}'; it should be {expected}."
    )
