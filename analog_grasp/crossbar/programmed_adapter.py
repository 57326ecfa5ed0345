"""Adapters whose own numbers sit in analog devices: placement "programmed"."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast, get_args

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from analog_grasp.adapters.frozen import base_name
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.crossbar.tile import ChipLayer, MakeLayer
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels.rng import normal
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import ProgrammingError


@dataclass
class StoredVector:
    """Numbers of one kind in devices of their own, relative to the largest of them.

    Two more devices hold the ends of the range, so that a mapping that begins at the smallest
    weight is here what it is for a tile's columns, which hold both signs.

    Attributes:
        target: The numbers, ``(M,)``.
        spread: Standard deviation with which each is written, ``(M,)``, in place of the device's
            programming noise; None for the device's own.
        value: The numbers as they are read now, ``(M,)``.
        variance: Of the numbers from read to read, ``(M,)``; None where a read is exact.
    """

    target: Tensor
    spread: Tensor | None = None

    def __post_init__(self) -> None:
        self.value = self.target
        self.variance: Tensor | None = None
        self._written = self.target
        self._largest = self.target.abs().max()

    def program(self, card: DeviceCard, seed: int, chip: int, compensated: bool) -> None:
        """Write the numbers; they are then 0 s old."""
        self._card, self._seed, self._chip = card, seed, chip
        self._written = self.target
        if self.spread is not None:
            self._card = card.without("programming")
            noise = normal(derive_seed(seed, "written"), tuple(self.target.shape), device="cpu",
                           dtype=torch.float32)  # fmt: skip
            self._written = self.target + self.spread * noise.to(self.target)
        fresh = self._card.model_copy(update={"read": None})
        self._reference = self._read(fresh, 0.0)[0].abs().mean() if compensated else None
        self.drift_to(0.0)

    def drift_to(self, seconds: float) -> None:
        """The numbers as they are read at a time since programming, s."""
        self.value, self.variance = self._read(self._card, seconds)
        if self._reference is not None and self._largest > 0:
            gain = self._reference / self.value.abs().mean()
            self.value = self.value * gain
            self.variance = None if self.variance is None else self.variance * gain.square()

    def _read(self, card: DeviceCard, seconds: float) -> tuple[Tensor, Tensor | None]:
        if self._largest == 0:
            return torch.zeros_like(self.target), None
        ends = self._written.new_tensor([-1.0, 1.0])
        row = torch.cat([ends, self._written / self._largest])[None].float().contiguous()
        model = CardNoiseModel(card, self._seed, self._chip)
        variance = None if card.short_term is None else torch.empty_like(row)
        read = model.read_weights(row, seconds, variance_out=variance)[0, 2:] * self._largest
        if variance is not None:
            variance = variance[0, 2:] * self._largest.square()
        return read, variance


class StoredModulation(nn.Module):
    """A GRASP layer on a chip, its scales and shifts in devices too.

    Each of the D features has a device for its scale and one for its shift; under
    ``sampling="group"`` the features of a group share theirs.

    Args:
        layer: The modulated layer, its projection already on tiles.
        name: Names the layer's devices on the chip.
        error: ``"device"``: a number misses its target as the card's devices do; ``"learned"``: it
            is drawn from its StochGRASP Gaussian, the tolerance to which it is written and
            verified. Drift and read noise are the card's in both.

    Raises:
        ValueError: No spread was learned, several adapters are active, or the samples of the
            adapter are by weight.

    Source:
        METHOD 3, placement "programmed".
    """

    def __init__(self, layer: GraspLinear, name: str, error: ProgrammingError) -> None:
        super().__init__()
        self.base_layer = layer.base_layer
        self.name = name
        adapter = _only_adapter(layer)
        group = layer.group_of[adapter]
        shared = isinstance(layer, StochGraspLinear) and layer.sampling[adapter] == "group"
        self._device_of = group if shared else torch.arange(len(group), device=group.device)
        held = torch.arange(int(group.max()) + 1, device=group.device) if shared else group
        means = [mean.detach()[held] for mean in layer.means(adapter)]
        spreads: list[Tensor | None] = [None, None]
        if error == "learned":
            if not isinstance(layer, StochGraspLinear):
                raise ValueError(
                    "error is 'learned', but only a StochGRASP adapter has learned spreads: use "
                    "error='device'."
                )
            spreads = [sigma.detach()[held] for sigma in layer.sigmas(adapter)]
        self.stored = [StoredVector(*pair) for pair in zip(means, spreads, strict=True)]

    def program(self, card: DeviceCard, chip: int, compensated: bool) -> None:
        """Write the scales and the shifts; they are then 0 s old."""
        for kind, vector in zip(("scale", "shift"), self.stored, strict=True):
            vector.program(card, derive_seed(chip, self.name, kind), chip, compensated)

    def drift_to(self, seconds: float) -> None:
        """The scales and shifts as they are read at a time since programming, s."""
        for vector in self.stored:
            vector.drift_to(seconds)

    def forward(self, x: Tensor) -> Tensor:
        """``W x' + c`` with the numbers as they are read now; ``(..., D)`` to ``(..., D_out)``."""
        scale, shift = (vector.value[self._device_of] for vector in self.stored)
        wide = x.to(scale.dtype)
        modulated = torch.addcmul(shift, wide, scale)
        variances = [vector.variance for vector in self.stored]
        if any(variance is not None for variance in variances):
            of_scale, of_shift = (
                0.0 if variance is None else variance[self._device_of] for variance in variances
            )
            spread = (wide.square() * of_scale + of_shift).sqrt()
            key = int(torch.randint(2**62, ()))
            modulated = modulated + spread * normal(
                key, tuple(wide.shape), device=wide.device, dtype=wide.dtype
            )
        return self.base_layer(modulated.to(x.dtype))


