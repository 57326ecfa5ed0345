"""The work of one batch, reads of tiles and digital arithmetic by kind, and its pipeline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analog_grasp.adapters.frozen import has_encoder_and_decoder
from analog_grasp.adapters.registry import kind_of
from analog_grasp.costs.counting import cached, counted
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.chip_layer import ChipLayer
from analog_grasp.crossbar.programmed_adapter import ProgrammedModulation
from analog_grasp.tasks.base import position_limit
from analog_grasp.utils.errors import check_whole

# The cache holds 16 bits per element.
_KV_BYTES = 2
# Sum, sum of squares, normalisation, scale and shift.
_NORM_MACS = 4
# Batched products of activations; all other products have weights.
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product")


@dataclass(frozen=True)
class LayerWork:
    """The work of one layer on tiles for one batch."""

    name: str
    features: int
    """Input features."""
    outputs: int
    """Output features."""
    reads: int
    """Input vectors."""

    @property
    def weights(self) -> int:
        """Weights of the layer."""
        return self.features * self.outputs

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.reads * self.weights


@dataclass(frozen=True)
class Work:
    """The work of one batch, counted in a model by `count_work` or stated by hand.

    Attributes:
        layers: The layers on tiles, in the order of the model.
        sequence: Tokens per sequence.
        batch: Sequences per batch.
        adapter: The adapter's kind; "" without one.
        adapter_macs: Digital multiply-adds of the adapter.
        attention_macs: Products of queries, keys, values and attention weights.
        norm_macs: Multiply-adds of norms, four per element.
        linear_macs: Digital products with weights: task head, layers not on tiles.
        cache_bytes: Bytes of the key-value cache at the end of the batch's sequences.
        cache_traffic: Bytes of it written and read if tokens are generated one by one.
        adapter_bytes: Bytes of the adapter and the task head, rewritten to replace them.
        adapter_weights: Parameters of a GRASP adapter that are programmed as weights are.

    Raises:
        ValueError: `sequence` or `batch` is no whole number of at least 1.

    Example:
        >>> Work((LayerWork("dense", 256, 512, reads=3),)).analog_macs
        393216
    """

    layers: tuple[LayerWork, ...]
    sequence: int = 1
    batch: int = 1
    adapter: str = ""
    adapter_macs: int = 0
    attention_macs: int = 0
    norm_macs: int = 0
    linear_macs: int = 0
    cache_bytes: int = 0
    cache_traffic: int = 0
    adapter_bytes: int = 0
    adapter_weights: int = 0

    def __post_init__(self) -> None:
        check_whole("sequence", self.sequence)
        check_whole("batch", self.batch)

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.sequence * self.batch

    @property
    def analog_macs(self) -> int:
        """Multiply-adds on tiles."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs(self) -> int:
        """All multiply-adds."""
        digital = self.adapter_macs + self.attention_macs + self.norm_macs + self.linear_macs
        return self.analog_macs + digital

    @property
    def weights(self) -> int:
        """Programmed weights: those on tiles, and the parameters of a programmed GRASP adapter."""
        return sum(layer.weights for layer in self.layers) + self.adapter_weights


class Stage(NamedTuple):
    """A layer in a pipeline."""

    name: str
    tiles: int
    reads: float
    """Input vectors per sequence."""


class Load(NamedTuple):
    """Layers that are on the chip at the same time, in the order of the model."""

    stages: Sequence[Stage]
    parts: int = 1
    """Rewrites of the tiles, above 1 for a single layer that needs more tiles than there are."""


@dataclass(frozen=True)
class Pipeline:
    """Layers as the stages of a pipeline.

    A vector enters each layer as soon as the layer before has read it. With fewer tiles than
    needed, as many of the first layers as possible stay on the chip, so that the fewest tiles are
    rewritten. The others share the remaining tiles, which are rewritten in every batch with as
    many of the next layers as fit; the tiles of a load are rewritten at the same time (choices of
    this project).

    Attributes:
        stages: The layers, in the order of the model.
        read_time: Time of a tile read, s; None if not stated.
        tile_time: Time to rewrite a tile, s; None if not stated.
        available: The tiles that are available; None for all that are needed.

    Example:
        >>> stages = [Stage("a", 2, 10), Stage("b", 2, 10), Stage("c", 2, 10)]
        >>> shared = Pipeline(stages, 1e-7, 1e-3, available=4)
        >>> [[stage.name for stage in load.stages] for load in shared.loads], shared.rewritten
        ([['a', 'b'], ['c']], 4)
    """

    stages: Sequence[Stage]
    read_time: float | None
    tile_time: float | None
    available: int | None = None

    @property
    def needed(self) -> int:
        """Tiles that hold all layers."""
        return sum(stage.tiles for stage in self.stages)

    @property
    def resident(self) -> int:
        """The number of layers, from the first one on, that stay on the chip."""
        if self.available is None or self.needed <= self.available:
            return len(self.stages)
        tiles = [stage.tiles for stage in self.stages]
        count = 0
        while sum(tiles[: count + 1]) + max(tiles[count + 1 :], default=0) <= self.available:
            count += 1
        return count

    @property
    def loads(self) -> list[Load]:
        """The layers that are on the chip together, one load after the other."""
        fixed, rest = self.stages[: self.resident], self.stages[self.resident :]
        if self.available is None or not rest:
            return [Load(fixed)]
        room = self.available - sum(stage.tiles for stage in fixed)
        groups: list[list[Stage]] = [[]]
        for stage in rest:
            if groups[-1] and sum(s.tiles for s in groups[-1]) + stage.tiles > room:
                groups.append([])
            groups[-1].append(stage)
        # The layers that stay work together with the first of the others.
        groups[0] = [*fixed, *groups[0]]
        return [
            Load(group, math.ceil(group[0].tiles / room) if len(group) == 1 else 1)
            for group in groups
        ]

    @property
    def rewritten(self) -> int:
        """Tiles that are rewritten per batch."""
        return sum(stage.tiles for stage in self.stages[self.resident :])

    def latency(self, batch: float = 1) -> float | None:
        """Return the time of a batch of sequences, s; None if a time is not stated."""
        rewriting = self.tile_time if self.rewritten else 0.0
        if self.read_time is None or rewriting is None:
            return None
        time = 0.0
        for load in self.loads:
            reads = [batch * stage.reads for stage in load.stages if stage.reads]
            if reads:
                time += load.parts * self.read_time * (len(reads) - 1 + max(reads))
        return time + rewriting * sum(load.parts for load in self.loads)

    def throughput(self, batch: float = 1) -> float | None:
        """Return the sequences per second with batches of a size, one batch after the other."""
        latency = self.latency(batch)
        return None if not latency else batch / latency


