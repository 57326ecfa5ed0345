"""Base class of all tasks: training and validation rows, and the scores of a model on them."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import InitVar, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    DataCollator,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from analog_grasp.tasks.metrics import Metric
from analog_grasp.tasks.models import ensure_padding, tokenizer_for
from analog_grasp.utils.errors import check_whole
from analog_grasp.utils.metrics import lower_is_better
from analog_grasp.utils.seed import derive_seed

Split = Literal["train", "validation"]
TaskType = Literal["SEQ_CLS", "CAUSAL_LM"]
type Tokenizer = PreTrainedTokenizerBase
type Rows = list[dict[str, Any]]

# By default one training row in five is held out for tuning, and at most 1,000.
_HELD_OUT_ONE_IN, _HELD_OUT_MOST = 5, 1000
_FEWEST_ROWS = 10


@dataclass(eq=False)
class Task(ABC):
    """Common part of all tasks; see `SentenceTask` and `GenerationTask` for the two kinds.

    Args:
        name: Name in reports, such as "glue/sst2".
        train: Rows for training.
        validation: Rows for measuring.
        max_length: Number of tokens at which a text is cut, unless the model has fewer positions.
        tokenizer: Tokenizer used instead of the model's own, for example one with added tokens.
        metric: The primary metric, before `metrics`: a name or whatever else the task accepts.
        own_metrics: Functions by metric name. Functions and metrics of Hugging Face evaluate given
            among the metrics are added here.

    Attributes:
        task_type: Kind of model required, as PEFT names it.
        batch_size: Default batch size for measuring.
    """

    name: str
    train: Dataset
    validation: Dataset
    max_length: int = field(default=128, kw_only=True)
    tokenizer: Tokenizer | None = field(default=None, kw_only=True, repr=False)
    metric: InitVar[str | Metric | None] = field(default=None, kw_only=True)
    own_metrics: dict[str, Metric] = field(default_factory=dict, kw_only=True, repr=False)
    _encoded: dict[Any, Dataset] = field(default_factory=dict, init=False, repr=False)

    task_type: ClassVar[TaskType]
    batch_size: ClassVar[int]

    def __post_init__(self, metric: str | Metric | None) -> None:
        if self.max_length < 2:
            raise ValueError(
                f"The task '{self.name}' has max_length {self.max_length}; it should be 2 or more."
            )
        if self.tokenizer is not None:
            ensure_padding(self.tokenizer)
        self.train, self.validation = self._plain("train"), self._plain("validation")

    def _plain(self, split: Split) -> Dataset:
        """Return the rows of a split with plain Python values instead of tensors or arrays."""
        rows = self.rows(split)
        if not isinstance(rows, Dataset):
            raise ValueError(
                f"The {split} rows of the task '{self.name}' are of the type "
                f"{type(rows).__name__}; a datasets.Dataset is accepted."
            )
        # A function of the user (with_transform) determines the values, so that it stays.
        return rows if rows.format["type"] in (None, "custom") else rows.with_format(None)

    @property
    @abstractmethod
    def metrics(self) -> tuple[Any, ...]:
        """Names of the scores; the first is the primary one."""

    @property
    @abstractmethod
    def known_metrics(self) -> Collection[str]:
        """Names of the metrics that the task can measure."""

    @abstractmethod
    def _predict(self, model: nn.Module, tokenizer: Tokenizer, split: Split, size: int) -> Any:
        """Return the outputs of `predict`, of a model in evaluation mode, in batches of `size`."""

    @abstractmethod
    def _outputs(self, model: nn.Module, tokenizer: Tokenizer, rows: Rows) -> Sequence[Any]:
        """Return the output for each row of one batch."""

    @abstractmethod
    def _score(self, predicted: Any, split: Split) -> dict[str, float]:
        """Return all metrics of the outputs of `predict`."""

    @abstractmethod
    def _tokenise(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Dataset:
        """Return a split as token ids with labels."""

    def _check_metrics(self) -> None:
        if not self.metrics or not set(self.metrics) <= set(self.known_metrics):
            raise ValueError(
                f"The task '{self.name}' has the metrics {self.metrics}; they should be one or "
                f"more of {', '.join(self.known_metrics)}."
            )

    def configure(self, config: PretrainedConfig) -> None:
        """Adapt the configuration of a model to the task before the model is built."""
        # Otherwise BERT and similar models see the tokens that they predict.
        if self.task_type == "CAUSAL_LM" and getattr(config, "is_decoder", None) is False:
            config.is_decoder = True

    def initialise_head(self, model: PreTrainedModel, new: list[str]) -> None:  # noqa: B027
        """Set the initial values of a new head, given the names of all new parameters."""

    def collator(self, tokenizer: Tokenizer) -> DataCollator:
        """Return the collator that pads encoded rows to a batch; the loss ignores padding."""
        # Padding on the left would change the positions of BERT's and GPT-2's tokens.
        tokenizer = copy(tokenizer)
        tokenizer.padding_side = "right"
        padding = DataCollatorWithPadding if self.task_type == "SEQ_CLS" else DataCollatorForSeq2Seq
        return padding(tokenizer)

    @property
    def greater_is_better(self) -> bool:
        """False if the primary metric is an error, such as "mse"."""
        return not lower_is_better(self.metrics[0])

    def identity(self) -> dict[str, str]:
        """Return the settings of the task as text that is the same in every process."""
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "tokenizer":
                value = None if value is None else sorted(value.get_vocab().items())
            elif each.name == "own_metrics":
                value = sorted(value)
            if each.init and not isinstance(value, Dataset):
                found[each.name] = repr(value)
        return found

    def tokenizer_of(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> Tokenizer:
        """Return the tokenizer for a model: `tokenizer`, the task's, or the model's own.

        Raises:
            ValueError: The tokenizer cannot be found, or the padding token is not among the
                model's embeddings.
        """
        if tokenizer is None:
            tokenizer = tokenizer_for(model) if self.tokenizer is None else self.tokenizer
        size, highest = embedding_count(model), tokenizer.pad_token_id
        if size is not None and highest is not None and highest >= size:
            raise ValueError(
                f"The padding token '{tokenizer.pad_token}' has the id {highest}, but the model "
                f"has embeddings for the ids 0 to {size - 1}; call "
                "model.resize_token_embeddings(len(tokenizer)) or choose another pad_token."
            )
        return tokenizer

    def length_for(self, model: nn.Module) -> int:
        """Return the number of tokens at which texts are cut for a model."""
        return min(self.max_length, position_limit(model) or self.max_length)

    def encode(self, split: Split, tokenizer: Tokenizer, max_length: int | None = None) -> Dataset:
        """Return a split as token ids, in the order of the data set, without padding.

        The columns are those of the tokenizer (`input_ids`, `attention_mask`, and `token_type_ids`
        for some models) and `labels`. The result is kept in memory for each combination of split,
        tokenizer and length; no file is written.
        """
        length = self.max_length if max_length is None else max_length
        # An extended tokenizer is another one, though it is the same object.
        key = (split, self.rows(split), tokenizer, len(tokenizer), length)
        if key not in self._encoded:
            self._encoded[key] = self._tokenise(split, tokenizer, length)
        return self._encoded[key]

    def training_rows(self, model: nn.Module, tokenizer: Tokenizer) -> Dataset:
        """Return the encoded training rows for a model, cut to its number of positions."""
        encoded = self.encode("train", tokenizer, self.length_for(model))
        _check_token_ids(model, tokenizer, encoded["input_ids"])
        return encoded

    def predict(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Any:
        """Return the model's outputs for all rows, in the order of the data set.

        Args:
            model: A transformers model, a PEFT model around one, or a deployed copy of either. It
                runs on its current device in evaluation mode; its training mode is restored.
            split: "train" or "validation".
            batch_size: Rows per batch; the task's own if None.
            tokenizer: The task's or the model's own (see `tokenizer_of`) if None.

        Returns:
            See the class of the task.

        Raises:
            ValueError: The model does not fit the task, its tokenizer cannot be found, or
                `batch_size` is no whole number of at least 1.
        """
        size = self.batch_size if batch_size is None else batch_size
        check_whole("batch_size", size)
        tokenizer = self.tokenizer_of(model, tokenizer)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                return self._predict(model, tokenizer, split, size)
        finally:
            for module, training in modes:
                module.training = training

    def _in_batches(
        self, model: nn.Module, tokenizer: Tokenizer, rows: Rows, size: int
    ) -> list[Any]:
        """Return the output for each row with `input_ids`; similar lengths share a batch."""
        _check_token_ids(model, tokenizer, [row["input_ids"] for row in rows])
        order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
        found: list[Any] = [None] * len(rows)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            outputs = self._outputs(model, tokenizer, [rows[i] for i in chosen])
            for i, output in zip(chosen, outputs, strict=True):
                found[i] = output
        return found

    def scores(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> dict[str, float]:
        """Return all metrics of the task by name; the arguments are those of `predict`.

        Raises:
            ValueError: As `predict`, or the model's outputs are NaN or infinite.
        """
        return self._score(self.predict(model, split, batch_size, tokenizer), split)

    def evaluate(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> float:
        """Return the primary metric of the task; the arguments are those of `predict`.

        Raises:
            ValueError: As `scores`, or the primary metric is not measured on the split.
        """
        found = self.scores(model, split, batch_size, tokenizer)
        if self.metrics[0] not in found:
            raise ValueError(
                f"The primary metric {self.metrics[0]} of the task '{self.name}' is not measured "
                f"on the {split} rows: scores returns {', '.join(found) or 'no metric'} for them."
            )
        return found[self.metrics[0]]

    def subset(
        self, train: int | None = None, validation: int | None = None, seed: int = 0
    ) -> Self:
        """Return the task on randomly drawn rows, without replacement; None keeps all rows.

        Raises:
            ValueError: A number of rows is no whole number of at least 1, or above the number of
                rows available.

        Example:
            >>> from analog_grasp.tasks import load_task
            >>> len(load_task("reviews").subset(train=8).train)
            8
        """
        return self.with_rows(
            self._draw("train", train, seed), self._draw("validation", validation, seed)
        )

    def with_rows(self, train: Dataset, validation: Dataset) -> Self:
        """Return the task on other rows, without the metrics that cannot be measured on them.

        Raises:
            ValueError: None of the metrics can be measured on the rows.
        """
        changes: Any = {"metrics": self._measurable(validation)}
        if not changes["metrics"]:
            raise ValueError(
                f"None of the rows to measure the task '{self.name}' on belongs to the part of its "
                f"metrics {', '.join(self.metrics)}; give it another metric, or rows of that part."
            )
        return replace(self, train=train, validation=validation, **changes)

    def _measurable(self, validation: Dataset) -> tuple[str, ...]:
        """Return the metrics that have rows among `validation`."""
        return self.metrics

    def _draw(self, split: Split, count: int | None, seed: int) -> Dataset:
        rows = self.rows(split)
        if count is None:
            return rows
        check_whole(split, count)
        if count > len(rows):
            raise ValueError(
                f"The number of {split} rows for a subset of the task '{self.name}' is {count}; it "
                f"should be from 1 to {len(rows)}."
            )
        return _chosen(rows, np.random.default_rng(seed).permutation(len(rows))[:count])

    def rows(self, split: Split) -> Dataset:
        """Return the rows of a split."""
        if split not in ("train", "validation"):
            raise ValueError(f"The split is '{split}'; it should be 'train' or 'validation'.")
        return self.train if split == "train" else self.validation


def _chosen(rows: Dataset, numbers: np.ndarray) -> Dataset:
    """Return some rows of a data set in their original order."""
    return Dataset.from_dict(rows[np.sort(numbers)], features=rows.features)


def tuning_task(task: Task, seed: int, held_out: int | None = None) -> Task:
    """Return a task for tuning: some training rows of `task` become its validation rows.

    The validation rows of `task` are not used.

    Args:
        task: Task whose training rows are split.
        seed: Seed of the split.
        held_out: Number of rows to measure on; if None, a fifth of the rows and at most 1,000.

    Raises:
        ValueError: There are fewer than 10 training rows, or more than half would be held out.

    Example:
        >>> from analog_grasp.tasks.reviews import reviews
        >>> divided = tuning_task(reviews(train=20, validation=2), seed=0)
        >>> len(divided.train), len(divided.validation)
        (16, 4)
    """
    count = len(task.train)
    if count < _FEWEST_ROWS:
        raise ValueError(
            f"The task '{task.name}' has {count} training rows, of which some must be held out for "
            f"tuning; it should have {_FEWEST_ROWS} or more."
        )
    held = min(count // _HELD_OUT_ONE_IN, _HELD_OUT_MOST) if held_out is None else held_out
    if not 1 <= held <= count // 2:
        raise ValueError(
            f"The number of training rows of the task '{task.name}' held out for tuning is {held} "
            f"of {count}; it should be from 1 to {count // 2}."
        )
    order = np.random.default_rng(derive_seed(seed, "held out")).permutation(count)
    return task.with_rows(_chosen(task.train, order[held:]), _chosen(task.train, order[:held]))


def check_rows(task: Task, split: Split, columns: tuple[str, ...]) -> None:
    """Raise ValueError unless a split has rows, certain columns, and only texts in text columns."""
    rows = task.rows(split)
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"The {split} rows of the task '{task.name}' have the columns "
            f"{', '.join(rows.column_names)} and lack {', '.join(missing)}."
        )
    if not len(rows):
        raise ValueError(f"The task '{task.name}' has no {split} rows; it should have some.")
    for column in {"text", "text_pair"} & set(rows.column_names):
        for number, text in enumerate(rows[column][:]):
            if not isinstance(text, str):
                raise ValueError(
                    f"Row {number} of the {split} rows of the task '{task.name}' has the {column} "
                    f"{text}, which should be a text; pandas and datasets read CSV cells such as "
                    "null, NA or blank ones as missing unless keep_default_na=False is given."
                )


def position_limit(model: nn.Module) -> int | None:
    """Return the largest number of tokens that a model has positions for; None if unlimited.

    Example:
        >>> position_limit(nn.Linear(2, 2)) is None
        True
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    # The virtual tokens of prompt learning have positions too.
    limit -= getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
    for name, module in model.named_modules():
        # RoBERTa and similar models number the positions from the padding index on.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return limit - padding - 1
    return limit


def embedding_count(model: nn.Module) -> int | None:
    """Return the number of token ids that a model has embeddings for; None if it has none."""
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return getattr(embeddings, "num_embeddings", None)


def _check_token_ids(model: nn.Module, tokenizer: Tokenizer, rows: list[list[int]]) -> None:
    size = embedding_count(model)
    highest = max((max(ids) for ids in rows if ids), default=0)
    if size is not None and highest >= size:
        raise ValueError(
            f"The tokenizer gives the id {highest} ('{tokenizer.convert_ids_to_tokens(highest)}'), "
            f"but the model has embeddings for the ids 0 to {size - 1}; call "
            "model.resize_token_embeddings(len(tokenizer)) before training."
        )
