"""Classification and regression of texts and pairs of texts, such as the tasks of GLUE."""

import inspect
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from analog_grasp.tasks.base import Rows, Split, Task, TaskType, Tokenizer, check_rows
from analog_grasp.tasks.custom_metrics import named_metrics, ordered_metrics
from analog_grasp.tasks.metrics import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    Metric,
    check_finite,
)

# Ends of the names of models with an output per token.
_PER_TOKEN = ("ForTokenClassification", "ForMaskedLM", "ForCausalLM", "LMHeadModel")


@dataclass(eq=False)
class SentenceTask(Task):
    """Texts with labels for training and measuring, and the metrics of the measurement.

    `predict` returns the logits: float32, shape (n, C), columns in the order of the task's labels,
    or (n, 1) for a regression.

    Args:
        name: Name in reports, such as "glue/sst2".
        train: Rows for training, with the columns `text`, `label` and, for pairs of texts,
            `text_pair`. Labels are integers from 0 to C - 1 for C classes, finite numbers for a
            regression, or lists of C entries 0 or 1 for several labels. An optional column `part`
            divides a split into parts that are scored separately.
        validation: Rows for measuring, with the same columns.
        label_names: Names of the C classes in the order of the labels; empty for a regression.
        metrics: Names of metrics in `analog_grasp.tasks.metrics`; metrics of Hugging Face evaluate
            by name or path of a script, whose code runs, with the key of one of several values
            after a colon (see `EvaluateMetric`); or functions of `(logits, labels)`, of which a
            higher value is better, with names other than those of built-in metrics and errors. The
            first is the primary one. A name followed by an underscore and a part, such as
            "accuracy_mm", is scored on the rows of that part; a name alone on the rows whose part
            is empty, or on all rows if there is no column `part`.
        multi_label: True if an example can have several labels; by default, if its label is a list.
        metric, max_length, tokenizer: See `Task`.

    Raises:
        ValueError: A split is empty, lacks a column or has an invalid cell, or a metric does not
            fit the labels or cannot be loaded.
        FileNotFoundError: A metric is unknown: no script, or not found on the Hub.

    Example:
        >>> rows = Dataset.from_dict({"text": ["Awful.", "Superb."], "label": [0, 1]})
        >>> task = SentenceTask("mine", rows, rows, label_names=("negative", "positive"))
        >>> task.num_labels, task.regression, task.metrics
        (2, False, ('accuracy',))
    """

    label_names: tuple[str, ...] = ()
    metrics: tuple[Any, ...] = ("accuracy",)
    multi_label: bool | None = field(default=None, kw_only=True)

    task_type: ClassVar[TaskType] = "SEQ_CLS"
    batch_size: ClassVar[int] = 64

    def __post_init__(self, metric: str | Metric | None) -> None:
        super().__post_init__(metric)
        if self.multi_label is None:
            column = self.train["label"] if "label" in self.train.column_names else []
            self.multi_label = len(column) > 0 and isinstance(column[0], list)
        if len(self.label_names) == 1 and not self.multi_label:
            raise ValueError(
                f"The task '{self.name}' has the only class {self.label_names[0]!r}; it should "
                "have two or more, or none for a regression."
            )
        # The default beside `metric` is for classes.
        default = self.regression and self.metrics is SentenceTask.metrics
        given = ordered_metrics(() if metric and default else self.metrics, metric)
        by_part = [each for each in given if isinstance(each, str) and self._is_by_part(each)]
        self.metrics, self.own_metrics = named_metrics(
            self.name, given, self.own_metrics, [*self.known_metrics, *by_part], self._examples()
        )
        self._check_metrics()
        for split in ("train", "validation"):
            check_rows(self, split, ("text", "label"))
            self._check_labels(split)
        paired = [s for s in ("train", "validation") if "text_pair" in self.rows(s).column_names]
        if len(paired) == 1:
            raise ValueError(
                f"The {paired[0]} rows alone of the task '{self.name}' have the column text_pair; "
                "both splits should have it, or neither."
            )
        for name in set(self.metrics) - set(self._measurable(self.validation)):
            parts = sorted({str(value) for value in self.validation["part"][:]})
            raise ValueError(
                f"The metric {name} of the task '{self.name}' has no validation rows; the column "
                f"part, which divides the rows, has the values {', '.join(parts)[:200]}."
            )

    def _check_metrics(self) -> None:
        found = [self._metric_and_part(name) for name in self.metrics]
        divided = "part" in self.validation.column_names
        if not found or not all(metric and (divided or not part) for metric, part in found):
            kind = "a regression (no label_names)" if self.regression else "a classification"
            raise ValueError(
                f"The task '{self.name}' is {kind} and has the metrics {self.metrics}; they should "
                f"be one or more of {', '.join(self.known_metrics)}."
            )
        if self.num_labels != 2 and not self.multi_label and "f1" in dict(found):
            raise ValueError(
                f"The task '{self.name}' has {self.num_labels} labels and the metric f1, which is "
                "for two; use macro_f1."
            )

    def _check_labels(self, split: Split) -> None:
        """Raise a ValueError that names the first row with an invalid label."""
        labels = self.rows(split)["label"][:]
        wrong = next((i for i, label in enumerate(labels) if not self._is_valid(label)), None)
        # A column of another type, such as "1": its values can be right in all rows.
        kind = int | float if self.regression else list if self.multi_label else int
        if wrong is None and (isinstance(labels[0], bool) or not isinstance(labels[0], kind)):
            wrong = 0
        if wrong is None:
            return
        expected = f"an integer from 0 to {self.num_labels - 1}"
        if self.multi_label:
            expected = f"a list of {self.num_labels} entries 0 or 1"
        elif self.regression:
            expected = "a finite number"
        raise ValueError(
            f"Row {wrong} of the {split} rows of the task '{self.name}' has the label "
            f"{labels[wrong]!r}, which should be {expected}."
        )

    def _is_valid(self, label: Any) -> bool:
        """Return whether a label is right, whatever the type of its column."""
        if self.multi_label:
            entries = label if isinstance(label, list) else []
            return len(entries) == self.num_labels and all(entry in (0, 1) for entry in entries)
        try:
            number = float(label)
        except (TypeError, ValueError):
            return False
        if self.regression:
            return bool(np.isfinite(number))
        return 0 <= number < self.num_labels and number.is_integer()

    @property
    def regression(self) -> bool:
        """True if the labels are numbers to predict instead of classes."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Number of model outputs: the number of classes C, or 1 for a regression."""
        return len(self.label_names) or 1

    def labels(self, split: Split = "validation") -> np.ndarray:
        """Return the labels of a split, shape (n,), or (n, C) if `multi_label`."""
        return np.asarray(self.rows(split)["label"][:])

    def configure(self, config: PretrainedConfig) -> None:
        """Set the number of outputs, loss and label names of a model; see `output_order`."""
        order = self._order(config)
        config.num_labels = self.num_labels if order is None else len(order)
        if self.regression:
            config.problem_type = "regression"
            return
        kind = "multi" if self.multi_label else "single"
        config.problem_type = f"{kind}_label_classification"
        if order is None:
            self._warn_of_other_classes(config)
            config.id2label = dict(enumerate(self.label_names))
            config.label2id = {label: i for i, label in config.id2label.items()}

    def _warn_of_other_classes(self, config: PretrainedConfig) -> None:
        names = [str(name) for name in (config.id2label or {}).values()]
        named = not all(re.fullmatch(r"LABEL_\d+", name) for name in names)
        same = {n.casefold() for n in names} == {n.casefold() for n in self.label_names}
        if named and not same and len(names) == len(self.label_names):
            warnings.warn(
                f"The classes of the model are {', '.join(names)} and those of the task "
                f"{', '.join(self.label_names)}: the model's outputs are taken in this order, so "
                "train its head, or give the task the names of the model.",
                stacklevel=2,
            )

    def initialise_head(self, model: PreTrainedModel, new: list[str]) -> None:
        """Set the bias of a new regression head to the mean of the training labels.

        With a bias of 0 the first steps move all features in the direction that raises the mean,
        until the model collapses to a constant prediction: LoRA then learned nothing on STS-B.
        """
        if not self.regression:
            return
        mean = float(self.labels("train").mean())
        for key in new:
            if key.endswith("bias") and (bias := model.get_parameter(key)).shape == (1,):
                nn.init.constant_(bias, mean)

    def output_order(self, model: nn.Module) -> list[int] | None:
        """Return the index of the model's output for each label, if it differs from the label.

        A model that names the same classes in another order (`config.id2label`) has its outputs in
        that order. None if the orders agree or the names differ.
        """
        return self._order(getattr(model, "config", None))

    def _order(self, config: PretrainedConfig | None) -> list[int] | None:
        names = getattr(config, "id2label", None) or {}
        outputs = {str(name).casefold(): int(index) for index, name in names.items()}
        wanted = [name.casefold() for name in self.label_names]
        if len(outputs) != len(names) or sorted(outputs) != sorted(wanted):
            return None
        order = [outputs[name] for name in wanted]
        same = order == list(range(len(order))) or sorted(order) != list(range(len(order)))
        return None if same else order

    def training_rows(self, model: nn.Module, tokenizer: Tokenizer) -> Dataset:
        """Return the encoded training rows, with the labels in the model's order of the classes.

        A model whose configuration has no problem type gets the task's, as transformers sets it at
        the first labels: it decides about the loss.

        Raises:
            ValueError: As `Task.training_rows`, or the model has another number of outputs or
                another padding token than the tokenizer.
        """
        self._check_padding(model, tokenizer)
        if type(_inner(model)).__name__.endswith(_PER_TOKEN):
            raise self._outputs_per_token(model)
        outputs = getattr(getattr(model, "config", None), "num_labels", self.num_labels)
        self._check_outputs(outputs)
        config = getattr(model, "config", None)
        if self.multi_label and config and getattr(config, "problem_type", 0) is None:
            config.problem_type = "multi_label_classification"
        encoded = super().training_rows(model, tokenizer)
        order = self.output_order(model)
        if order is None:
            return encoded
        labels = np.asarray(encoded["labels"][:])
        labels = labels[:, np.argsort(order)] if self.multi_label else np.asarray(order)[labels]
        columns = {name: encoded[name][:] for name in encoded.column_names}
        return Dataset.from_dict({**columns, "labels": labels})

    def _tokenise(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Dataset:
        rows = self.rows(split)
        pair = rows["text_pair"][:] if "text_pair" in rows.column_names else None
        tokens = tokenizer(rows["text"][:], pair, truncation=True, max_length=max_length)
        empty = [i for i, ids in enumerate(tokens["input_ids"]) if not ids]
        if empty:
            raise ValueError(
                f"Row {empty[0]} of the {split} rows of the task '{self.name}' has the text "
                f"{rows[empty[0]]['text']!r}, of which the tokenizer makes no token; each text "
                "should have one or more."
            )
        labels = self.labels(split)
        # The losses for regression and several labels do not accept integers.
        exact = self.regression or self.multi_label
        return Dataset.from_dict(
            {**tokens, "labels": labels.astype(np.float32) if exact else labels}
        )

    def _predict(
        self, model: nn.Module, tokenizer: Tokenizer, split: Split, size: int
    ) -> np.ndarray:
        self._check_padding(model, tokenizer)
        encoded = self.encode(split, tokenizer, self.length_for(model)).remove_columns("labels")
        found = self._in_batches(model, tokenizer, encoded.to_list(), size)
        logits = torch.stack(found).numpy()
        self._check_outputs(logits.shape[1])
        order = self.output_order(model)
        return logits if order is None else logits[:, order]

    def _outputs(self, model: nn.Module, tokenizer: Tokenizer, rows: Rows) -> Sequence[Tensor]:
        batch = self.collator(tokenizer)(rows).to(next(model.parameters()).device)
        outputs = model(**batch)
        if not hasattr(outputs, "logits"):
            self._check_outputs(0)
        if outputs.logits.dim() != 2:
            raise self._outputs_per_token(model)
        return outputs.logits.float().cpu()

    def _check_outputs(self, count: int) -> None:
        """Raise ValueError unless a model with `count` outputs has one per class."""
        if count != self.num_labels:
            raise ValueError(
                f"The model has {count} outputs and the task '{self.name}' requires "
                f"{self.num_labels}; load it with load_base_model(task, name)."
            )

    def _outputs_per_token(self, model: nn.Module) -> ValueError:
        return ValueError(
            f"The {type(_inner(model)).__name__} has outputs per token and the task '{self.name}' "
            f"requires {self.num_labels} per text; load it with load_base_model(task, name)."
        )

    def _check_padding(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Raise ValueError if the head of a decoder would read the tokenizer's padding."""
        inner = _inner(model)
        # The head of a decoder reads the last token that is not the padding token of the config.
        reads = "pad_token_id" in inspect.unwrap(type(inner).forward).__code__.co_names
        expected = getattr(getattr(inner, "config", None), "pad_token_id", None)
        if reads and expected not in (None, tokenizer.pad_token_id):
            raise ValueError(
                f"The model takes the token {expected} as padding (config.pad_token_id) and the "
                f"tokenizer of the task '{self.name}' pads with {tokenizer.pad_token_id}; both "
                "should be the same."
            )

    def _score(self, predicted: np.ndarray, split: Split) -> dict[str, float]:
        """Return the metrics of logits of shape (n, C), except for parts without rows."""
        labels, parts = self.labels(split), np.asarray(_parts(self.rows(split)))
        found: dict[str, float] = {}
        for name in self.metrics:
            metric, part = self._metric_and_part(name)
            rows = parts == part
            if rows.any():
                check_finite(predicted[rows], "examples")
                function = self.known_metrics[metric]
                found[name] = float(function(predicted[rows], labels[rows]))
        return found

    def _measurable(self, validation: Dataset) -> tuple[str, ...]:
        parts = set(_parts(validation))
        return tuple(name for name in self.metrics if self._metric_and_part(name)[1] in parts)

    @property
    def known_metrics(self) -> dict[str, Metric]:
        """The metrics that fit the labels, by name."""
        if self.regression:
            return REGRESSION | self.own_metrics
        return (MULTI_LABEL if self.multi_label else CLASSIFICATION) | self.own_metrics

    def _is_by_part(self, name: str) -> bool:
        return ".py" not in name and bool(self._metric_and_part(name)[0])

    def _examples(self) -> tuple[list[Any], list[Any]]:
        """Return predictions of two examples and their labels."""
        labels: list[Any] = [0.0, 1.0] if self.regression else [0, self.num_labels - 1]
        if self.multi_label:
            labels = [[i] * self.num_labels for i in (0, 1)]
        return labels, labels

    def _metric_and_part(self, name: str) -> tuple[str, str]:
        """Return the metric and the part of a name such as "accuracy_mm"; ("", "") if unknown."""
        for metric in sorted(self.known_metrics, key=len, reverse=True):
            if name == metric or name.startswith(f"{metric}_"):
                return metric, name[len(metric) + 1 :]
        return "", ""


def _inner(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _parts(rows: Dataset) -> list[str]:
    """Return the part of each row; "" if the rows are not divided."""
    return rows["part"][:] if "part" in rows.column_names else [""] * len(rows)
