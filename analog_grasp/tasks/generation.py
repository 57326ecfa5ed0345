"""Generation tasks: text from a prompt, scored against one or more references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    DataCollator,
    DataCollatorForSeq2Seq,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
)

from analog_grasp.tasks.base import Split, Task, TaskType, check_rows, evaluating
from analog_grasp.tasks.e2e import coco, mteval
from analog_grasp.tasks.sources import tokenizer_for

_MTEVAL = {"bleu": mteval.bleu, "nist": mteval.nist}
TEXT_METRICS = (*_MTEVAL, *coco.NAMES)
# The loss passes over labels of this value.
_IGNORED = -100


def text_scores(
    names: Sequence[str], outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The named metrics of generated texts, as the scorer of the E2E NLG Challenge has them.

    Args:
        names: of `TEXT_METRICS`.
        outputs: n texts.
        references: of each, one or more texts.

    Raises:
        RuntimeError: a metric needs Java, and there is none.

    Example:
        >>> text_scores(["nist"], ["Zizzi is cheap."], [["Zizzi is cheap."]])
        {'nist': 2.0}
    """
    wanted = [name for name in names if name in coco.NAMES]
    found = {name: score(outputs, references) for name, score in _MTEVAL.items() if name in names}
    found |= coco.scores(wanted, outputs, references) if wanted else {}
    return {name: found[name] for name in names}


@dataclass(eq=False)
class GenerationTask(Task):
    """Prompts with references: a model learns to write them, and is measured on what it writes.

    An example is the prompt, the end-of-text token, the reference and the end-of-text token
    again; the loss is on the reference and what ends it alone. In measuring, a beam search writes
    one text for every prompt, and all references of the prompt score it.

    Attributes:
        name: as reports show it, "e2e".
        train: the rows to learn from, with the columns `text`, the prompt, and `references`, a
            list of one or more texts. No two rows should have the same prompt, so that a subset
            keeps the references of a prompt together.
        validation: the rows to measure on, with the same columns.
        metrics: of `TEXT_METRICS`; the first is the primary one.
        beams: the width of the beam search; 1 for greedy search.
        length_penalty: the power of its length by which a text's log-likelihood is divided.
        no_repeat_ngram: n-grams of tokens of this length occur once in a text; 0 for no such rule.
        max_new_tokens: where a text ends at the latest.

    Raises:
        ValueError: a split is empty or lacks a column, a row has no reference, a metric is unknown,
            or a number is below its least.

    Source:
        Search and its defaults: E. Hu et al., LoRA, ICLR 2022 (arXiv 2106.09685), runs on E2E.

    Example:
        >>> rows = Dataset.from_dict({"text": ["name : Zizzi"], "references": [["Eat at Zizzi."]]})
        >>> GenerationTask("mine", rows, rows, metrics=("bleu",)).task_type
        'CAUSAL_LM'
    """

    metrics: tuple[str, ...] = ("bleu", "nist")
    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 100

    task_type: ClassVar[TaskType] = "CAUSAL_LM"
    batch_size: ClassVar[int] = 16
    max_length: ClassVar[int] = 256

    def __post_init__(self) -> None:
        wrong = [name for name in self.metrics if name not in TEXT_METRICS]
        if wrong or not self.metrics:
            raise ValueError(
                f"The task '{self.name}' writes text and has the metrics {self.metrics}; they "
                f"should be one or more of {', '.join(TEXT_METRICS)}."
            )
        for name, least in (("beams", 1), ("no_repeat_ngram", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"The task '{self.name}' has {name} = {getattr(self, name)}; it should be "
                    f"{least} or more."
                )
        for split in ("train", "validation"):
            check_rows(self, split, self._rows(split), ("text", "references"))
            bare = [i for i, texts in enumerate(self.references(split)) if not texts]
            if bare:
                raise ValueError(
                    f"Row {bare[0]} of the {split} rows of the task '{self.name}' has no "
                    "reference; it should have one or more."
                )

    def references(self, split: Split = "validation") -> list[list[str]]:
        """The references of every prompt of a split, in the data set's own order."""
        return self._rows(split)["references"][:]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollator:
        """Pads the examples of a batch; the loss passes over the padding."""
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=_IGNORED)

    def _tokenised(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """An example for each reference, cut to `max_length` tokens at its end."""
        end = _end_token(tokenizer)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        prompts = self._prompts(split, tokenizer)
        for prompt, texts in zip(prompts, self.references(split), strict=True):
            targets = tokenizer([f" {text}" for text in texts], add_special_tokens=False)
            for target in targets["input_ids"]:
                ids = [*prompt, *target, end][:max_length]
                labels = [_IGNORED] * len(prompt) + [*target, end]
                columns["input_ids"].append(ids)
                columns["attention_mask"].append([1] * len(ids))
                columns["labels"].append(labels[:max_length])
        return Dataset.from_dict(columns)

    def _prompts(self, split: Split, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """The token ids of every prompt, with the end-of-text token that parts it from the text."""
        texts = tokenizer(self._rows(split)["text"][:], add_special_tokens=False)
        return [[*ids, _end_token(tokenizer)] for ids in texts["input_ids"]]

    def predict(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[str]:
        """What the model writes for every prompt, in the data set's own order.

        Args:
            model: with a `generate` as transformers' causal models have it.
            split: "train" or "validation".
            batch_size: prompts a batch, each of which takes `beams` sequences; 16 unless given.
            tokenizer: the model's own (see `tokenizer_for`) unless given.

        Raises:
            ValueError: the model cannot generate, its tokenizer cannot be found, or its logits
                are NaN or infinite.
        """
        if not hasattr(model, "generate"):
            raise ValueError(
                f"The {type(model).__name__} writes no text, which the task '{self.name}' asks "
                "for; load it with load_base_model(name, task)."
            )
        tokenizer = tokenizer_for(model) if tokenizer is None else tokenizer
        prompts = self._prompts(split, tokenizer)
        # Prompts of like length share a batch, so that little is spent on padding.
        order = np.argsort([len(ids) for ids in prompts], kind="stable")
        size = batch_size or self.batch_size
        texts = [""] * len(prompts)
        with evaluating(model), torch.inference_mode():
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                written = self._generate(model, tokenizer, [prompts[i] for i in chosen])
                for i, text in zip(chosen, written, strict=True):
                    texts[i] = text
        return texts

    def _generate(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
    ) -> list[str]:
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        length = batch["input_ids"].shape[1]
        beam_search = {"length_penalty": self.length_penalty} if self.beams > 1 else {}
        ids = model.generate(
            **batch.to(next(model.parameters()).device),
            **beam_search,
            num_beams=self.beams,
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=_end_token(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([_Rules(self.no_repeat_ngram, length)]),
        )
        written = tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    def _scored(self, predicted: list[str], split: Split) -> dict[str, float]:
        """BLEU, METEOR and ROUGE-L as fractions, NIST in bits, CIDEr from 0 to 10."""
        return text_scores(self.metrics, predicted, self.references(split))


class _Rules(LogitsProcessor):
    """No n-gram twice in what is written, and no measurement of a model that computes NaN.

    transformers' own rule counts the n-grams of the prompt too, whose names a text has to repeat.
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


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of '{tokenizer.name_or_path}' has no end-of-text token, which ends a "
            "written text; set eos_token in its tokenizer_config.json."
        )
    return tokenizer.eos_token_id
