"""Deployment: a model whose frozen weights live on a simulated chip that ages."""

import copy
import hashlib
import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from aihwkit.simulator.tiles.base import BaseTile
from peft import PeftModel
from torch import nn

from analog_grasp.adapters.frozen import FrozenLayer, LayerPattern
from analog_grasp.crossbar.mapping import map_layers, tiles_of, to_tiles
from analog_grasp.crossbar.tile import DriftCompensation, Tile, tile_config
from analog_grasp.devices import CardNoiseModel, DeviceCard, derive_seed, parse_time
from analog_grasp.devices.card import Effect

Placement = Literal["digital", "folded"]


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
        config: The tiles' configuration, from `tile_config`.
        pattern: Which frozen layers are mapped.
        placement: Where the adapter lives; a model to be folded comes here folded.

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
        config: object,
        pattern: LayerPattern = "all-linear",
        placement: Placement = "digital",
    ) -> None:
        self.card = card
        self.placement = placement
        self.seed: int | None = None
        self.time_s = 0.0
        self._pattern = pattern
        # Counts programmings and agings, so that a model knows when to number its passes anew.
        self._state = 0
        self._layers: dict[str, nn.Module] = {}
        self._digests: dict[str, str] = {}
        map_layers(model, pattern, lambda name, layer: self._place(name, layer, config))
        self.model = self._wired(model)

    def program(self, seed: int = 0) -> "Deployment":
        """Program the weights onto chip instance ``seed``; the time is then 0 s.

        Args:
            seed: The chip instance.

        Returns:
            The deployment itself.
        """
        self.seed = seed
        with torch.random.fork_rng(), torch.no_grad():
            for name, layer in self._layers.items():
                for i, tile in enumerate(tiles_of(layer)):
                    chip_tile = derive_seed(seed, name, i)
                    torch.manual_seed(derive_seed(chip_tile, "baseline"))
                    tile.program_weights(noise_model=CardNoiseModel(self.card, chip_tile))
        return self.drift_to(0.0)

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
        with torch.random.fork_rng(), torch.no_grad():
            for name, layer in self._layers.items():
                for i, tile in enumerate(tiles_of(layer)):
                    torch.manual_seed(derive_seed(self.seed, name, i, "read-out", seconds))
                    tile.drift_weights(seconds)
        self.time_s = seconds
        self._state += 1
        return self

    def attach(self, model: nn.Module) -> nn.Module:
        """Return a copy of another adapted model that computes on the tiles of this chip.

        As on a multi-task chip: the frozen weights are programmed once, and digital adapters
        take turns, so that differences between adapters are paired.

        Args:
            model: A model with the same frozen weights under another adapter.

        Raises:
            ValueError: Its frozen layers are others than those that were deployed.
        """
        other = copy.deepcopy(model)
        map_layers(other, self._pattern, self._same_layer)
        return self._wired(other)

    def report(self) -> list[LayerReport]:
        """What each layer takes of the chip, and its weight error at the present time."""
        return [self._layer_report(name, layer) for name, layer in self._layers.items()]

    def _place(self, name: str, layer: FrozenLayer, config: object) -> nn.Module:
        self._digests[name] = _digest(layer)
        self._layers[name] = to_tiles(layer, config)
        return self._layers[name]

    def _same_layer(self, name: str, layer: FrozenLayer) -> nn.Module:
        if self._digests.get(name) != _digest(layer):
            raise ValueError(
                f"The layer {name} holds other frozen weights than the chip was made for: "
                "only adapters of the same frozen model share a chip; deploy this one by itself."
            )
        return self._layers[name]

    def _wired(self, model: nn.Module) -> nn.Module:
        """Make a model's forward passes draw their noise from the chip's seed.

        Each model numbers its own passes, so that what it reads does not depend on which others
        share the chip.
        """
        model.eval().requires_grad_(False)
        callers: list[AbstractContextManager[None]] = []
        passes, state = itertools.count(), self._state

        def enter(*_: object) -> None:
            nonlocal passes, state
            if state != self._state:
                passes, state = itertools.count(), self._state
            callers.append(torch.random.fork_rng())
            callers[-1].__enter__()
            torch.manual_seed(derive_seed(self.seed or 0, "forward", self.time_s, next(passes)))

        def leave(*_: object) -> None:
            callers.pop().__exit__(None, None, None)

        model.register_forward_pre_hook(enter)
        # Also where the pass fails: the caller's random state must come back.
        model.register_forward_hook(leave, always_call=True)
        return model

    def _layer_report(self, name: str, layer: nn.Module) -> LayerReport:
        tiles = tiles_of(layer)
        cells = sum(tile.in_size * tile.out_size for tile in tiles)
        capacity = len(tiles) * self.card.tile.rows * self.card.tile.columns
        squares = sum(float(_weight_error(tile).square().sum()) for tile in tiles)
        return LayerReport(name, len(tiles), cells, cells / capacity, (squares / cells) ** 0.5)