def count_work(
    deployment: Deployment,
    sequence: int | None = None,
    batch: int | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Work:
    """Count the work of one batch in one digital forward pass of a deployed model.

    Activation functions, the softmax and additions are not counted. The arguments are those of
    `analog_grasp.costs`.

    Raises:
        ValueError: A number is below 1 or contradicts the inputs, the model has no positions for so
            many tokens, or it takes other inputs than the token ids of one sequence.
    """
    batch, sequence = _shape(batch, sequence, inputs)
    limit = position_limit(deployment.model)
    if inputs is None and limit is not None and sequence > limit:
        raise ValueError(
            f"sequence is {sequence}: the model has positions for at most {limit} tokens."
        )
    if inputs is None:
        _check_tokens(deployment.model)
        tensors = chain(deployment.model.parameters(), deployment.model.buffers())
        device = next((tensor.device for tensor in tensors), None)
        ids = torch.zeros(batch, sequence, dtype=torch.long, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    # A copy, so that the passes of the deployed model are not counted up.
    model: Any = deployment.copy_model(deployment.model, own=())
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    # With the matrices of a programmed LoRA.
    chip = (module for module in model.modules() if isinstance(module, ChipLayer))
    layers = deployment.layers | {layer.name: layer for layer in chip}
    # The products of other implementations of attention are not counted by torch.
    exact = sdpa_kernel(SDPBackend.MATH)
    with counted(model, layers) as count, exact, FlopCounterMode(display=False) as flops:
        held, moved = cached(model(**inputs))
    found = {str(op): n // 2 for op, n in flops.get_flop_counts().get("Global", {}).items()}
    attention = sum(n for op, n in found.items() if any(name in op for name in _ATTENTION))
    shapes = {name: layer.frozen.shape for name, layer in layers.items()}
    on_tiles = tuple(
        LayerWork(name, shape[1], shape[0], count.reads[name]) for name, shape in shapes.items()
    )
    products = sum(found.values()) - attention - count.adapter_products - count.simulated
    adapter, state = "", {}
    if isinstance(deployment.model, PeftModel):
        adapter = kind_of(deployment.model) or ""
        saved = get_peft_model_state_dict(deployment.model, save_embedding_layers=False)
        # A deployed StochGRASP adapter computes with its means alone.
        state = {name: value for name, value in saved.items() if "_log_sigma" not in name}
    return Work(
        layers=on_tiles,
        sequence=sequence,
        batch=batch,
        adapter=adapter,
        adapter_macs=count.adapter,
        attention_macs=attention,
        norm_macs=_NORM_MACS * count.norm_elements,
        linear_macs=products - sum(layer.macs for layer in on_tiles),
        cache_bytes=_KV_BYTES * held,
        cache_traffic=_KV_BYTES * moved,
        # Of the adapter and its task head.
        adapter_bytes=sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        adapter_weights=sum(
            len(vector.target)
            for module in model.modules()
            if isinstance(module, ProgrammedModulation)
            for vector in module.vectors
        ),
    )


def _check_tokens(model: Any) -> None:
    """Raise ValueError if a model takes more than the token ids of one sequence."""
    name = getattr(model, "main_input_name", "input_ids")
    decodes = has_encoder_and_decoder(model)
    choices = type(model).__name__.endswith("ForMultipleChoice")
    if name != "input_ids" or decodes or choices:
        taken = "those of an encoder and a decoder" if decodes else "choices" if choices else name
        raise ValueError(
            f"The inputs of the {type(model).__name__} are {taken}, which sequence and batch do "
            "not state: give inputs."
        )


def _shape(
    batch: int | None, sequence: int | None, inputs: Mapping[str, Tensor] | None
) -> tuple[int, int]:
    """Return sequences and tokens per sequence: as given, or else those of the inputs."""
    # Other inputs have no tokens.
    found, tokens = (1, 128) if inputs is None else (1, 1), None
    if inputs is not None:
        tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if tokens is not None:
        # Several choices, (B, C, T), are B C sequences.
        *sequences, length = tokens.shape[:-1] if tokens.is_floating_point() else tokens.shape
        found = math.prod(sequences), length
    shape = []
    for name, value, own in zip(("batch", "sequence"), (batch, sequence), found, strict=True):
        if value is not None:
            check_whole(name, value)
        if tokens is not None and value not in (None, own):
            raise ValueError(
                f"{name} is {value}, but that of the inputs is {own}: omit one of them."
            )
        shape.append(own if value is None else int(value))
    return shape[0], shape[1]
