"""The frozen layers of a model and their roles, its task head, and the folding of its adapter."""

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.integrations import dequantize_bnb_weight, dequantize_module_weight
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

type FrozenLayer = nn.Linear | Conv1D
type LayerPattern = str | Sequence[str]

# The routers of mixtures of experts, as transformers names them.
_ROUTERS = frozenset({"router", "shared_expert_gate"})
# Classes whose modules after the body are pre-trained with it, so that they are no task head.
_PRETRAINED_HEADS = ("WithProjection", "PreTraining", "NextSentencePrediction", "MaskedImage")


def frozen_layers(
    model: nn.Module, pattern: LayerPattern = "all-linear"
) -> Iterator[tuple[str, FrozenLayer]]:
    """Yield the path and the module of every frozen linear layer of a model, each module once.

    The layers of an adapter, of the task head (see `head_names`) and of other modules saved with
    the adapter are excluded; so are the output embedding and the routers of mixtures of experts,
    unless they are named.

    Args:
        model: A transformers model, bare or wrapped by peft.
        pattern: ``"all-linear"``, a regular expression that must match the whole name, or a
            sequence of names or of their endings; as PEFT's ``target_modules``. Names are those in
            the base model, see `base_name`. An empty sequence matches no layer; one may contain
            ``"all-linear"``, as in ``["all-linear", "lm_head"]``.

    Raises:
        ValueError: The pattern, or a name of the sequence, matches no layer. A name may match fused
            weights only, if another one matches a layer.

    Example:
        >>> [name for name, _ in frozen_layers(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)))]
        ['0', '1']
    """
    found = []
    for path, module in linear_layers(model, pattern):
        found.append(base_name(path))
        yield path, module
    if not found and pattern == "all-linear":
        raise ValueError(
            f"The {type(model).__name__} has no frozen linear layer: use a model that has some."
        )
    check_names(model, pattern, found)
    if not found and (isinstance(pattern, str) or pattern):
        # A name may have matched fused weights; a layer is required all the same.
        raise ValueError(_no_match(model, pattern))


def linear_layers(model: nn.Module, pattern: LayerPattern) -> Iterator[tuple[str, FrozenLayer]]:
    """Yield what `frozen_layers` does, without an error if there is none."""
    barred = tuple(f"{path}." for path in _barred(model, pattern))
    routers, named = tuple(_routers(model)), _named(pattern)
    for path, module in model.named_modules():
        name = base_name(path)
        if not isinstance(module, nn.Linear | Conv1D) or f"{path}.".startswith(barred):
            continue
        is_router = f"{path}.".startswith(routers) and not matches(name, named)
        if matches(name, pattern) and not is_router:
            yield path, module


def check_names(model: nn.Module, pattern: LayerPattern, layers: Iterable[str]) -> None:
    """Raise an error if a name of a pattern matches none of the layers and no fused weight.

    A regular expression is not checked.

    Raises:
        ValueError: A name matches nothing.
    """
    if isinstance(pattern, str):
        return
    modules = model.named_modules()
    fused = [f"{base_name(path)}.{name}" for path, m in modules for name, _ in fused_weights(m)]
    found = [*layers, *fused]
    missing = [part for part in pattern if not any(matches(name, [part]) for name in found)]
    if missing:
        raise ValueError(_no_match(model, missing))


def _no_match(model: nn.Module, pattern: LayerPattern) -> str:
    is_text = isinstance(pattern, str)
    listed = ", ".join(map(repr, [pattern] if is_text else pattern))
    accepted = "'all-linear', a regular expression" if is_text else "'all-linear'"
    return (
        f"The layer pattern {listed} matches no frozen linear layer of the "
        f"{type(model).__name__}: use {accepted} or names of layers."
    )