class StoredAdapter:
    """The devices and tiles that hold the adapter of one deployed model.

    A GRASP or StochGRASP layer keeps its numbers in devices of their own; LoRA's two small
    matrices go onto tiles.

    Args:
        model: A peft model whose frozen layers are on tiles; changed in place.
        card: The device.
        make_layer: Puts a linear layer on tiles.
        error: See `StoredModulation`.
        compensated: Whether drift is compensated.

    Raises:
        ValueError: The adapter has nothing that devices could hold, or as `StoredModulation`.
    """

    def __init__(
        self,
        model: nn.Module,
        card: DeviceCard,
        make_layer: MakeLayer,
        error: ProgrammingError,
        compensated: bool,
    ) -> None:
        if error not in get_args(ProgrammingError):
            raise ValueError(f"error is {error!r}, which is unknown: use device or learned.")
        self._card, self._compensated = card, compensated
        self._modulations: list[StoredModulation] = []
        self._tiles: list[ChipLayer] = []
        for path, layer in list(_adapted(model)):
            if isinstance(layer, GraspLinear):
                self._modulations.append(StoredModulation(layer, base_name(path), error))
                model.set_submodule(path, self._modulations[-1])
            elif isinstance(layer, LoraLayer):
                self._put_on_tiles(path, layer, make_layer)
        if not self._modulations and not self._tiles:
            raise ValueError(
                "placement is 'programmed', but the model has no GRASP, StochGRASP or LoRA adapter "
                "whose numbers devices could hold: use placement='digital' or 'folded'."
            )
        if self._tiles and error == "learned":
            raise ValueError(
                "error is 'learned', but LoRA has learned no spreads: use error='device'."
            )

    def program(self, chip: int) -> None:
        """Write the adapter onto a chip instance; it is then 0 s old."""
        for modulation in self._modulations:
            modulation.program(self._card, chip, self._compensated)
        for layer in self._tiles:
            layer.program(chip)

    def drift_to(self, seconds: float) -> None:
        """Let the adapter age to a time since programming, s."""
        for modulation in self._modulations:
            modulation.drift_to(seconds)
        for layer in self._tiles:
            layer.drift_to(seconds)

    def _put_on_tiles(self, path: str, layer: LoraLayer, make_layer: MakeLayer) -> None:
        adapter = _only_adapter(layer)
        for matrices in (layer.lora_A, layer.lora_B):
            name = f"{base_name(path)}.{'A' if matrices is layer.lora_A else 'B'}"
            matrices[adapter] = make_layer(name, cast(nn.Linear, matrices[adapter]))
            self._tiles.append(cast(ChipLayer, matrices[adapter]))


def _adapted(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """The paths and modules of the layers that an adapter has wrapped."""
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield path, module


def _only_adapter(layer: BaseTunerLayer) -> str:
    active = list(layer.active_adapters)
    if len(active) != 1:
        raise ValueError(
            f"placement is 'programmed' and {len(active)} adapters are active, but devices hold "
            "one: activate one with set_adapter."
        )
    weighted = isinstance(layer, StochGraspLinear) and layer.sampling[active[0]] == "weight"
    if weighted:
        raise ValueError(
            "placement is 'programmed', but the adapter was sampled by weight, so that its numbers "
            "live in the folded cross-points: use placement='folded'."
        )
    return active[0]
