"""Checks of a teacher: its vocabulary, its positions, its outputs and the order of its classes."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from analog_grasp.tasks import SentenceTask, Task
from analog_grasp.tasks.models import tokenizer_for
from analog_grasp.training.distillation import inputs_of, problem_types


def check_teacher(teacher: nn.Module, model: nn.Module, task: Task) -> None:
    """Raise ValueError unless a teacher reads what a model reads and has the same task head."""
    base: Any = teacher.get_base_model() if isinstance(teacher, PeftModel) else teacher
    if not isinstance(base, PreTrainedModel) or "forward_hooks" in vars(teacher):
        raise ValueError(
            f"The teacher is a {type(base).__name__}, or on a chip: a digital model of "
            "transformers or PEFT is accepted."
        )
    if set(teacher.modules()) & set(model.modules()):
        raise ValueError(
            "The teacher shares layers with the model that it teaches, whose weights receive "
            "noise: load it once more."
        )
    sizes: list[Any] = [getattr(each.config, "vocab_size", None) for each in (teacher, model)]
    if sizes[0] != sizes[1] or (task.tokenizer is None and not _same_words(teacher, model)):
        raise ValueError(
            f"The vocabulary of the teacher, of {sizes[0]} tokens, is not that of the model, of "
            f"{sizes[1]}: give a teacher with the same tokenizer."
        )
    lengths = [task.length_for(each) for each in (teacher, model)]
    if lengths[0] < lengths[1]:
        raise ValueError(
            f"The teacher reads {lengths[0]} tokens and the model {lengths[1]}: give a teacher "
            f"with as many positions, or a max_length of {lengths[0]}."
        )
    if len(kinds := problem_types(teacher, model)) > 1:
        raise ValueError(
            f"The task head of the teacher is for {kinds[0]} and that of the model for {kinds[1]}: "
            "give a teacher with the same task head."
        )
    shapes = [_output_shape(each, model, task) for each in (teacher, model)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The outputs of the teacher have the shape {shapes[0]} and those of the model "
            f"{shapes[1]}: give a teacher with the same task head."
        )
    if isinstance(task, SentenceTask) and task.output_order(teacher) != task.output_order(model):
        orders = [_classes(task, each) for each in (teacher, model)]
        raise ValueError(
            f"The classes of the teacher are in the order {orders[0]} and those of the model in "
            f"the order {orders[1]}: give a teacher with the same order."
        )


def _classes(task: SentenceTask, model: nn.Module) -> str:
    """Return the names of the classes in the order of a model's outputs."""
    order = task.output_order(model) or range(task.num_labels)
    return ", ".join(name for _, name in sorted(zip(order, task.label_names, strict=True)))


def _same_words(teacher: nn.Module, model: nn.Module) -> bool:
    """Return whether two models have the same tokens, as far as both have a tokenizer."""
    try:
        return tokenizer_for(teacher).get_vocab() == tokenizer_for(model).get_vocab()
    except ValueError:
        return True


def _output_shape(model: nn.Module, reader: nn.Module, task: Task) -> tuple[int, ...]:
    """Return the shape of a model's output for the first training row as another one reads it."""
    tokenizer = task.tokenizer_of(reader)
    batch = task.collator(tokenizer)([task.training_rows(reader, tokenizer)[0]])
    place = next(model.parameters()).device
    with torch.no_grad():
        found = model(**{name: values.to(place) for name, values in inputs_of(batch).items()})
    # A model without a head has no logits; its first output is of another shape.
    return tuple(getattr(found, "logits", found[0]).shape[1:])
