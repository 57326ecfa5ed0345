"""The frozen projections of an adapted model: what a crossbar would hold."""

import re
from collections.abc import Iterator, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers.pytorch_utils import Conv1D

type FrozenLayer = nn.Linear | Conv1D
type LayerPattern = str | Sequence[str]


def frozen_layers(
    model: nn.Module, pattern: LayerPattern = "all-linear"
) -> Iterator[tuple[str, FrozenLayer]]:
    """Yield the path and the module of every frozen linear layer of a model, each module once.

    Left out are what an adapter has added, the task head (whatever is trained and saved with the
    adapter, and the layers named as a classification head) and the output embedding.

    Args:
        model: A transformers model, bare or wrapped by peft.
        pattern: As PEFT's ``target_modules``: ``"all-linear"``, a regular expression that must
            match the whole name, or a sequence of names or of their endings. Names are those of
            the base model, without what peft puts before and after.

    Raises:
        ValueError: The pattern matches no layer.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                   intermediate_size=16, vocab_size=10)
        >>> [name for name, _ in frozen_layers(BertModel(tiny), ["query", "value"])]
        ['encoder.layer.0.attention.self.query', 'encoder.layer.0.attention.self.value']
    """
    barred = _barred(model)
    found = False
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or any(_within(path, b) for b in barred):
            continue
        if _matches(base_name(path), pattern):
            found = True
            yield path, module
    if not found:
        raise ValueError(
            f"The layer pattern {pattern!r} matches no frozen linear layer of the "
            f"{type(model).__name__}: use 'all-linear', a regular expression or layer names."
        )


def base_name(path: str) -> str:
    """The name of a layer in the base model, whatever peft has wrapped around it.

    Example:
        >>> base_name("base_model.model.bert.encoder.layer.0.output.dense.base_layer")
        'bert.encoder.layer.0.output.dense'
    """
    return path.removeprefix("base_model.model.").removesuffix(".base_layer")


def _barred(model: nn.Module) -> list[str]:
    """The paths under which nothing is a frozen projection."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    barred = []
    for path, module in model.named_modules():
        children = [name for name, _ in module.named_children()]
        if isinstance(module, BaseTunerLayer):
            barred += [f"{path}.{name}" for name in children if name != "base_layer"]
        head = path.rpartition(".")[2] in SEQ_CLS_HEAD_NAMES
        if head or module is output or isinstance(module, AuxiliaryTrainingWrapper):
            barred.append(path)
    return barred


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + ".")


def _matches(name: str, pattern: LayerPattern) -> bool:
    if pattern == "all-linear":
        return True
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in pattern)