def fused_weights(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """Yield the attributes of a module that hold several weights, and whether these are transposed.

    See `FusedWeight`.
    """
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield "in_proj_weight", False
    experts = {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if name in ("gate_up_proj", "up_proj", "down_proj") and parameter.dim() == 3
    }
    if len(experts) == 2:
        up, down = (experts[n] for n in sorted(experts, reverse=True, key=lambda n: "up" in n))
        # (E, width or 2 width, D) and (E, D, width), unless the experts are transposed.
        stored = up.shape[2] == down.shape[1] and up.shape[1] in (down.shape[2], 2 * down.shape[2])
        for name in experts:
            yield name, bool(getattr(module, "is_transposed", not stored))


def by_output(layer: FrozenLayer) -> Tensor:
    """Return a view of a layer's weight, ``(D_out, D)`` also for ``Conv1D``."""
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def base_name(path: str) -> str:
    """Return the name of a layer in the base model, without what peft adds to its path.

    Example:
        >>> base_name("base_model.model.bert.encoder.layer.0.output.dense.base_layer")
        'bert.encoder.layer.0.output.dense'
    """
    # peft nests its wrappers of parameters.
    return re.sub(r"(\.base_layer)+$", "", path.removeprefix("base_model.model."))


def is_quantised(layer: FrozenLayer) -> bool:
    """Return whether a layer stores its weight in a quantised form."""
    weight = layer.weight
    return not weight.is_floating_point() or type(weight).__module__.startswith("torchao.")


def dense_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a layer as floating-point numbers, ``(D_out, D)``.

    Raises:
        ValueError: The layer has no weight, as one that is deployed, or it cannot be dequantised.
    """
    if not isinstance(layer, nn.Linear | Conv1D):
        raise ValueError(
            f"A {type(layer).__name__} has no digital weight, which sampling by 'weight' or "
            "'token' requires: sample by 'feature' or 'group', or use the means."
        )
    if type(layer.weight).__name__ == "Int8Params":
        # dequantize_module_weight would leave an 8-bit layer of bitsandbytes unusable on a CPU.
        weight = dequantize_bnb_weight(cast(nn.Parameter, layer.weight), state=layer.state)
    else:
        weight = dequantize_module_weight(layer).detach()
    if not weight.is_floating_point():
        raise ValueError(
            f"The {weight.dtype} weight of a {type(layer).__name__} cannot be dequantised: sample "
            "by 'feature' or 'group', or dequantise the base model first."
        )
    return weight.T if isinstance(layer, Conv1D) else weight


def head_names(model: nn.Module) -> list[str]:
    """Return the names of the modules that make up the task head of a transformers model.

    The head follows the pre-trained body; it is new, so it is trained whole with every adapter and
    stays digital. Language models have none, as their output embedding is pre-trained, and neither
    have models with a pre-trained projection, such as `CLIPTextModelWithProjection`.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertForSequenceClassification
        >>> tiny = DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=10)
        >>> head_names(DistilBertForSequenceClassification(tiny))
        ['pre_classifier', 'classifier']
    """
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(bare, PreTrainedModel):
        return []
    body = bare.base_model
    if body is bare and "Classification" in type(bare).__name__:
        # The body of Whisper's classifier is its encoder, which is not named as its base model is.
        body = getattr(bare, "encoder", bare)
    if body is bare or any(part in type(bare).__name__ for part in _PRETRAINED_HEADS):
        return []
    if bare.get_output_embeddings() is not None:
        return []
    others = [(n, part) for n, part in bare.named_children() if part is not body]
    return [name for name, part in others if list(part.parameters())]


def save_head(config: PeftConfig, model: nn.Module) -> None:
    """Add the task head of a model to the `modules_to_save` of an adapter, each name once.

    peft itself knows only heads that are called classifier or score.
    """
    saved = [*(config.modules_to_save or ()), *head_names(model)]
    config.modules_to_save = _Names(dict.fromkeys(saved)) or None


class _Names(list[str]):
    """Names of which each is listed once: peft extends the list by heads that it may have."""

    def extend(self, names: Iterable[str]) -> None:
        super().extend(name for name in names if name not in self)


def fold(model: nn.Module) -> nn.Module:
    """Return the plain model whose weights hold the active adapter; `model` is used up.

    Like `PeftModel.merge_and_unload`, which fails on a task head of several layers under some
    methods, (IA)^3 among them. A model without an adapter is returned as it is.

    Raises:
        ValueError: A folded weight is not finite.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> model = nn.Sequential(nn.Linear(6, 2))
        >>> fold(get_peft_model(model, LoraConfig(target_modules=["0"]))) is model
        True
    """
    if not isinstance(model, PeftModel):
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AuxiliaryTrainingWrapper):
                head = child.unload_and_optionally_merge_module(
                    merge=True, safe_merge=True, adapter_names=None
                )
                setattr(parent, name, head)
    tuner: Any = model.base_model
    if not isinstance(tuner, BaseTuner):
        raise ValueError(
            f"An adapter of the kind {model.active_peft_config.peft_type} adapts no layers, so "
            "that it cannot be folded into them: use the placement 'digital'."
        )
    # Not merge_and_unload, which warns of biases that a saved model would lose.
    unload: Any = tuner._unload_and_optionally_merge
    return unload(safe_merge=True)


def attention_paths(model: nn.Module) -> list[str]:
    """Return the paths of the ``nn.MultiheadAttention``, which call none of their layers."""
    return [path for path, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]


def linear_paths(model: nn.Module) -> list[str]:
    """Return the paths of the frozen linear layers that adapters can wrap.

    The output layer of ``nn.MultiheadAttention`` is not among them: it is never called, as its
    weight is read instead. Neither are routers, see `frozen_layers`.

    Example:
        >>> linear_paths(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1)))
        ['0']
    """
    barred = tuple(f"{path}." for path in attention_paths(model))
    return [path for path, _ in frozen_layers(model) if not path.startswith(barred)]


def exact_targets(names: Iterable[str], model: nn.Module) -> list[str] | str:
    """Return ``target_modules`` of PEFT that match the modules of these names alone.

    PEFT matches a name as an ending too: where another module's name ends with one, the targets are
    a regular expression.

    Example:
        >>> exact_targets(["0"], nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())))
        '0'
    """
    named = sorted({*names})
    endings = tuple(f".{name}" for name in named)
    others = {path for path, _ in model.named_modules()}.difference(named)
    if any(path.endswith(endings) for path in others):
        return "|".join(map(re.escape, named))
    return named


def check_targets(config: PeftConfig, model: nn.Module) -> None:
    """Raise ValueError if some targets of an adapter match, but others do not; PEFT ignores them.

    PEFT itself raises an error if none matches.
    """
    # PEFT replaces the old names of the experts of some models.
    config = copy.deepcopy(config)
    convert_peft_config_for_transformers(config, model, None)
    targets = getattr(config, "target_modules", None)
    if not targets or isinstance(targets, str):
        return
    endings: set[str] = set()
    for path, _ in model.named_modules():
        # PEFT wraps the task head that is saved with an adapter.
        parts = [part for part in path.split(".") if part != "original_module"]
        endings.update(".".join(parts[i:]) for i in range(len(parts)))
    missing = sorted(set(targets) - endings)
    if missing and (len(missing) < len(targets) or getattr(config, "target_parameters", None)):
        raise ValueError(
            f"The target {', '.join(map(repr, missing))} of the adapter matches no layer of the "
            f"{type(model).__name__}: use endings of the names of linear layers, or 'all-linear'."
        )


def are_all_wrapped(model: nn.Module) -> bool:
    """Return whether every linear layer that an adapter can wrap has one; False if deployed."""
    try:
        return all(path.endswith(".base_layer") for path in linear_paths(model))
    except ValueError:
        return False


def _barred(model: nn.Module, pattern: LayerPattern) -> list[str]:
    """Return the paths under which no module is a frozen layer."""
    named = _named(pattern)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    inside = "base_model.model." if isinstance(model, PeftModel) else ""
    barred = [inside + name for name in head_names(model)]
    for path, module in model.named_modules():
        children = [name for name, _ in module.named_children()]
        if isinstance(module, BaseTunerLayer):
            barred += [f"{path}.{name}" for name in children if name != "base_layer"]
        is_output = module is output and not matches(base_name(path), named)
        if is_output or isinstance(module, AuxiliaryTrainingWrapper):
            barred.append(path)
    return barred


def _named(pattern: LayerPattern) -> LayerPattern:
    """Return what a pattern selects besides all layers."""
    if isinstance(pattern, str):
        return () if pattern == "all-linear" else pattern
    return [part for part in pattern if part != "all-linear"]


def _routers(model: nn.Module) -> Iterator[str]:
    """Yield the beginnings of the paths of the routers of mixtures of experts."""
    for path, module in model.named_modules():
        children = {name for name, _ in module.named_children()}
        routers = _ROUTERS | {"gate"} if "experts" in children else _ROUTERS
        for name in children & routers:
            yield f"{path}.{name}.".removeprefix(".")


def has_encoder_and_decoder(model: nn.Module) -> bool:
    """Return whether a model has an encoder and a decoder, by its configuration."""
    return getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def matches(name: str, pattern: LayerPattern) -> bool:
    """Return whether a layer's name in the base model is one that a pattern selects."""
    if pattern == "all-linear" or (not isinstance(pattern, str) and "all-linear" in pattern):
        return True
    if isinstance(pattern, str):
        try:
            return re.fullmatch(pattern, name) is not None
        except re.error as error:
            raise ValueError(
                f"The layer pattern {pattern!r} is no regular expression ({error}): use "
                "'all-linear', a regular expression or a list of names of layers."
            ) from error
    return any(name == ending or name.endswith("." + ending) for ending in pattern)


