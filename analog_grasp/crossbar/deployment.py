"""Deployment: a model whose frozen weights live on a simulated chip that ages."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.adapters.folding import fold
from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern, frozen_layers
from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.crossbar.forward_hooks import Passes, observed_ranges
from analog_grasp.crossbar.mapping import map_layers
from analog_grasp.crossbar.programmed_adapter import StoredAdapter
from analog_grasp.crossbar.streaming import check_whole, stream_weights
from analog_grasp.crossbar.tile import ChipLayer, MakeLayer, Tile, chip_layer, layer_maker
from analog_grasp.devices.card import DeviceCard, Effect
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.time import parse_time
from analog_grasp.utils.types import DriftCompensation, Placement, ProgrammingError


@dataclass(frozen=True)
class LayerReport:
    """What one layer takes of the chip, and how far its weights are from their targets."""

    name: str
    """The layer's name in the base model."""
    tiles: int
    """Tiles used."""
    cells: int
    """Cross-points that hold a weight."""
    use: float
    """Share of the tiles' cross-points that hold a weight."""
    weight_error: float
    """Root mean square of (weight now - target), in units of the column maximum."""


class Deployment:
    """A chip with the frozen weights of a model, and the model that computes with it.

    Made by `deploy`. A chip instance is named by one integer: the same seed gives the same
    conductances, drift and read noise, whatever else runs in the process and in whichever order
    drift times are visited.

    Args:
        model: The model, whose layers are replaced in place.
        card: The device.
        make_layer: Puts a layer on tiles, from `layer_maker`.
        pattern: Which frozen layers are mapped.
        store_adapter: Puts the adapter of a model in devices, for placement "programmed"; a model
            to be folded comes here folded.
        shared: The parameters, by name, whose memory the model shares with the caller's.

    Attributes:
        model: The deployed copy. In each of its forward passes the noise comes from the chip's
            own seed, and the caller's random state is left as it was.
        card: The device.
        seed: The chip instance; None before `program`.
        time_s: Seconds since programming finished.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, vocab_size=10,
        ...                  num_attention_heads=2, intermediate_size=16))
        >>> deployment = deploy(tiny, DeviceCard.load("pcm-hermes-2"))
        >>> deployment.program(seed=0).drift_to("1d").time_s
        86400.0
    """

    def __init__(
        self,
        model: nn.Module,
        card: DeviceCard,
        make_layer: MakeLayer,
        pattern: LayerPattern = "all-linear",
        store_adapter: Callable[[nn.Module], StoredAdapter] | None = None,
        shared: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.card = card
        self.seed: int | None = None
        self.time_s = 0.0
        self._pattern = pattern
        self._passes: WeakKeyDictionary[nn.Module, Passes] = WeakKeyDictionary()
        self._layers: dict[str, nn.Module] = {}
        self._frozen: dict[str, FrozenLayer] = {}
        self._store_adapter = store_adapter
        self._stored: list[StoredAdapter] = []
        map_layers(model, pattern, lambda name, layer: self._place(name, layer, make_layer))
        self.model = self._wired(model, shared or {})

    def program(self, seed: int = 0) -> "Deployment":
        """Program the weights onto chip instance ``seed``; the time is then 0 s.

        Args:
            seed: The chip instance.

        Returns:
            The deployment itself.
        """
        self.seed, self.time_s = seed, 0.0
        with torch.no_grad():
            for part in self._programmable():
                part.program(seed)
        self._restart()
        return self

    def drift_to(self, time: str | float) -> "Deployment":
        """Let the chip age to a time since programming; any order of times gives the same bits.

        Args:
            time: Such as ``"0s"``, ``"1h"``, ``"30d"``, ``"1y"``, or seconds.

        Returns:
            The deployment itself.

        Raises:
            ValueError: The text is no time, or the time is negative.
            RuntimeError: The chip has not been programmed.
        """
        seconds = parse_time(time)
        if self.seed is None:
            raise RuntimeError("The chip holds no weights yet: call program(seed) before drift_to.")
        with torch.no_grad():
            for part in self._programmable():
                part.drift_to(seconds)
        self.time_s = seconds
        self._restart()
        return self

    def calibrate(
        self,
        observe: Callable[[nn.Module], object],
        percentile: float = 100.0,
        model: nn.Module | None = None,
    ) -> dict[str, float]:
        """Fix the DAC's input range of every layer by what the model sees on data.

        A range that follows the largest input of each vector, or one fixed beforehand, wastes most
        of the DAC's levels where activations have outliers. What lies beyond a range is clipped.

        Args:
            observe: Runs a model on data, such as
                ``lambda model: task.subset(train=64).scores(model, "train")``. The passes are
                digital.
            percentile: Of the magnitudes of a layer's inputs; 100 for the largest.
            model: The attached model whose ranges are meant; ``self.model`` if left out.

        Returns:
            The range of each layer, by name; they hold until the next call.

        Raises:
            ValueError: The percentile is not above 0 and at most 100.
        """
        chosen = self.model if model is None else model
        passes = self._passes[chosen]
        passes.input_ranges = {}
        passes.input_ranges = observed_ranges(self._layers, lambda: observe(chosen), percentile)
        passes.restart()
        return passes.input_ranges

    def attach(self, model: nn.Module) -> nn.Module:
        """Return a copy of another adapted model that computes on the tiles of this chip.

        As on a multi-task chip: the frozen weights are programmed once, and digital adapters
        take turns, so that differences between adapters are paired.

        Args:
            model: A model with the same frozen weights under another adapter.

        Raises:
            ValueError: Its frozen layers are others than those that were deployed.
        """
        other, shared = _copied(model, self._pattern)
        map_layers(other, self._pattern, self._same_layer)
        return self._wired(other, shared)

    def report(self) -> list[LayerReport]:
        """What each layer takes of the chip, and its weight error at the present time."""
        size = self.card.tile.rows * self.card.tile.columns
        return [
            LayerReport(
                name,
                layer.tiles,
                layer.cells,
                layer.cells / (layer.tiles * size),
                layer.weight_error(),
            )
            for name, layer in zip(self._layers, self._chip_layers(), strict=True)
        ]

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers on tiles, by their names in the base model."""
        return dict(self._layers)

    def _chip_layers(self) -> Iterator[ChipLayer]:
        return (chip_layer(layer) for layer in self._layers.values())

    def _programmable(self) -> "Iterator[ChipLayer | StoredAdapter]":
        yield from self._chip_layers()
        yield from self._stored

    def _place(self, name: str, layer: FrozenLayer, make_layer: MakeLayer) -> nn.Module:
        self._frozen[name] = layer
        self._layers[name] = make_layer(name, layer)
        return self._layers[name]

    def _same_layer(self, name: str, layer: FrozenLayer) -> nn.Module:
        if name not in self._frozen or not _same(self._frozen[name], layer):
            raise ValueError(
                f"The layer {name} holds other frozen weights than the chip was made for: "
                "only adapters of the same frozen model share a chip; deploy this one by itself."
            )
        return self._layers[name]

    def _wired(self, model: nn.Module, shared: Mapping[str, Tensor]) -> nn.Module:
        """Make a model ready to compute on the chip."""
        model.eval().requires_grad_(False)
        if self._store_adapter is not None:
            self._stored.append(self._store_adapter(model))
            if self.seed is not None:
                self._stored[-1].program(self.seed)
                self._stored[-1].drift_to(self.time_s)
        self._passes[model] = Passes(model, self._layers, self._pass_seed, shared)
        return model

    def _restart(self) -> None:
        for passes in self._passes.values():
            passes.restart()

    def _pass_seed(self, number: int) -> int:
        return derive_seed(self.seed or 0, "forward", self.time_s, number)


def deploy(
    model: nn.Module,
    card: DeviceCard,
    *,
    placement: Placement = "digital",
    error: ProgrammingError = "device",
    layers: LayerPattern = "all-linear",
    tile: Tile = "torch",
    programming_noise: bool = True,
    drift: bool = True,
    read_noise: bool = True,
    converters: bool = True,
    circuit: bool = True,
    drift_compensation: DriftCompensation = "global",
    dtype: torch.dtype = torch.float32,
    weights: str | Path | None = None,
    inplace: bool = False,
) -> Deployment:
    """Put a copy of a model's frozen linear layers onto simulated crossbar tiles.

    Adapter arithmetic, embeddings, norms, biases and the task head stay digital. Each effect of
    the device can be switched off by itself; one that the card does not have stays off.

    In memory the deployment is one more copy of the weights on tiles, in `dtype`, and what an
    adapter has of its own: layer by layer, the frozen weights are referred to and not copied, and
    drift needs no further copy. A folded model is a copy in itself, unless ``inplace``.

    Args:
        model: A transformers model, bare or with PEFT adapters; it stays digital. Its frozen
            parameters must not be changed in place while the deployment is used.
        card: The device.
        placement: Where the adapter lives: ``"digital"``, exact arithmetic before the DAC;
            ``"folded"``, merged into the weights that are programmed; ``"programmed"``, its own
            numbers in devices beside them.
        error: How far a programmed adapter's numbers miss: ``"device"``, as the card's devices do,
            or ``"learned"``, by their StochGRASP Gaussians; see `StoredModulation`.
        layers: Which frozen layers, by PEFT-style patterns; see `frozen_layers`.
        tile: ``"torch"``, which computes what aihwkit's torch tile does, or ``"rpucuda"``,
            aihwkit's compiled tile, whose forward noise is not governed by the seed; or
            ``"ir-drop"``, its time-stepped torch tile.
        programming_noise: Whether conductances miss their targets.
        drift: Whether conductances change with time.
        read_noise: Whether reads are noisy: accumulated 1/f noise, and noise drawn at each read.
        converters: Whether inputs and outputs pass DAC and ADC, output noise among them.
        circuit: Whether wires have resistance and bit lines their nonlinear curve, where the card
            says so; only aihwkit's own tiles simulate it.
        drift_compensation: ``"global"``, ``"per-column"``, ``"exact"`` or ``"none"``; see
            `CrossbarLinear`.
        dtype: What the weights on tiles are kept in: float32, bfloat16 or float16; those in
            bfloat16 are multiplied as the processor is faster, see `CrossbarLinear`.
        weights: For a bare model on the meta device: the safetensors file or folder that holds its
            weights, which are read from there as they are needed; see `stream_weights`, which comes
            before an adapter is put on such a model.
        inplace: Deploy the model itself and no copy: the caller's is used up.

    Raises:
        ValueError: An unknown placement, error, tile, compensation, type or layer pattern; an
            adapter that cannot be placed so; or a tensor on the meta device that `weights` does
            not hold.
        FileNotFoundError: `weights` is no file or folder with weights.
        RuntimeError: The compiled tile does not fit the installed torch.

    Source:
        METHOD 3; aihwkit (Rasch et al., AICAS 2021).

    Example:
        ``deploy(model, DeviceCard.load("rram-wan2022")).program(seed=0).drift_to("30d")``

        A model that is larger than the memory left for a second one:

        ``with accelerate.init_empty_weights(): model = AutoModelForCausalLM.from_config(config)``
        ``deploy(model, card, weights="folder", dtype=torch.bfloat16)``
    """
    if placement not in get_args(Placement):
        known = ", ".join(get_args(Placement))
        raise ValueError(f"placement is {placement!r}, which is unknown: use one of {known}.")
    kind = kind_of(model.active_peft_config) if isinstance(model, PeftModel) else None
    if kind is not None:
        check_placement(kind, placement)
    switches: dict[Effect, bool] = {
        "programming": programming_noise,
        "drift": drift,
        "read": read_noise,
        "converters": converters,
        "circuit": circuit,
    }
    card = card.without(*(effect for effect, on in switches.items() if not on))
    make_layer = layer_maker(card, tile, drift_compensation, dtype)
    shared: dict[str, Tensor] = {}
    if not inplace and placement == "folded":
        model = copy.deepcopy(model)
    elif not inplace:
        model, shared = _copied(model, layers)
    if weights is not None:
        stream_weights(model, weights)
    check_whole(model)
    if placement == "folded" and isinstance(model, PeftModel):
        model = fold(model)
    store_adapter = None
    if placement == "programmed":
        compensated = drift_compensation != "none"

        def store_adapter(adapted: nn.Module) -> StoredAdapter:
            return StoredAdapter(adapted, card, make_layer, error, compensated)

    return Deployment(model, card, make_layer, layers, store_adapter, shared)


def _copied(model: nn.Module, pattern: LayerPattern) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of a model that refers to the caller's frozen tensors, and these by name.

    Frozen is what an adapter does not train; in a model without one, everything. Left out of the
    second are the weights that go onto tiles, which are looked after there.
    """
    onto_tiles = {id(layer.weight): layer.weight for _, layer in frozen_layers(model, pattern)}
    bare = not isinstance(model, PeftModel)
    shared: dict[str, Tensor] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if (bare or not parameter.requires_grad) and id(parameter) not in onto_tiles
    }
    # Of the same memory, but with a flag of their own for gradients.
    referring = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in shared.values()}
    return copy.deepcopy(model, {**onto_tiles, **referring}), shared


def _same(layer: FrozenLayer, other: FrozenLayer) -> bool:
    """Whether two layers have the same weight and bias."""
    pairs = ((layer.weight, other.weight), (layer.bias, other.bias))
    return all(a is b or _equal(a, b) for a, b in pairs)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype:
        return False
    return torch.equal(a, b.to(a.device))
