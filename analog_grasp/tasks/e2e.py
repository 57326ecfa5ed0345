"""Text generation from prompts, scored against references, and the data of the E2E NLG Challenge.

The challenge asks for descriptions of restaurants. A meaning representation is a list such as
"name[Zizzi], area[riverside]", and has several references, each one a row of the official files.

Source:
    J. Novikova, O. Dušek and V. Rieser, "The E2E Dataset: New Challenges for End-to-End
    Generation", SIGDIAL 2017.
"""

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from analog_grasp.tasks.base import (
    Rows,
    Split,
    Task,
    TaskType,
    Tokenizer,
    check_rows,
    position_limit,
)
from analog_grasp.tasks.custom_metrics import named_metrics, ordered_metrics
from analog_grasp.tasks.metrics import (
    COCO_METRICS,
    TEXT_METRICS,
    Metric,
    bleu,
    coco_scores,
    missing_java,
    nist,
)
from analog_grasp.tasks.tables import csv_rows, hub_splits

# The label of tokens that do not contribute to the loss, as in torch.
_IGNORED = -100
# The Hub's own conversion of a data set whose repository contains a script, which is not run.
_HUB_NAME, _HUB_REVISION = "tuetschek/e2e_nlg", "refs/convert/parquet"
_HUB_COLUMNS = ("meaning_representation", "human_reference")
_COLUMNS = ("mr", "ref")
_TRAIN, _DEV, _TEST = "trainset.csv", "devset.csv", "testset_w_refs.csv"
_HUB_SPLITS = {_TRAIN: "train", _DEV: "validation", _TEST: "test"}
# One meaning representation in five of the development set is measured.
_HELD_OUT = 5


