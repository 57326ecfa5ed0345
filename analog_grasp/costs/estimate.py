"""The energy, latency and programming cost of a deployment on one hardware."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.costs.hardware import CostModel
from analog_grasp.crossbar import Deployment
from analog_grasp.crossbar.chip_layer import chip_layer
from analog_grasp.crossbar.forward_hooks import computed_digitally
from analog_grasp.tasks.base import position_limit

Range = tuple[float, float, float]
"""The smallest, the stated and the largest value, in SI units."""

# NVIDIA H100 SXM data sheet: 1,979 TOPS of dense int8 at 700 W, an upper bound.
_GPU_TOPS_PER_WATT = 1979 / 700
_KV_BYTES = 2
# Adapter layers whose arithmetic is counted; BitFit's biases replace those of the layers.
_COUNTED: Any = (GraspLinear, LoraLayer, IA3Layer)


@dataclass(frozen=True)
class LayerCosts:
    """The work of one layer on tiles for one batch.

    Attributes:
        name: The layer's name in the base model.
        tiles: Tiles of the cost model's size.
        reads: Input vectors.
        macs: Multiply-adds.
    """

    name: str
    tiles: int
    reads: int
    macs: int


@dataclass(frozen=True)
class Costs:
    """The costs of one batch; None stands for figures that the cost model does not state.

    Attributes:
        model: The cost model.
        sequence: Tokens per sequence.
        batch: Sequences per batch.
        layers: The layers on tiles.
        adapter_macs: Digital multiply-adds of the adapter.
        digital_macs: Other digital multiply-adds: attention, task head, layers not on tiles.
        kv_cache_bytes: Bytes of the key-value cache of the batch; 0 without one.
        analog_energy: Energy of the tile reads, J, with what the model includes in it.
        adapter_energy: Energy of `adapter_macs`, J.
        digital_energy: Energy of `digital_macs`, J.
        latency_s: Time of the batch in a pipeline over the layers, s.
        throughput: Tokens per second of the full pipeline.
        tiles: Tiles needed.
        reprogrammed_tiles: Tiles that must be reprogrammed per batch, as they are not available.
        devices: Memory devices of the frozen weights.
        programming_energy: Energy to program them, J.
        adapter_bytes: Bytes that are rewritten to replace the adapter and the task head.
    """

    model: CostModel
    sequence: int
    batch: int
    layers: tuple[LayerCosts, ...]
    adapter_macs: int
    digital_macs: int
    kv_cache_bytes: int
    analog_energy: Range
    adapter_energy: Range | None
    digital_energy: Range | None
    latency_s: float | None
    throughput: float | None
    tiles: int
    reprogrammed_tiles: int
    devices: int | None
    programming_energy: Range | None
    adapter_bytes: int

    @property
    def tokens(self) -> int:
        """Tokens per batch."""
        return self.sequence * self.batch

    @property
    def macs(self) -> int:
        """All multiply-adds of the batch."""
        return sum(layer.macs for layer in self.layers) + self.adapter_macs + self.digital_macs

    @property
    def energy(self) -> Range | None:
        """The energy of all parts, J; None if the energy of one of them is not stated."""
        if self.adapter_energy is None or self.digital_energy is None:
            return None
        parts = (self.analog_energy, self.adapter_energy, self.digital_energy)
        low, value, high = (sum(part[i] for part in parts) for i in range(3))
        return low, value, high

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the table: quantity, per token, per batch."""
        tiles = sum(layer.macs for layer in self.layers)
        return [
            ("analog multiply-adds", _count(tiles / self.tokens), _count(tiles)),
            ("adapter multiply-adds", _count(self.adapter_macs / self.tokens),
             _count(self.adapter_macs)),
            ("other digital multiply-adds", _count(self.digital_macs / self.tokens),
             _count(self.digital_macs)),
            self._energy_row("energy, tile reads", self.analog_energy),
            self._energy_row("energy, adapter", self.adapter_energy),
            self._energy_row("energy, other digital", self.digital_energy),
            self._energy_row("energy, all parts", self.energy),
            ("efficiency", "", _efficiency(2 * self.macs, self.energy)),
            self._energy_row(
                "energy, all digital on this node", _digital_energy(self.model, self.macs)
            ),
            self._energy_row(
                "energy, NVIDIA H100 SXM at its int8 peak",
                _range(2 * self.macs / (_GPU_TOPS_PER_WATT * 1e12)),
            ),
            ("latency", "", _seconds(self.latency_s)),
            ("throughput, tokens per second", _count(self.throughput), ""),
            ("tiles", "", _count(self.tiles)),
            ("tiles reprogrammed", "", _count(self.reprogrammed_tiles)),
            ("key-value cache, bytes", _count(self.kv_cache_bytes / self.tokens),
             _count(self.kv_cache_bytes)),
            ("devices to program", "", _count(self.devices)),
            ("energy to program them", "", _joules(self.programming_energy)),
            ("bytes to rewrite the adapter", "", _count(self.adapter_bytes)),
        ]  # fmt: skip

    def __str__(self) -> str:
        head = (
            f"{self.model.title}; {self.batch} x {self.sequence} tokens; a tile read includes "
            f"{self.model.tile.includes}"
        )
        rows = [("", "per token", "per batch"), *self.rows()]
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{name:{width}}  {a:>24}  {b:>24}" for name, a, b in rows]
        return "\n".join((head, *lines))

    def _energy_row(self, name: str, energy: Range | None) -> tuple[str, str, str]:
        if energy is None:
            return name, _joules(None), _joules(None)
        low, value, high = (each / self.tokens for each in energy)
        return name, _joules((low, value, high)), _joules(energy)


