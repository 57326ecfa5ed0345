"""Text generation from prompts, scored against one or more references."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
)

from analog_grasp.tasks.base import (
    IGNORED,
    Split,
    Task,
    TaskType,
    check_rows,
    check_token_ids,
    evaluation_mode,
    position_limit,
)
from analog_grasp.tasks.metrics import named_metrics
from analog_grasp.tasks.text_metrics import TEXT_METRICS, text_scores


@dataclass(eq=False)
class GenerationTask(Task):
    """Prompts with references: a model is trained to write them, and scored on its texts.

    A training example is the prompt, the end-of-text token, the reference, and the end-of-text
    token again; the loss is on the reference and its end only. When measuring, a beam search
    generates one text per prompt, which is scored against all references of the prompt.

    Args:
        name: Name in reports, such as "e2e".
        train: Rows for training, with the columns `text` (the prompt) and `references` (a list of
            one or more texts). Prompts should be distinct, so that a subset keeps the references
            of a prompt together.
        validation: Rows for measuring, with the same columns.
        metrics: Names from `TEXT_METRICS`, or functions of `(outputs, references)` of which a
            higher value is better; the first is the primary one.
        beams: Width of the beam search; 1 for greedy search.
        length_penalty: Exponent of the length by which the log-likelihood of a text is divided.
        no_repeat_ngram: Length of token n-grams that occur at most once in a text; 0 disables the
            rule.
        max_new_tokens: Largest number of tokens of a text.
        max_length: Number of tokens at which a training example is cut. Prompts are only cut when
            the model has too few positions.
        tokenizer: See `Task`.

    Raises:
        ValueError: A split is empty or lacks a column, a row has no reference, a metric is unknown,
            or a number is out of its range.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metrics, self.own_metrics = named_metrics(self.name, self.metrics, self.own_metrics)
        known = (*TEXT_METRICS, *self.own_metrics)
        if not self.metrics or not set(self.metrics) <= set(known):
            raise ValueError(
                f"The task '{self.name}' generates text and has the metrics {self.metrics}; they "
                f"should be one or more of {', '.join(known)}."
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

    def references(self, split: Split = "validation") -> list[list[str]]:
        """Return the references of each prompt of a split, in the order of the data set."""
        return self.rows(split)["references"][:]

    def _tokenise(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Dataset:
        """Return one example per reference, cut at `max_length` tokens."""
        end = _end_token(tokenizer)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        prompts = self._prompts(split, tokenizer)
        for prompt, texts in zip(prompts, self.references(split), strict=True):
            targets = tokenizer([f" {text}" for text in texts], add_special_tokens=False)
            for target in targets["input_ids"]:
                ids = [*prompt, *target, end][:max_length]
                labels = [IGNORED] * len(prompt) + [*target, end]
                columns["input_ids"].append(ids)
                columns["attention_mask"].append([1] * len(ids))
                columns["labels"].append(labels[:max_length])
        return Dataset.from_dict(columns)

    def _prompts(self, split: Split, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Return the token ids of each prompt, with the end-of-text token as separator."""
        texts = tokenizer(self.rows(split)["text"][:], add_special_tokens=False)
        return [[*ids, _end_token(tokenizer)] for ids in texts["input_ids"]]

    def predict(
        self,
        model: nn.Module,
        split: Split = "validation",
        batch_size: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[str]:
        """Return the text that a model generates for each prompt, in the order of the data set.

        Arguments and errors as `Task.predict`; each prompt of a batch has `beams` sequences, and
        logits that are NaN or infinite are an error.
        """
        if not hasattr(model, "generate"):
            raise ValueError(
                f"The {type(model).__name__} cannot generate text, which the task '{self.name}' "
                "requires; load it with load_base_model(task, name)."
            )
        tokenizer = self.tokenizer_of(model, tokenizer)
        prompts = self._prompts(split, tokenizer)
        check_token_ids(model, tokenizer, prompts)
        # Both the prompt and the text need positions.
        limit = position_limit(model)
        length = self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - 2)
        if limit is not None:
            prompts = [
                ids if len(ids) + length <= limit else [*ids[: limit - length - 1], ids[-1]]
                for ids in prompts
            ]
        # Prompts of similar length share a batch, which reduces padding.
        order = np.argsort([len(ids) for ids in prompts], kind="stable")
        size = batch_size or self.batch_size
        texts = [""] * len(prompts)
        with evaluation_mode(model), torch.no_grad():
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                written = self._generate(model, tokenizer, [prompts[i] for i in chosen], length)
                for i, text in zip(chosen, written, strict=True):
                    texts[i] = text
        return texts

    def _generate(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[list[int]],
        max_new_tokens: int,
    ) -> list[str]:
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        length = batch["input_ids"].shape[1]
        beam_search = {"length_penalty": self.length_penalty} if self.beams > 1 else {}
        ids = model.generate(
            **batch.to(next(model.parameters()).device),
            **beam_search,
            num_beams=self.beams,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=_end_token(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([_GenerationRules(self.no_repeat_ngram, length)]),
        )
        written = tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    def _score(self, predicted: list[str], split: Split) -> dict[str, float]:
        """Return BLEU, METEOR and ROUGE-L as fractions, NIST in bits, CIDEr from 0 to 10."""
        return text_scores(self.metrics, predicted, self.references(split), self.own_metrics)


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


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of '{tokenizer.name_or_path}' has no end-of-text token, which ends a "
            "generated text; set eos_token in its tokenizer_config.json."
        )
    return tokenizer.eos_token_id