@dataclass(eq=False)
class GenerationTask(Task):
    """Prompts with references: a model is trained to write them, and scored on its texts.

    A training example is the prompt, the end-of-text token, the reference, and the end-of-text
    token again; the loss is on the reference and its end only. When measuring, a beam search
    generates one text per prompt, which is scored against all references of the prompt. BLEU,
    METEOR and ROUGE-L are fractions, NIST is in bits, CIDEr from 0 to 10. `predict` returns the
    texts; each prompt of a batch has `beams` sequences.

    Args:
        name: Name in reports, such as "e2e".
        train: Rows for training, with the columns `text` (the prompt) and `references` (a list of
            one or more texts). Prompts should be distinct, so that a subset keeps the references
            of a prompt together.
        validation: Rows for measuring, with the same columns.
        metrics: Names from `TEXT_METRICS`, metrics of Hugging Face evaluate as in `SentenceTask`,
            or functions of `(outputs, references)`, with names other than those of built-in metrics
            and errors; the first is the primary one. A higher value is better.
        beams: Width of the beam search; 1 for greedy search.
        length_penalty: Exponent of the length by which the log-likelihood of a text is divided.
        no_repeat_ngram: Length of token n-grams that occur at most once in a text; 0 disables the
            rule.
        max_new_tokens: Largest number of tokens of a text.
        max_length: Number of tokens at which a training example is cut. Prompts are only cut when
            the model has too few positions.
        metric, tokenizer: See `Task`.

    Raises:
        ValueError: A split is empty or lacks a column, a row has no reference, a metric is unknown
            or requires Java or a package that is missing, or a number is out of its range.

    Source:
        Search and its defaults: E. Hu et al., LoRA, ICLR 2022 (arXiv 2106.09685), runs on E2E.

    Example:
        >>> rows = Dataset.from_dict({"text": ["name : Zizzi"], "references": [["Eat at Zizzi."]]})
        >>> GenerationTask("mine", rows, rows, metrics=("bleu",)).task_type
        'CAUSAL_LM'
    """

    metrics: tuple[Any, ...] = ("bleu", "nist")
    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 100
    max_length: int = field(default=256, kw_only=True)

    task_type: ClassVar[TaskType] = "CAUSAL_LM"
    batch_size: ClassVar[int] = 16

    def __post_init__(self, metric: str | Metric | None) -> None:
        super().__post_init__(metric)
        given = ordered_metrics(self.metrics, metric)
        examples = ["a text", "a text"], [["a text"], ["a text"]]
        self.metrics, self.own_metrics = named_metrics(
            self.name, given, self.own_metrics, self.known_metrics, examples
        )
        self._check_metrics()
        java = [name for name in self.metrics if name in COCO_METRICS]
        if java and (reason := missing_java()) is not None:
            # Otherwise found only when the trained model has generated its texts.
            raise ValueError(
                f"The metrics {', '.join(java)} of the task '{self.name}' cannot be computed: "
                f"{reason}."
            )
        for name, least in (("beams", 1), ("no_repeat_ngram", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"The task '{self.name}' has {name} = {getattr(self, name)}; it should be "
                    f"{least} or more."
                )
        for split in ("train", "validation"):
            check_rows(self, split, ("text", "references"))
            empty = [i for i, texts in enumerate(self.references(split)) if not texts]
            if empty:
                raise ValueError(
                    f"Row {empty[0]} of the {split} rows of the task '{self.name}' has no "
                    "reference; it should have one or more."
                )

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The names of the metrics of texts, and of the task's own."""
        return (*TEXT_METRICS, *self.own_metrics)

    def references(self, split: Split = "validation") -> list[list[str]]:
        """Return the references of each prompt of a split, in the order of the data set."""
        return self.rows(split)["references"][:]

    def training_rows(self, model: nn.Module, tokenizer: Tokenizer) -> Dataset:
        """Return the encoded training examples, without those whose prompt leaves no reference.

        Raises:
            ValueError: As `Task.training_rows`, or no example has a token of its reference.
        """
        encoded = super().training_rows(model, tokenizer)
        labels = encoded["labels"][:]
        kept = [i for i, row in enumerate(labels) if any(label != _IGNORED for label in row)]
        if len(kept) == len(labels):
            return encoded
        message = (
            f"{len(labels) - len(kept)} of the {len(labels)} training examples of the task "
            f"'{self.name}' have a prompt of {self.length_for(model)} tokens or more, which leaves "
            "none for the reference"
        )
        if not kept:
            raise ValueError(f"{message}; give a larger max_length or a model with more positions.")
        warnings.warn(f"{message}; they are skipped.", stacklevel=2)
        return encoded.select(kept)

    def _tokenise(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Dataset:
        """Return one example per reference, cut at `max_length` tokens."""
        end = _end_token(tokenizer)
        examples: Rows = []
        prompts = self._prompts(split, tokenizer)
        for prompt, texts in zip(prompts, self.references(split), strict=True):
            targets = tokenizer([f" {text}" for text in texts], add_special_tokens=False)
            for target in targets["input_ids"]:
                ids = [*prompt, *target, end][:max_length]
                labels = [*[_IGNORED] * len(prompt), *target, end][:max_length]
                examples.append(
                    {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
                )
        return Dataset.from_list(examples)

    def _prompts(self, split: Split, tokenizer: Tokenizer) -> list[list[int]]:
        """Return the token ids of each prompt, with the end-of-text token as separator."""
        texts = tokenizer(self.rows(split)["text"][:], add_special_tokens=False)
        return [[*ids, _end_token(tokenizer)] for ids in texts["input_ids"]]

    def _predict(
        self, model: nn.Module, tokenizer: Tokenizer, split: Split, size: int
    ) -> list[str]:
        if not hasattr(model, "generate"):
            raise ValueError(
                f"The {type(model).__name__} cannot generate text, which the task '{self.name}' "
                "requires; load it with load_base_model(task, name)."
            )
        prompts = self._prompts(split, tokenizer)
        # Both the prompt and the text need positions.
        if limit := position_limit(model):
            most = limit - self._length(model)
            prompts = [p if len(p) <= most else [*p[: most - 1], p[-1]] for p in prompts]
        return self._in_batches(model, tokenizer, [{"input_ids": p} for p in prompts], size)

    def _length(self, model: nn.Module) -> int:
        """Return the largest number of new tokens of a model."""
        limit = position_limit(model)
        return self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - 2)

    def _outputs(self, model: Any, tokenizer: Tokenizer, rows: Rows) -> list[str]:
        batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt")
        length = batch["input_ids"].shape[1]
        beam_search = {"length_penalty": self.length_penalty} if self.beams > 1 else {}
        ids = model.generate(
            **batch.to(next(model.parameters()).device),
            **beam_search,
            num_beams=self.beams,
            do_sample=False,
            max_new_tokens=self._length(model),
            eos_token_id=_end_token(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([_GenerationRules(self.no_repeat_ngram, length)]),
        )
        written = tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    def _score(self, predicted: list[str], split: Split) -> dict[str, float]:
        references = self.references(split)
        functions = {"bleu": bleu, "nist": nist} | self.own_metrics
        java = [name for name in self.metrics if name not in functions]
        found = coco_scores(java, predicted, references) if java else {}
        return {
            name: found[name] if name in java else float(functions[name](predicted, references))
            for name in self.metrics
        }


class _GenerationRules(LogitsProcessor):
    """Prevent repeated n-grams in the generated text, and reject NaN logits.

    transformers' own rule also counts the n-grams of the prompt, whose names a text must repeat.
    """

    def __init__(self, ngram: int, prompt: int) -> None:
        self._no_repeat = NoRepeatNGramLogitsProcessor(ngram) if ngram else None
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any():
            raise ValueError(
                "The model gave NaN or infinite logits, where all should be finite; this "
                "measurement failed and is not scored."
            )
        if self._no_repeat is None:
            return scores
        return self._no_repeat(input_ids[:, self._prompt :], scores)


def _end_token(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of '{tokenizer.name_or_path}' has no end-of-text token, which ends a "
            "generated text; set eos_token in its tokenizer_config.json."
        )
    return tokenizer.eos_token_id


def e2e(data_dir: Path | None = None) -> GenerationTask:
    """Return the challenge as in published results: trainset.csv and testset_w_refs.csv.

    Args:
        data_dir: Folder with these official files; the Hub if None.

    Raises:
        FileNotFoundError: A file is missing, or the Hub cannot be reached.
        ValueError: A file differs in form from the official one.
    """
    return _task("e2e", *_load("e2e", (_TRAIN, _TEST), data_dir))


def e2e_dev(data_dir: Path | None = None) -> GenerationTask:
    """Return a task of the development set (devset.csv) alone; arguments and errors as `e2e`.

    Every fifth meaning representation, in the order of the file, is measured; the others are for
    training. Scores are not comparable with published ones.
    """
    (dev,) = _load("e2e/dev", (_DEV,), data_dir)
    measured = range(_HELD_OUT - 1, len(dev), _HELD_OUT)
    trained = [i for i in range(len(dev)) if i not in measured]
    return _task("e2e/dev", dev.select(trained), dev.select(measured))


def linearised(meaning: str) -> str:
    """Return a meaning representation as a prompt, in the form of the runs of the LoRA paper.

    Example:
        >>> linearised("name[Blue Spice], customer rating[5 out of 5]")
        'name : Blue Spice | customer rating : 5 out of 5'
    """
    slots = re.findall(r"([^\[\],]+)\[([^\]]*)\]", meaning)
    return " | ".join(f"{name.strip()} : {value.strip()}".strip() for name, value in slots)


def _task(name: str, train: Dataset, validation: Dataset) -> GenerationTask:
    metrics: tuple[str, ...] = TEXT_METRICS
    reason = missing_java()
    if reason is not None:
        metrics = ("bleu", "nist")
        warnings.warn(
            f"The task '{name}' is scored without {', '.join(COCO_METRICS)}: {reason}.",
            stacklevel=2,
        )
    return GenerationTask(name, train, validation, metrics=metrics)


def _load(task: str, files: tuple[str, ...], data_dir: Path | None) -> list[Dataset]:
    if data_dir is None:
        instead = f"a data folder (--data-dir) with the official {' and '.join(files)}"
        splits = hub_splits(f"task '{task}'", instead, _HUB_NAME, revision=_HUB_REVISION)
        chosen = (splits[_HUB_SPLITS[file]] for file in files)
        return [_grouped(zip(*(rows[c][:] for c in _HUB_COLUMNS), strict=True)) for rows in chosen]
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
    lines = csv_rows(path)
    if tuple(first := next(lines, (0, []))[1]) != _COLUMNS:
        raise ValueError(
            f"The first line of {path} is '{','.join(first)[:80]}'; it should be "
            f"{','.join(_COLUMNS)}."
        )
    rows = []
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