def costs(
    deployment: Deployment,
    hardware: str | Path | CostModel = "hermes-1phase",
    *,
    sequence: int = 128,
    batch: int = 1,
    tiles: int | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Costs:
    """Return the energy, latency and programming cost of a deployment for one batch.

    The work is counted in one digital forward pass. A read of a tile is charged in full, whether
    the tile is full or not. Elementwise operations other than the adapter's are not counted.

    Args:
        deployment: The deployment; its chip need not be programmed.
        hardware: A cost model: a name, the path of a TOML file, or a `CostModel`.
        sequence: Tokens per sequence.
        batch: Sequences per batch.
        tiles: The tiles that are available; all that are needed by default.
        inputs: The model's inputs for one batch, for models that do not take ``input_ids``.

    Raises:
        ValueError: The cost model is unknown or invalid, or a number is below 1.

    Source:
        The sources of the cost model's figures; docs/method.md.

    Example:
        ``print(costs(deploy(model, "pcm-hermes-2"), "hermes-1phase"))``
    """
    for name, value in (("sequence", sequence), ("batch", batch), ("tiles", tiles)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: a number of at least 1 is accepted.")
    limit = position_limit(deployment.model)
    if inputs is None and limit is not None and sequence > limit:
        raise ValueError(
            f"sequence is {sequence}: the model has positions for at most {limit} tokens."
        )
    model = CostModel.load(hardware)
    reads, others, adapter_macs = _count_work(deployment, inputs or _dummy_inputs(sequence, batch))
    layers = tuple(_layer_costs(deployment, model, reads))
    digital_macs = others - sum(layer.macs for layer in layers)
    needed = sum(layer.tiles for layer in layers)
    all_reads = sum(layer.tiles * layer.reads for layer in layers)
    energy = model.read_energy()
    used = [layer.reads for layer in layers if layer.reads]
    time = model.read_time()
    weights = sum(chip_layer(layer).cells for layer in deployment.layers.values())
    programming = model.programming
    return Costs(
        model=model,
        sequence=sequence,
        batch=batch,
        layers=layers,
        adapter_macs=adapter_macs,
        digital_macs=digital_macs,
        kv_cache_bytes=_kv_cache_bytes(deployment.model, sequence * batch),
        analog_energy=(energy[0] * all_reads, energy[1] * all_reads, energy[2] * all_reads),
        adapter_energy=_digital_energy(model, adapter_macs),
        digital_energy=_digital_energy(model, digital_macs),
        # A vector enters each layer of the pipeline as soon as the layer before has read it.
        latency_s=None if time is None else time * (len(used) - 1 + max(used, default=1)),
        throughput=None if time is None or not used else sequence * batch / (time * max(used)),
        tiles=needed,
        reprogrammed_tiles=0 if tiles is None else max(0, needed - tiles),
        devices=None if programming is None else weights * programming.devices_per_weight,
        programming_energy=_programming_energy(model, weights),
        adapter_bytes=_adapter_bytes(deployment.model),
    )


def _dummy_inputs(sequence: int, batch: int) -> dict[str, Tensor]:
    ids = torch.zeros(batch, sequence, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _count_work(
    deployment: Deployment, inputs: Mapping[str, Tensor]
) -> tuple[dict[str, int], int, int]:
    """Return the reads of each layer, and the multiply-adds without and of the adapter."""
    # A copy, so that the passes of the deployed model are not counted up.
    model: Any = deployment.copy_model(deployment.model, own=())
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    reads = dict.fromkeys(deployment.layers, 0)
    # The adapter's multiply-adds, and those among them that torch counts too.
    adapter, in_total = 0, 0

    def count_reads(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            reads[name] += args[0].numel() // args[0].shape[-1]

        return hook

    def count_adapter(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal adapter, in_total
        rows = args[0].numel() // args[0].shape[-1]
        macs, counted = _adapter_macs(layer)
        adapter += rows * macs
        in_total += rows * macs if counted else 0

    handles = [
        layer.register_forward_pre_hook(count_reads(name))
        for name, layer in deployment.layers.items()
    ]
    handles += [
        module.register_forward_pre_hook(count_adapter)
        for module in model.modules()
        if isinstance(module, _COUNTED)
    ]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), computed_digitally(deployment.layers.values()), counter:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return reads, counter.get_total_flops() // 2 - in_total, adapter


def _adapter_macs(layer: Any) -> tuple[int, bool]:
    """Return an adapter's multiply-adds per input vector, and whether torch counts them."""
    if isinstance(layer, GraspLinear):
        return layer.in_features, False
    names = list(layer.active_adapters)
    if isinstance(layer, LoraLayer):
        ranks = sum(layer.r[name] for name in names if name in layer.r)
        features: Any = layer.in_features, layer.out_features
        return ranks * sum(features), True
    assert isinstance(layer, IA3Layer)
    vectors = [layer.ia3_l[name].numel() for name in names if name in layer.ia3_l]
    return sum(vectors), False


def _layer_costs(
    deployment: Deployment, model: CostModel, reads: Mapping[str, int]
) -> Iterator[LayerCosts]:
    for name, layer in deployment.layers.items():
        outputs, features = chip_layer(layer).frozen.shape
        tiles = math.ceil(features / model.tile.rows) * math.ceil(outputs / model.tile.columns)
        yield LayerCosts(name, tiles, reads[name], reads[name] * features * outputs)


def _digital_energy(model: CostModel, macs: int) -> Range | None:
    if model.digital is None:
        return None
    low, value, high = model.digital.tops_per_watt.range
    return 2 * macs / (high * 1e12), 2 * macs / (value * 1e12), 2 * macs / (low * 1e12)


def _programming_energy(model: CostModel, weights: int) -> Range | None:
    programming = model.programming
    if programming is None:
        return None
    devices = weights * programming.devices_per_weight
    if programming.device_energy is not None:
        ranges = [programming.device_energy.range]
    elif programming.pulse_energy is not None and programming.pulses_per_device is not None:
        ranges = [programming.pulse_energy.range, programming.pulses_per_device.range]
    else:
        return None
    low, value, high = (devices * math.prod(each[i] for each in ranges) for i in range(3))
    return low, value, high


def _kv_cache_bytes(model: nn.Module, tokens: int) -> int:
    """Return the bytes of the keys and values of a causal model, in 16 bits; 0 for others."""
    config: Any = getattr(model, "config", None)
    if not getattr(config, "use_cache", False) or not getattr(config, "num_hidden_layers", 0):
        return 0
    if not getattr(config, "is_decoder", True) and not hasattr(config, "num_key_value_heads"):
        return 0
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * _KV_BYTES * tokens


def _adapter_bytes(model: nn.Module) -> int:
    """Return the bytes of the active adapter and its task head; 0 without an adapter."""
    if not isinstance(model, PeftModel):
        return 0
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _range(value: float) -> Range:
    return value, value, value


def _count(value: float | None) -> str:
    return "not stated" if value is None else f"{value:,.0f}"


def _joules(energy: Range | None) -> str:
    if energy is None:
        return "not stated"
    low, value, high = energy
    factor, unit = next(
        ((f, u) for f, u in ((1e-12, "pJ"), (1e-9, "nJ"), (1e-6, "uJ"), (1e-3, "mJ"))
         if value < 1000 * f),
        (1.0, "J"),
    )  # fmt: skip
    text = f"{_digits(value / factor)} {unit}"
    if low == high:
        return text
    return f"{text} ({_digits(low / factor)} to {_digits(high / factor)})"


def _digits(value: float) -> str:
    """Return a number with three digits, without an exponent above 1,000."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _seconds(time: float | None) -> str:
    return "not stated" if time is None else f"{time * 1e6:.3g} us"


def _efficiency(operations: float, energy: Range | None) -> str:
    return "not stated" if energy is None else f"{operations / energy[1] / 1e12:.3g} TOPS/W"
