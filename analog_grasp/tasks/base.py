"""A task: rows to learn from and rows to measure on, and how a model is scored on them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import DataCollator, PreTrainedTokenizerBase

Split = Literal["train", "validation"]
TaskType = Literal["SEQ_CLS", "CAUSAL_LM"]


@dataclass(eq=False)
class Task(ABC):
    """What every task has in common: see `SentenceTask` and `GenerationTask` for the two kinds.

    Training takes `encode("train", tokenizer)` and `collator`; measuring takes `scores` or
    `evaluate`; `task_type` tells which head the model needs and which PEFT configuration.

    Attributes:
        name: as reports show it, "glue/sst2".
        train: the rows to learn from.
        validation: the rows to measure on.
        metrics: the names of the scores; the first is the primary one.
        task_type: the kind of model that the task asks for, as PEFT names it.
        batch_size: rows a batch in measuring, unless another number is given.
        max_length: tokens an example in training and measuring is cut to, unless another number
            is given.
    """

    name: str
    train: Dataset
    validation: Dataset
    _encoded: dict[tuple[Split, PreTrainedTokenizerBase, int], Dataset] = field(
        default_factory=dict, init=False, repr=False
    )

    task_type: ClassVar[TaskType]
    batch_size: ClassVar[int]
    max_length: ClassVar[int]

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names of the scores; the first is the primary one."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator:
        """What makes a padded batch of encoded rows."""

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Any:
        """What the model makes of every row, in the data set's own order.

        Args:
            model: a transformers model, a PEFT model around one, or an analog copy of either. It
                runs on the device it lies on, in evaluation mode, and is given back as it was.
            split: "train" or "validation".
            batch_size: rows a batch.
            tokenizer: the model's own (see `tokenizer_for`) unless given.

        Raises:
            ValueError: the model does not fit the task, or its tokenizer cannot be found.
        """

    @abstractmethod
    def _scored(self, predicted: Any, split: Split) -> dict[str, float]:
        """The scores of what `predict` gave."""

    @abstractmethod
    def _tokenised(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """A split as token ids with labels, to be kept by `encode`."""

    def encode(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
    ) -> Dataset:
        """A split as token ids, in the data set's own order, unpadded.

        The columns are those of the tokenizer (`input_ids`, `attention_mask`, for some models
        `token_type_ids`) and `labels`. Each (split, tokenizer, max_length) is tokenised once and
        kept in memory; no file is written.
        """
        length = self.max_length if max_length is None else max_length
        key = (split, tokenizer, length)
        if key not in self._encoded:
            self._encoded[key] = self._tokenised(split, tokenizer, length)
        return self._encoded[key]

    def scores(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> dict[str, float]:
        """Every metric of the task by name; the arguments are those of `predict`.

        Raises:
            ValueError: as `predict`, or what the model computed is NaN or infinite: a failed
                measurement.
        """
        return self._scored(self.predict(model, split, batch_size, tokenizer), split)

    def evaluate(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> float:
        """The task's primary metric; arguments and errors are those of `scores`."""
        return self.scores(model, split, batch_size, tokenizer)[self.metrics[0]]

    def subset(
        self, train: int | None = None, validation: int | None = None, seed: int = 0
    ) -> Self:
        """This task on `train` and `validation` rows drawn without replacement; None keeps all.

        Raises:
            ValueError: more rows are asked for than there are, or none.

        Example:
            >>> from analog_grasp.tasks import SentenceTask
            >>> rows = Dataset.from_dict({"text": ["Awful.", "Superb."], "label": [0, 1]})
            >>> task = SentenceTask("mine", rows, rows, ("negative", "positive"))
            >>> len(task.subset(train=1).train)
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


def check_rows(task: Task, split: Split, rows: Dataset, columns: tuple[str, ...]) -> None:
    """Refuse a split that is empty or lacks a column.

    Raises:
        ValueError: it does.
    """
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"The {split} rows of the task '{task.name}' have the columns "
            f"{', '.join(rows.column_names)} and lack {', '.join(missing)}."
        )
    if not len(rows):
        raise ValueError(f"The task '{task.name}' has no {split} rows; it should have some.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
