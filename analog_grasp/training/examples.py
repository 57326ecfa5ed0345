"""Examples for fits on chips: rows of a task or texts, as one padded batch."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor, nn

from analog_grasp.tasks import GenerationTask, LanguageModelingTask, Task, tokenizer_for
from analog_grasp.tasks.base import embedding_count, position_limit
from analog_grasp.utils.errors import check_whole

Batch = dict[str, Tensor]

# Share of the tokens; twice as many gave less.
_REPLACED = 0.3


def draw_examples(
    data: Task | Sequence[str], count: int, model: nn.Module, seed: int, at_most: bool = False
) -> Batch:
    """Return examples as one padded batch of token ids, ``(count, tokens)``, where the model is.

    Args:
        data: A task, of which training rows are drawn, or texts, of which the first are taken.
        count: The number of examples, at least 2.
        model: The model that reads them: it determines the tokenizer, the order of the labels and
            the largest number of tokens.
        seed: Seed of the rows drawn from a task.
        at_most: Accept fewer examples than `count`.

    Raises:
        ValueError: There are fewer examples than `count`, or `count` is below 2.
    """
    if isinstance(data, LanguageModelingTask | GenerationTask):
        # An example is a chunk of a text, of which a row can have several, or a prompt.
        task = _with_first_references(data) if isinstance(data, GenerationTask) else data
        tokenizer = task.tokenizer_of(model)
        encoded = task.training_rows(model, tokenizer)
        count = _checked_count(count, len(encoded), at_most)
        order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed))
        batch = task.collator(tokenizer)([encoded[int(i)] for i in order[:count]])
    elif isinstance(data, Task):
        few = data.subset(train=_checked_count(count, len(data.train), at_most), seed=seed)
        tokenizer = few.tokenizer_of(model)
        rows, collate = few.training_rows(model, tokenizer), few.collator(tokenizer)
        batch = collate([rows[i] for i in range(len(rows))])
    else:
        texts = _texts(data)[: _checked_count(count, len(data), at_most)]
        tokenizer = tokenizer_for(model)
        tokens = tokenizer(texts, truncation=True, max_length=position_limit(model))
        batch = tokenizer.pad(tokens, padding_side="right", return_tensors="pt")
    place = next(model.parameters()).device
    return {name: values.to(place) for name, values in batch.items()}


def _with_first_references(task: GenerationTask) -> GenerationTask:
    """Return a task with one reference per prompt, so that no two examples share a prompt."""
    references = [texts[:1] for texts in task.references("train")]
    rows = Dataset.from_dict({"text": task.train["text"][:], "references": references})
    return task.with_rows(rows, task.validation)


def _texts(data: Sequence[str]) -> list[str]:
    if isinstance(data, str) or not isinstance(data, Sequence):
        raise ValueError(
            f"The data are {data!r:.80}: a task, such as load_task('reviews'), or a list of texts "
            "is accepted."
        )
    for text in data:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"One of the texts is {text!r:.80}: a text that is not blank is due.")
    return list(data)


def _checked_count(count: int, available: int, at_most: bool) -> int:
    check_whole("examples", count, 2)
    if available < 2:
        raise ValueError(f"There are {available} examples to draw from: at least 2 are required.")
    count = min(count, available) if at_most else count
    if not 2 <= count <= available:
        raise ValueError(
            f"examples is {count}: from 2 to {available}, the number of those given, is accepted."
        )
    return count


def vocabulary_of(data: Task | Sequence[str], model: nn.Module) -> Tensor:
    """Return the ids of a model's tokens that are not special, ``(V,)``, where the model is."""
    tokenizer = data.tokenizer_of(model) if isinstance(data, Task) else tokenizer_for(model)
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}
    count = embedding_count(model) or len(tokenizer)
    ids = [i for i in set(tokenizer.get_vocab().values()) - special if i < count]
    return torch.tensor(sorted(ids), device=next(model.parameters()).device)


def replace_tokens(batch: Batch, vocabulary: Tensor, generator: torch.Generator) -> Batch:
    """Return a batch in which others of the vocabulary replace three in ten tokens, by chance.

    Special tokens, such as padding, stay.

    Args:
        batch: Examples, with `input_ids`.
        vocabulary: The ids that are replaced and that replace them, ``(V,)``.
        generator: Of the CPU.
    """
    ids = batch["input_ids"]
    chosen = (torch.rand(ids.shape, generator=generator) < _REPLACED).to(ids.device)
    others = torch.randint(len(vocabulary), ids.shape, generator=generator).to(ids.device)
    replaced = chosen & torch.isin(ids, vocabulary)
    return {**batch, "input_ids": torch.where(replaced, vocabulary[others], ids)}


def pick(batch: Batch, rows: Tensor) -> Batch:
    """Return some examples of a batch, without the padding that they all share."""
    chosen = {name: values[rows] for name, values in batch.items()}
    mask = chosen.get("attention_mask")
    if mask is None:
        return chosen
    used = mask.any(0).nonzero()
    first, end = int(used[0]), int(used[-1]) + 1
    return {
        name: values[:, first:end] if _is_per_token(values, mask) else values
        for name, values in chosen.items()
    }


def draw_batches(examples: Batch, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw the rows of some batches; within each are examples of similar length.

    Args:
        examples: Examples, with `attention_mask`.
        count: The number of batches.
        size: Examples per batch; an example can be drawn several times.
        generator: Of the CPU.

    Returns:
        Numbers of rows, ``(count, size)``, in the CPU's memory; the order of the batches is random.
    """
    rows = torch.randint(count_of(examples), (count * size,), generator=generator)
    lengths = examples["attention_mask"][rows].sum(1).cpu()
    batches = rows[lengths.argsort(stable=True)].view(count, size)
    return batches[torch.randperm(count, generator=generator)]


def _is_per_token(values: Tensor, mask: Tensor) -> bool:
    """Return whether values have an entry per token.

    Logits and indicators of as many classes as there are tokens have the same shape, ``(n, C)``,
    but are floats, while ids and labels of tokens are integers.
    """
    matching = values.shape[:2] == mask.shape
    return matching and (values.dim() > 2 or not values.is_floating_point())


def count_of(batch: Batch) -> int:
    """Return the number of examples of a batch."""
    return len(next(iter(batch.values())))
