"""The frozen projections of an adapted model: what a crossbar would hold."""

import re
from collections.abc import Iterator, Sequence

from peft import PeftModel
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

type FrozenLayer = nn.Linear | Conv1D
type LayerPattern = str | Sequence[str]


def frozen_layers(
    model: nn.Module, pattern: LayerPattern = "all-linear"
) -> Iterator[tuple[str, FrozenLayer]]:
    """Yield the path and the module of every frozen linear layer of a model, each module once.

    Left out are what an adapter has added, the task head (see `head_names`, and whatever is trained
    and saved with the adapter) and the output embedding.

    Args:
        model: A transformers model, bare or wrapped by peft.
        pattern: As PEFT's ``target_modules``: ``"all-linear"``, a regular expression that must
            match the whole name, or a sequence of names or of their endings. Names are those of
            the base model, without what peft puts before and after. An empty sequence is no layer.

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
        if matches(base_name(path), pattern):
            found = True
            yield path, module
    if not found and (isinstance(pattern, str) or pattern):
        raise ValueError(
            f"The layer pattern {pattern!r} matches no frozen linear layer of the "
            f"{type(model).__name__}: use 'all-linear', a regular expression or layer names."
        )


def by_output(layer: FrozenLayer) -> Tensor:
    """A layer's weight as ``(D_out, D)``: a view, also of ``Conv1D``, which stores it transposed.

    Example:
        >>> by_output(Conv1D(2, 6)).shape
        torch.Size([2, 6])
    """
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def base_name(path: str) -> str:
    """The name of a layer in the base model, whatever peft has wrapped around it.

    Example:
        >>> base_name("base_model.model.bert.encoder.layer.0.output.dense.base_layer")
        'bert.encoder.layer.0.output.dense'
    """
    return path.removeprefix("base_model.model.").removesuffix(".base_layer")


def head_names(model: nn.Module) -> list[str]:
    """The names of the modules that make up the task head of a transformers model.

    A head is what stands behind the pre-trained body: it is new, so it is trained whole, whatever
    the adapter, and stays digital. A language model has none: its output embedding is pre-trained.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertForSequenceClassification
        >>> tiny = DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=10)
        >>> head_names(DistilBertForSequenceClassification(tiny))
        ['pre_classifier', 'classifier']
    """
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(bare, PreTrainedModel) or bare.base_model is bare:
        return []
    if bare.get_output_embeddings() is not None:
        return []
    behind = [(n, part) for n, part in bare.named_children() if part is not bare.base_model]
    return [name for name, part in behind if list(part.parameters())]


def save_head(config: PeftConfig, model: nn.Module) -> None:
    """Have the task head of a model trained and saved with an adapter, as ``modules_to_save``.

    peft itself knows only heads that are called classifier or score.
    """
    saved = config.modules_to_save or []
    more = [name for name in head_names(model) if name not in saved]
    config.modules_to_save = [*saved, *more] or None


def _barred(model: nn.Module) -> list[str]:
    """The paths under which nothing is a frozen projection."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    inside = "base_model.model." if isinstance(model, PeftModel) else ""
    barred = [inside + name for name in head_names(model)]
    for path, module in model.named_modules():
        children = [name for name, _ in module.named_children()]
        if isinstance(module, BaseTunerLayer):
            barred += [f"{path}.{name}" for name in children if name != "base_layer"]
        if module is output or isinstance(module, AuxiliaryTrainingWrapper):
            barred.append(path)
    return barred


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + ".")


def matches(name: str, pattern: LayerPattern) -> bool:
    """Return whether a layer's name in the base model is one that a pattern selects."""
    if pattern == "all-linear":
        return True
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in pattern)