class FrozenState:
    """The state that restores a folded layer bit for bit, without a second copy of its weight.

    `steps` counts the representable numbers between the frozen weight and the folded one divided by
    the scales, in one byte per weight. Where that does not suffice (under a scale of 0, for
    instance), the frozen weight itself is kept.
    """

    def __init__(self, weight: Tensor, folded: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        quotient = (folded.to(scale.dtype) / scale).to(weight.dtype)
        steps = weight.view(_bits(weight)) - quotient.view(_bits(weight))
        self.scale, self.bias, self.dtype = scale, bias, weight.dtype
        self.steps = steps.to(torch.int8)
        self.index = (self.steps != steps).flatten().nonzero()[:, 0]
        self.kept = weight.flatten()[self.index]

    def weight(self, folded: Tensor) -> Tensor:
        """Return the frozen weight, in the present type and on the present device of the folded."""
        scale, steps, index, kept = (
            held.to(folded.device) for held in (self.scale, self.steps, self.index, self.kept)
        )
        quotient = (folded.to(self.dtype).to(scale.dtype) / scale).to(self.dtype)
        weight = (quotient.view(_bits(quotient)) + steps).view(self.dtype).flatten()
        weight[index] = kept
        return weight.view(folded.shape).to(folded.dtype)


def _bits(value: Tensor) -> torch.dtype:
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
