"""Counting of the work of a model by hooks: reads of tiles, adapter, norms, key-value cache."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.crossbar.chip_layer import ChipLayer, OnTiles, computed_digitally
from analog_grasp.crossbar.programmed_adapter import ProgrammedModulation


@dataclass
class Count:
    """Counts of the hooks of one pass.

    Attributes:
        reads: The input vectors of each layer on tiles, by name.
        adapter: Multiply-adds of the adapter.
        adapter_products: The part of `adapter` that torch counts too.
        simulated: Products with the identity, by which the simulation of ``nn.MultiheadAttention``
            leaves its projections to the tiles.
    """

    reads: dict[str, int]
    adapter: int = 0
    adapter_products: int = 0
    simulated: int = 0
    norm_elements: int = 0


@contextmanager
def counted(model: nn.Module, layers: Mapping[str, ChipLayer]) -> Iterator[Count]:
    """Count during digital passes of a model with these layers on tiles."""
    count = Count(dict.fromkeys(layers, 0))
    names = {id(layer): name for name, layer in layers.items()}

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if id(module) in names:
            count.reads[names[id(module)]] += _rows(given[0])
        if isinstance(module, (GraspLinear, LoraLayer, IA3Layer, ProgrammedModulation)):
            macs, is_product = _adapter_macs(module)
            count.adapter += _rows(given[0]) * macs
            count.adapter_products += _rows(given[0]) * macs * is_product
        elif isinstance(module, nn.MultiheadAttention) and _is_on_tiles(module):
            count.simulated += module.embed_dim**2 * sum(map(_rows, (given[0], *given[:3])))
        elif type(module).__name__.endswith("Norm") and not list(module.children()):
            count.norm_elements += given[0].numel()
        if isinstance(module, (nn.Linear, nn.MultiheadAttention, ChipLayer)):
            laid_out = _laid_out(module, (*args, *kwargs.values()))
            return laid_out[: len(args)], dict(zip(kwargs, laid_out[len(args) :], strict=True))
        return None

    with ExitStack() as held:
        for module in model.modules():
            held.enter_context(module.register_forward_pre_hook(add, with_kwargs=True))
        # Its products are not counted by torch.
        held.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), computed_digitally(layers.values()):
            yield count


def _laid_out(module: nn.Module, given: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arguments of a layer in the layout that torch multiplies by weights at once.

    Products of other layouts are batched, and would be counted as those of attention.
    """
    transposed = isinstance(module, nn.MultiheadAttention) and module.batch_first
    found: dict[int, Tensor] = {}
    for value in given:
        # Attention compares its query, key and value by identity.
        if isinstance(value, Tensor) and id(value) not in found:
            if transposed and value.dim() == 3:
                found[id(value)] = value.transpose(0, 1).contiguous().transpose(0, 1)
            else:
                found[id(value)] = value.contiguous()
    return tuple(found.get(id(value), value) for value in given)


def _is_on_tiles(attention: nn.MultiheadAttention) -> bool:
    """Return whether a projection of attention is on tiles."""
    projections = (attention.in_proj_weight, attention.out_proj.weight)
    return any(isinstance(weight, OnTiles) for weight in projections)


def _rows(x: Tensor) -> int:
    """Return the number of input vectors, or token ids, of a layer's inputs."""
    return x.numel() // (x.shape[-1] if x.is_floating_point() else 1)


def _adapter_macs(layer: Any) -> tuple[int, bool]:
    """Return an adapter's digital multiply-adds per input vector, and whether torch counts them."""
    if isinstance(layer, GraspLinear | ProgrammedModulation):
        return layer.in_features, False
    names = list(layer.active_adapters)
    if isinstance(layer, LoraLayer):
        # The first matrix of an embedding is looked up, not multiplied by.
        embedded = [n for n in names if n in layer.lora_embedding_A]
        digital = [n for n in names if isinstance(dict(layer.lora_A.items()).get(n), nn.Linear)]
        inputs, outputs = cast(tuple[int, int], (layer.in_features, layer.out_features))
        of_linear = sum(layer.r[n] for n in digital) * (inputs + outputs)
        return of_linear + sum(layer.r[n] for n in embedded) * outputs, True
    vectors = [layer.ia3_l[name].numel() for name in names if name in layer.ia3_l]
    return sum(vectors), False


def cached(output: Any) -> tuple[int, int]:
    """Return the elements of keys and values cached after a pass, and of those written and read.

    The latter as if the tokens were generated one by one. Both are 0 without a cache.
    """
    # Its name depends on the version of transformers.
    found = {**output} if isinstance(output, Mapping) else {}
    cache = found.get("cache", found.get("past_key_values"))
    decoder = getattr(cache, "self_attention_cache", cache)
    own = _cached_layers(decoder)
    cross = _cached_layers(getattr(cache, "cross_attention_cache", None))
    tokens = max((layer.get_seq_length() for layer, *_ in own), default=0)
    held = moved = 0
    for layer, elements, length in own:
        # Each token is written once, and read by itself and every later one within the window.
        window = getattr(layer, "sliding_window", None) or tokens
        reads = sum(min(token, window) for token in range(1, tokens + 1))
        held += elements
        moved += elements // length * (tokens + reads)
    # Those of the encoder are written once, and read by every token of the decoder.
    held += sum(elements for _, elements, _ in cross)
    moved += sum(elements * (1 + tokens) for _, elements, _ in cross)
    return held, moved


def _cached_layers(cache: Any) -> list[tuple[Any, int, int]]:
    """Return the layers of a cache that hold tokens: each, with its elements and tokens."""
    found = []
    for layer in getattr(cache, "layers", ()):
        parts = [getattr(layer, kind, None) for kind in ("keys", "values")]
        tensors = [part for part in parts if isinstance(part, Tensor) and part.numel()]
        if tensors:
            found.append((layer, sum(map(Tensor.numel, tensors)), tensors[0].shape[-2]))
    return found
