"""A task: sentences with labels, and how a model is scored on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from analog_grasp.tasks.metrics import CLASSIFICATION, REGRESSION, score
from analog_grasp.tasks.sources import tokenizer_for

Split = Literal["train", "validation"]


@dataclass(eq=False)
class Task:
    """Sentences with labels to learn from and to measure on, and the metrics of the measurement.

    Attributes:
        name: as reports show it, "glue/sst2".
        train: the rows to learn from, with the columns `text`, `label` and, where two sentences
            are compared, `text_pair`. Labels are integers 0 to `num_labels` - 1, or, for a
            regression, numbers.
        validation: the rows to measure on, with the same columns.
        label_names: the names of the labels in their order; empty for a regression.
        metrics: of those in `analog_grasp.tasks.metrics`; the first is the primary one.

    Raises:
        ValueError: a split is empty, lacks a column or holds a label outside the range, or a
            metric is unknown or does not fit.

    Example:
        >>> rows = Dataset.from_dict({"text": ["Awful.", "Superb."], "label": [0, 1]})
        >>> task = Task("mine", rows, rows, label_names=("negative", "positive"))
        >>> task.num_labels, task.regression, task.metrics
        (2, False, ('accuracy',))
    """

    name: str
    train: Dataset
    validation: Dataset
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    _encoded: dict[tuple[Split, PreTrainedTokenizerBase, int], Dataset] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        _check_metrics(self)
        _check_rows(self, "train", self.train)
        _check_rows(self, "validation", self.validation)

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers to predict instead of classes."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """The width of the model's output: the number of classes, or 1 for a regression."""
        return len(self.label_names) or 1

    def labels(self, split: Split = "validation") -> np.ndarray:
        """The labels of a split, shape (n,), in the data set's own order."""
        return np.asarray(self._rows(split)["label"][:])

    def encode(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int = 128
    ) -> Dataset:
        """A split as token ids, in the data set's own order, unpadded.

        The columns are those of the tokenizer (`input_ids`, `attention_mask`, for some models
        `token_type_ids`) and `labels`. Each (split, tokenizer, max_length) is tokenised once and
        kept in memory; no file is written.
        """
        key = (split, tokenizer, max_length)
        if key not in self._encoded:
            rows = self._rows(split)
            pair = rows["text_pair"][:] if "text_pair" in rows.column_names else None
            tokens = tokenizer(rows["text"][:], pair, truncation=True, max_length=max_length)
            labels = self.labels(split)
            # transformers' loss of a regression takes no integers.
            labels = labels.astype(np.float32) if self.regression else labels
            self._encoded[key] = Dataset.from_dict({**tokens, "labels": labels})
        return self._encoded[key]

    def predict(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> np.ndarray:
        """The model's logits for every example, in the data set's own order.

        Sentences of like length share a batch, so that little is spent on padding. The model runs
        on the device it lies on, in evaluation mode, and is given back as it was.

        Args:
            model: called as `model(**batch).logits`: a transformers model for sequence
                classification, a PEFT model around one, or an analog copy of either.
            split: "train" or "validation".
            batch_size: sentences a batch.
            tokenizer: the model's own (see `tokenizer_for`) unless given.

        Returns:
            float32, shape (n, num_labels).

        Raises:
            ValueError: the model has another number of outputs than the task asks for, or its
                tokenizer cannot be found.
        """
        tokenizer = tokenizer_for(model) if tokenizer is None else tokenizer
        inputs = self.encode(split, tokenizer).remove_columns("labels")
        lengths = [len(ids) for ids in inputs["input_ids"]]
        order = np.argsort(lengths, kind="stable")
        collate = DataCollatorWithPadding(tokenizer)
        device = next(model.parameters()).device
        parts = []
        with _evaluating(model), torch.inference_mode():
            for start in range(0, len(order), batch_size):
                columns = inputs[order[start : start + batch_size]]
                rows = [
                    dict(zip(columns, row, strict=True))
                    for row in zip(*columns.values(), strict=True)
                ]
                parts.append(model(**collate(rows).to(device)).logits.float().cpu())
        logits = torch.cat(parts).numpy()
        if logits.shape[1] != self.num_labels:
            raise ValueError(
                f"The model gives {logits.shape[1]} outputs and the task '{self.name}' asks for "
                f"{self.num_labels}; load it with load_base_model(name, task)."
            )
        in_order = np.empty_like(logits)
        in_order[order] = logits
        return in_order

    def scores(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> dict[str, float]:
        """Every metric of the task, as fractions, by name; the arguments are those of `predict`.

        Raises:
            ValueError: as `predict`, or a logit is NaN or infinite: a failed measurement.
        """
        logits = self.predict(model, split, batch_size, tokenizer)
        return score(self.metrics, logits, self.labels(split))

    def evaluate(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> float:
        """The task's primary metric, as a fraction; arguments and errors are those of `scores`."""
        return self.scores(model, split, batch_size, tokenizer)[self.metrics[0]]

    def subset(
        self, train: int | None = None, validation: int | None = None, seed: int = 0
    ) -> "Task":
        """This task on `train` and `validation` rows drawn without replacement; None keeps all.

        Raises:
            ValueError: more rows are asked for than there are, or none.

        Example:
            >>> rows = Dataset.from_dict({"text": ["Awful.", "Superb."], "label": [0, 1]})
            >>> len(Task("mine", rows, rows, ("negative", "positive")).subset(train=1).train)
            1
        """
        return replace(
            self,
            train=self._draw("train", train, seed),
            validation=self._draw("validation", validation, seed),
        )

    def _draw(self, split: Split, count: int | None, seed: int) -> Dataset:
        rows = self._rows(split)
        if count is None:
            return rows
        if not 1 <= count <= len(rows):
            raise ValueError(
                f"A subset of {count} {split} rows of the task '{self.name}' was asked for; it "
                f"should be from 1 to {len(rows)}."
            )
        chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
        return Dataset.from_dict(rows[np.sort(chosen)], features=rows.features)

    def _rows(self, split: Split) -> Dataset:
        if split not in ("train", "validation"):
            raise ValueError(f"A split is 'train' or 'validation', not '{split}'.")
        return self.train if split == "train" else self.validation


def _check_metrics(task: Task) -> None:
    fitting = REGRESSION if task.regression else CLASSIFICATION
    wrong = [name for name in task.metrics if name not in fitting]
    if wrong or not task.metrics:
        kind = "a regression (no label_names)" if task.regression else "a classification"
        raise ValueError(
            f"The task '{task.name}' is {kind} and has the metrics {task.metrics}; they should be "
            f"one or more of {', '.join(fitting)}."
        )
    if "f1" in task.metrics and task.num_labels != 2:
        raise ValueError(
            f"The task '{task.name}' has {task.num_labels} labels and the metric f1, which is "
            "for two; accuracy would do."
        )


def _check_rows(task: Task, split: Split, rows: Dataset) -> None:
    missing = [name for name in ("text", "label") if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"The {split} rows of the task '{task.name}' have the columns "
            f"{', '.join(rows.column_names)} and lack {', '.join(missing)}."
        )
    if not len(rows):
        raise ValueError(f"The task '{task.name}' has no {split} rows; it should have some.")
    labels = task.labels(split)
    if labels.dtype.kind not in ("iuf" if task.regression else "iu"):
        valid = np.zeros(len(labels), dtype=bool)
    elif task.regression:
        valid = np.isfinite(labels)
    else:
        valid = np.isin(labels, range(task.num_labels))
    if not valid.all():
        right = "a finite number" if task.regression else f"an integer 0 to {task.num_labels - 1}"
        raise ValueError(
            f"Row {int(np.argmin(valid))} of the {split} rows of the task '{task.name}' has the "
            f"label {labels[np.argmin(valid)]}, which should be {right}."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
