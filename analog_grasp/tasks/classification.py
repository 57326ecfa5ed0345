"""Sentences with labels, or with numbers to predict: the tasks of GLUE and their like."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import DataCollator, DataCollatorWithPadding, PreTrainedTokenizerBase

from analog_grasp.tasks.base import Split, Task, TaskType, check_rows, evaluating
from analog_grasp.tasks.metrics import CLASSIFICATION, REGRESSION, score
from analog_grasp.tasks.sources import tokenizer_for


@dataclass(eq=False)
class SentenceTask(Task):
    """Sentences with labels to learn from and to measure on, and the metrics of the measurement.

    Attributes:
        name: as reports show it, "glue/sst2".
        train: the rows to learn from, with the columns `text`, `label` and, where two sentences
            are compared, `text_pair`. Labels are integers 0 to `num_labels` - 1, or, for a
            regression, numbers. A column `part` tells parts of a split that are scored apart.
        validation: the rows to measure on, with the same columns.
        label_names: the names of the labels in their order; empty for a regression.
        metrics: of those in `analog_grasp.tasks.metrics`; the first is the primary one. Followed
            by an underscore and a part, as in "accuracy_mm", a metric is of the rows of that part;
            by itself, of the rows whose part is empty, or of all rows where there are no parts.

    Raises:
        ValueError: a split is empty, lacks a column or holds a label outside the range, or a
            metric is unknown or does not fit.

    Example:
        >>> rows = Dataset.from_dict({"text": ["Awful.", "Superb."], "label": [0, 1]})
        >>> task = SentenceTask("mine", rows, rows, label_names=("negative", "positive"))
        >>> task.num_labels, task.regression, task.metrics
        (2, False, ('accuracy',))
    """

    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)

    task_type: ClassVar[TaskType] = "SEQ_CLS"
    batch_size: ClassVar[int] = 64
    max_length: ClassVar[int] = 128

    def __post_init__(self) -> None:
        _check_metrics(self)
        _check_labels(self, "train", self.train)
        _check_labels(self, "validation", self.validation)

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

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator:
        """Pads the sentences of a batch."""
        return DataCollatorWithPadding(tokenizer)

    def _tokenised(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        rows = self._rows(split)
        pair = rows["text_pair"][:] if "text_pair" in rows.column_names else None
        tokens = tokenizer(rows["text"][:], pair, truncation=True, max_length=max_length)
        labels = self.labels(split)
        # transformers' loss of a regression takes no integers.
        labels = labels.astype(np.float32) if self.regression else labels
        return Dataset.from_dict({**tokens, "labels": labels})

    def predict(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> np.ndarray:
        """The model's logits for every example, in the data set's own order.

        Sentences of like length share a batch, so that little is spent on padding. The model runs
        on the device it lies on, in evaluation mode, and is given back as it was.

        Args:
            model: called as `model(**batch).logits`: a transformers model for sequence
                classification, a PEFT model around one, or an analog copy of either.
            split: "train" or "validation".
            batch_size: sentences a batch; 64 unless given.
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
        collate = self.collator(tokenizer)
        batch_size = batch_size or self.batch_size
        device = next(model.parameters()).device
        parts = []
        with evaluating(model), torch.inference_mode():
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

    def _scored(self, predicted: np.ndarray, split: Split) -> dict[str, float]:
        """The metrics, as fractions, of logits of shape (n, num_labels).

        The metric of a part that the split has no rows of is left out, as `accuracy_mm` of MNLI's
        training split.
        """
        labels = self.labels(split)
        found: dict[str, float] = {}
        for name in self.metrics:
            metric, _, part = name.partition("_")
            rows = self._of_part(split, part)
            if rows.any():
                found[name] = score([metric], predicted[rows], labels[rows])[metric]
        return found

    def _of_part(self, split: Split, part: str) -> np.ndarray:
        """Which rows of a split a part is made of, shape (n,)."""
        rows = self._rows(split)
        if "part" not in rows.column_names:
            return np.full(len(rows), not part)
        return np.asarray(rows["part"][:]) == part


def _check_metrics(task: SentenceTask) -> None:
    fitting = REGRESSION if task.regression else CLASSIFICATION
    wrong = [name for name in task.metrics if name.partition("_")[0] not in fitting]
    if wrong or not task.metrics:
        kind = "a regression (no label_names)" if task.regression else "a classification"
        raise ValueError(
            f"The task '{task.name}' is {kind} and has the metrics {task.metrics}; they should be "
            f"one or more of {', '.join(fitting)}."
        )
    if any(name.partition("_")[0] == "f1" for name in task.metrics) and task.num_labels != 2:
        raise ValueError(
            f"The task '{task.name}' has {task.num_labels} labels and the metric f1, which is "
            "for two; accuracy would do."
        )


def _check_labels(task: SentenceTask, split: Split, rows: Dataset) -> None:
    check_rows(task, split, rows, ("text", "label"))
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