def deploy(
    model: nn.Module,
    card: DeviceCard,
    *,
    placement: Placement = "digital",
    layers: LayerPattern = "all-linear",
    tile: Tile = "torch",
    programming_noise: bool = True,
    drift: bool = True,
    read_noise: bool = True,
    converters: bool = True,
    drift_compensation: DriftCompensation = "global",
) -> Deployment:
    """Put a copy of a model's frozen linear layers onto simulated crossbar tiles.

    Adapter arithmetic, embeddings, norms, biases and the task head stay digital. Each effect of
    the device can be switched off by itself; one that the card does not have stays off.

    Args:
        model: A transformers model, bare or with PEFT adapters; it is copied and stays digital.
        card: The device.
        placement: Where the adapter lives: ``"digital"``, exact arithmetic before the DAC, or
            ``"folded"``, merged into the weights that are programmed.
        layers: Which frozen layers, by PEFT-style patterns; see `frozen_layers`.
        tile: aihwkit's ``"torch"`` tile, or its compiled one, ``"rpucuda"``, whose forward noise
            is not governed by the seed.
        programming_noise: Whether conductances miss their targets.
        drift: Whether conductances change with time.
        read_noise: Whether accumulated 1/f noise is read.
        converters: Whether inputs and outputs pass DAC and ADC, output noise among them.
        drift_compensation: ``"global"`` or ``"none"``.

    Raises:
        ValueError: An unknown placement, tile, compensation or layer pattern.
        RuntimeError: The compiled tile does not fit the installed torch.

    Source:
        METHOD 3; the tiles are aihwkit's (Rasch et al., AICAS 2021).

    Example:
        ``deploy(model, DeviceCard.load("rram-wan2022")).program(seed=0).drift_to("30d")``
    """
    if placement not in get_args(Placement):
        raise ValueError(
            f"placement is {placement!r}, which is unknown: use {' or '.join(get_args(Placement))}."
        )
    switches: dict[Effect, bool] = {
        "programming": programming_noise,
        "drift": drift,
        "read": read_noise,
        "converters": converters,
    }
    card = card.without(*(effect for effect, on in switches.items() if not on))
    config = tile_config(card, tile, drift_compensation)
    copied = copy.deepcopy(model)
    if placement == "folded" and isinstance(copied, PeftModel):
        copied = copied.merge_and_unload(safe_merge=True)
    return Deployment(copied, card, config, layers, placement)


def _digest(layer: FrozenLayer) -> str:
    """A fingerprint of a layer's weight and bias."""
    digest = hashlib.blake2b()
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            stored = tensor.detach().cpu().contiguous()
            digest.update(stored.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weight_error(tile: BaseTile) -> torch.Tensor:
    """What the tile's weights, drift compensation applied, miss of their targets."""
    now = tile.tile.get_weights()
    target = tile.reference_combined_weights
    return now * tile.alpha.cpu() - (now if target is None else target.cpu())
