"""The task `lm`: perplexity and bits per byte of a causal language model on a text."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import Dataset
from torch import nn
from torch.nn import functional

from analog_grasp.tasks.base import Rows, Split, Task, TaskType, Tokenizer, check_rows
from analog_grasp.tasks.custom_metrics import ordered_metrics
from analog_grasp.tasks.metrics import Metric, check_finite
from analog_grasp.tasks.tables import hub_splits, text_file
from analog_grasp.utils.seed import derive_seed

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"
"""The data set of the task `lm` unless another is given: its Hub id and configuration."""
LM_METRICS = ("perplexity", "bits_per_byte")
# A text is divided into passages of this many characters, and into this many at least.
_PASSAGE, _FEWEST_PASSAGES = 2000, 20
# One passage, or one document, in ten is measured.
_HELD_OUT = 10
_MEASURED = ("test", "validation", "valid", "dev")
# exp of more exceeds the range of a float64.
_LARGEST_EXPONENT = 700.0


class Likelihood(NamedTuple):
    """Negative log-likelihoods of the tokens of a text, and the size of that text."""

    nll: np.ndarray
    """Of each scored token, nats, float64, shape (n,)."""
    tokens: int
    """Number of tokens of the text, without special tokens."""
    bytes: int
    """Number of bytes of the text in UTF-8."""


@dataclass(eq=False)
class LanguageModelingTask(Task):
    """Texts: a model is trained to predict the next token, and scored by its perplexity.

    Rows are texts in their order. Rows with consecutive values of `position` are parts of one
    document and are joined; without that column each row is a document of its own. A training
    example is a chunk of `max_length` tokens of a document.

    When measuring, a window of `max_length` tokens moves over each document by `stride` tokens,
    and only the tokens that no earlier window contained are scored. The first token of a document
    has no context and is not scored, nor, where the stride is the length of the window, the first
    one of each window. With N scored tokens t and n tokens in the text,

        perplexity = exp(-sum log p(t) / N),   bits_per_byte = log2(perplexity) n / bytes

    Lower is better for both. Bits per byte are comparable between tokenizers. `predict` returns a
    `Likelihood`; a batch is of windows.

    Args:
        name: Name in reports, such as "lm".
        train: Rows for training, with the column `text` and optionally `position`.
        validation: Rows for measuring, with the same columns.
        metrics: Names from `LM_METRICS`; the first is the primary one.
        stride: Tokens by which the window moves, at most its length and the positions of the
            model; half of the length if None. A smaller stride gives each token more context and
            takes longer.
        max_length: Length of the window and of a training example, unless the model has fewer
            positions.
        metric, tokenizer: See `Task`.

    Raises:
        ValueError: A split is empty or lacks a column, a metric is unknown, or the stride is out of
            range.

    Source:
        "Perplexity of fixed-length models" in the documentation of transformers, with each scored
        token counted once.

    Example:
        >>> rows = Dataset.from_dict({"text": ["It was the best of times."]})
        >>> LanguageModelingTask("mine", rows, rows, stride=16, max_length=32).metrics
        ('perplexity', 'bits_per_byte')
    """

    metrics: tuple[str, ...] = LM_METRICS
    stride: int | None = None
    max_length: int = field(default=512, kw_only=True)

    task_type: ClassVar[TaskType] = "CAUSAL_LM"
    batch_size: ClassVar[int] = 4

    def __post_init__(self, metric: str | Metric | None) -> None:
        super().__post_init__(metric)
        self.metrics = ordered_metrics(self.metrics, metric)
        self._check_metrics()
        if self.stride is not None and not 1 <= self.stride <= self.max_length:
            raise ValueError(
                f"The task '{self.name}' has the stride {self.stride}; it should be from 1 to "
                f"max_length, {self.max_length}."
            )
        for split in ("train", "validation"):
            check_rows(self, split, ("text",))
            if not any(text.strip() for text in self.rows(split)["text"]):
                raise ValueError(
                    f"The {split} rows of the task '{self.name}' are blank; they should have text."
                )

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """`LM_METRICS`."""
        return LM_METRICS

    def length_for(self, model: nn.Module) -> int:
        """Return the length of the window for a model.

        Raises:
            ValueError: The stride is above the model's number of positions.
        """
        length = super().length_for(model)
        if self.stride is not None and self.stride > length:
            raise ValueError(
                f"The task '{self.name}' has the stride {self.stride}, but the model has {length} "
                f"positions; the stride should be from 1 to {length}."
            )
        return length

    def training_rows(self, model: nn.Module, tokenizer: Tokenizer) -> Dataset:
        """Return the chunks for training; see `Task.training_rows`.

        Raises:
            ValueError: As `Task.training_rows`, or the validation rows have no text to score.
        """
        # Otherwise such rows are found only when the trained model is measured.
        self._token_ids("validation", tokenizer)
        return super().training_rows(model, tokenizer)

    def documents(self, split: Split) -> list[str]:
        """Return the texts of a split, with the parts of each document joined."""
        rows = self.rows(split)
        texts = rows["text"][:]
        if "position" not in rows.column_names:
            return texts
        positions = rows["position"][:]
        documents: list[list[str]] = []
        for i, text in enumerate(texts):
            if i and positions[i] == positions[i - 1] + 1:
                documents[-1].append(text)
            else:
                documents.append([text])
        return ["".join(parts) for parts in documents]

    def _tokenise(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Dataset:
        """Return the chunks of each document, of `max_length` tokens but for its last one."""
        chunks = [
            ids[start : start + max_length]
            for ids in self._token_ids(split, tokenizer)[0]
            # A chunk of one token has no next token.
            for start in range(0, len(ids) - 1, max_length)
        ]
        masks = [[1] * len(ids) for ids in chunks]
        return Dataset.from_dict({"input_ids": chunks, "attention_mask": masks, "labels": chunks})

    def _token_ids(self, split: Split, tokenizer: Tokenizer) -> tuple[list[list[int]], int]:
        """Return the token ids of each document, and the number of those that are not special."""
        texts = [text for text in self.documents(split) if text]
        found = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
        if max(map(len, found["input_ids"])) < 2:
            raise ValueError(
                f"The {split} rows of the task '{self.name}' have no document of two tokens or "
                "more; they should have text to predict."
            )
        special = sum(sum(mask) for mask in found["special_tokens_mask"])
        return found["input_ids"], sum(map(len, found["input_ids"])) - special

    def _predict(
        self, model: nn.Module, tokenizer: Tokenizer, split: Split, size: int
    ) -> Likelihood:
        documents, tokens = self._token_ids(split, tokenizer)
        length = self.length_for(model)
        stride = self.stride or max(1, length // 2)
        windows = [window for ids in documents for window in strided_windows(ids, length, stride)]
        found = self._in_batches(model, tokenizer, windows, size)
        size_in_bytes = sum(len(text.encode()) for text in self.documents(split))
        return Likelihood(np.concatenate(found), tokens, size_in_bytes)

    def _outputs(self, model: nn.Module, tokenizer: Tokenizer, rows: Rows) -> list[np.ndarray]:
        """Return the negative log-likelihoods of the scored tokens of each window."""
        # Padding on the right does not change what precedes it in a causal model.
        batch = tokenizer.pad(
            [{"input_ids": row["input_ids"]} for row in rows],
            padding_side="right",
            return_tensors="pt",
        ).to(next(model.parameters()).device)
        # Prompt tuning puts the logits of its virtual tokens first.
        logits = model(**batch).logits[:, -batch["input_ids"].shape[1] :]
        if logits.dim() != 3:
            raise ValueError(
                f"The {type(model).__name__} predicts no tokens, which the task '{self.name}' "
                "requires; load it with load_base_model(task, name)."
            )
        found = []
        for outputs, ids, row in zip(logits, batch["input_ids"], rows, strict=True):
            end = len(row["input_ids"])
            start = end - row["scored"]
            predicted = outputs[start - 1 : end - 1].float()
            nll = functional.cross_entropy(predicted, ids[start:end], reduction="none")
            found.append(nll.double().cpu().numpy())
        return found

    def _score(self, predicted: Likelihood, split: Split) -> dict[str, float]:
        scores = self._text_scores(predicted)
        return {name: scores[name] for name in self.metrics}

    def _text_scores(self, predicted: Likelihood) -> dict[str, float]:
        """Return both metrics; a perplexity above exp(700) counts as exp(700)."""
        check_finite(predicted.nll, "tokens")
        mean = float(predicted.nll.mean())
        return {
            "perplexity": math.exp(min(mean, _LARGEST_EXPONENT)),
            "bits_per_byte": mean / math.log(2) * predicted.tokens / predicted.bytes,
        }


def strided_windows(ids: Sequence[int], length: int, stride: int) -> Rows:
    """Return the windows over a document: their `input_ids`, and how many of these are `scored`.

    Example:
        >>> strided_windows(range(6), 4, 2)
        [{'input_ids': [0, 1, 2, 3], 'scored': 3}, {'input_ids': [2, 3, 4, 5], 'scored': 2}]
    """
    windows: Rows = []
    scored_until = 1
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        # The first token of a window has no context within it.
        scored = end - max(scored_until, begin + 1)
        if scored > 0:
            windows.append({"input_ids": list(ids[begin:end]), "scored": scored})
        scored_until = end
        if end == len(ids):
            break
    return windows


def language_modeling(data_dir: Path | None = None) -> LanguageModelingTask:
    """Return the task `lm` on a text file, a folder of text files or a data set.

    The division into training and validation rows:

    - a folder with train.txt and test.txt (or validation, valid, dev), and a data set with such
      splits: as given; a warning names further files of a folder, which are not read;
    - a folder of other .txt files: one file in ten, at least one, drawn once for all, is measured;
    - a single file, or a data set with one split: a passage of a tenth of the text, whose place is
      drawn once for all, is measured.

    The rows of a data set are joined by blank lines, as transformers' documentation does with
    WikiText.

    Args:
        data_dir: A text file in UTF-8, a folder of .txt files, or the id of a data set on the Hub,
            with its configuration after a colon; `WIKITEXT` if None.

    Raises:
        FileNotFoundError: There is no such file or folder, or the Hub cannot be reached.
        ValueError: A file is not UTF-8 text, or the text is blank or too short to be divided.
    """
    if data_dir is not None and data_dir.is_file():
        return _divided([_read(data_dir)])
    texts: Mapping[str, Any]
    if data_dir is not None and data_dir.is_dir():
        texts, read = {path.stem: path for path in sorted(data_dir.glob("*.txt"))}, _read
        if not texts:
            raise FileNotFoundError(
                f"The task 'lm' finds no .txt file in {data_dir}; the data folder should contain "
                "texts."
            )
    else:
        name = WIKITEXT if data_dir is None else str(data_dir)
        path, _, config = name.partition(":")
        instead = "a text file or a folder of .txt files (--data-dir)"
        texts = hub_splits(f"data set {name}", instead, path, config or None)
        read = partial(_joined, name)
    measured = next((name for name in _MEASURED if name in texts), None)
    if "train" in texts and measured:
        others = [name for name in texts if name not in ("train", *_MEASURED)]
        if others and read is _read:
            warnings.warn(
                f"The folder {data_dir} has train.txt and {measured}.txt, so that its other files "
                f"are not read: {', '.join(f'{name}.txt' for name in others)[:200]}.",
                stacklevel=2,
            )
        return _task([read(texts["train"])], [read(texts[measured])])
    # The files of a folder are documents of their own, and of a data set the first split is taken.
    rest = list(texts.values())
    return _divided([read(text) for text in (rest if read is _read else rest[:1])])


def _joined(name: str, rows: Dataset) -> str:
    if "text" not in rows.column_names:
        raise ValueError(
            f"The data set {name} has the columns {', '.join(rows.column_names)}; it should have "
            "the column text."
        )
    return "\n\n".join(rows["text"][:])


def _read(path: Path) -> str:
    with text_file(path) as file:
        text = file.read()
    if not text.strip():
        raise ValueError(f"The file {path} is blank; it should contain text.")
    return text


def _divided(texts: list[str]) -> LanguageModelingTask:
    """Return the task of texts without a given division: by document, or by position in one."""
    rng = np.random.default_rng(derive_seed(0, "division"))
    if len(texts) > 1:
        count = max(1, len(texts) // _HELD_OUT)
        measured = set(rng.permutation(len(texts))[:count].tolist())
        return _task(
            [text for i, text in enumerate(texts) if i not in measured],
            [text for i, text in enumerate(texts) if i in measured],
        )
    passages = _passages(texts[0])
    if len(passages) < _HELD_OUT:
        raise ValueError(
            f"The text has {len(texts[0])} characters, too few for a division into training and "
            "validation; give a longer one, or a folder with train.txt and validation.txt."
        )
    count = len(passages) // _HELD_OUT
    start = int(rng.integers(len(passages) - count + 1))
    end = start + count
    return _task(
        ["".join(passages[:start]), "".join(passages[end:])], ["".join(passages[start:end])]
    )


def _task(train: list[str], validation: list[str]) -> LanguageModelingTask:
    return LanguageModelingTask("lm", _rows(train), _rows(validation))


def _rows(texts: list[str]) -> Dataset:
    """Return texts as passages, numbered consecutively within a text."""
    columns: dict[str, list[Any]] = {"text": [], "position": []}
    number = 0
    for text in texts:
        passages = _passages(text)
        columns["text"] += passages
        columns["position"] += range(number, number + len(passages))
        number += len(passages) + 1
    return Dataset.from_dict(columns)


def _passages(text: str) -> list[str]:
    """Return a text in passages that end after white space where possible."""
    size = min(_PASSAGE, max(1, len(text) // _FEWEST_PASSAGES))
    passages, start = [], 0
    while start < len(text):
        end = start + size
        if end < len(text):
            space = max(text.rfind(mark, start, end) for mark in " \n\t")
            end = space + 1 if space > start else end
        passages.append(text[start:end])
        start = end
    return passages
