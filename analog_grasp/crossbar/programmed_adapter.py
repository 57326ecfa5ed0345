"""Adapters whose parameters are stored in analog devices: placement "programmed"."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from analog_grasp.adapters.frozen import base_name
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.adapters.registry import check_programmable
from analog_grasp.crossbar.chip_layer import ChipLayer
from analog_grasp.crossbar.tile_sets import DeploymentSettings
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels.rng import normal
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.types import DriftCompensation, ProgrammingError

# A mean magnitude, relative to the largest parameter, below which drift is not compensated, as for
# tiles.
_SMALLEST_READOUT = 1e-4


@dataclass
class ProgrammedVector:
    """Parameters of one kind, each in a device of its own, relative to the largest of them.

    Two more devices hold the ends of the range, so that a mapping that begins at the smallest
    weight is the same as for a tile's columns, which hold both signs.

    Attributes:
        target: The parameters, ``(M,)``.
        write_std: Standard deviation with which each is written, ``(M,)``, in place of the
            device's programming noise; None for the device's own.
        value: The parameters as they are read now, ``(M,)``.
        variance: Their variance from read to read, ``(M,)``; None where a read is exact.
    """

    target: Tensor
    write_std: Tensor | None = None

    def __post_init__(self) -> None:
        self._largest = self.target.abs().max()
        self.erase()

    def erase(self) -> None:
        """Read the parameters as they are, as before the first programming."""
        self.value = self._written = self.target
        self.variance: Tensor | None = None

    def program(
        self, card: DeviceCard, seed: int, chip: int, compensation: DriftCompensation
    ) -> None:
        """Write the parameters; they are then 0 s old."""
        self._card, self._seed, self._chip = card, seed, chip
        self._written = self.target
        if self.write_std is not None:
            self._card = card.without("programming")
            shape = tuple(self.target.shape)
            noise = normal(derive_seed(seed, "written"), shape, device="cpu", dtype=torch.float32)
            self._written = self.target + self.write_std * noise.to(self.target)
        fresh = self._card.model_copy(update={"read": None})
        self._reference = None
        if compensation == "exact":
            self._reference = self._readout(self.target)
        elif compensation != "none":
            self._reference = self._readout(self._read(fresh, 0.0)[0])
        self.drift_to(0.0)

    def drift_to(self, seconds: float) -> None:
        """Age the devices to a time since programming, in s."""
        self.value, self.variance = self._read(self._card, seconds)
        if self._reference is not None and self._largest > 0:
            gain = self._reference / self._readout(self.value)
            self.value = self.value * gain
            self.variance = None if self.variance is None else self.variance * gain.square()

    def move(self, device: torch.device) -> None:
        """Move the parameters, as stored and as read, to another device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def _readout(self, value: Tensor) -> Tensor:
        """Return the mean magnitude that drift compensation divides by."""
        return torch.maximum(value.abs().mean(), _SMALLEST_READOUT * self._largest)

    def _read(self, card: DeviceCard, seconds: float) -> tuple[Tensor, Tensor | None]:
        """Return the parameters read at a time, and their variance from read to read."""
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


class ProgrammedModulation(nn.Module):
    """A GRASP layer on a chip, with its scales and shifts in devices too.

    Each of the D features has a device for its scale and one for its shift; under
    ``sampling="group"`` the features of a group share theirs.

    Args:
        layer: The modulated layer, its projection already on tiles.
        name: The layer's name in the base model, which determines its devices on a chip.
        card: The device.
        programming_error: ``"device"``: parameters are written with the card's programming noise;
            ``"learned"``: each is drawn from its StochGRASP Gaussian, the tolerance to which it is
            written and verified. Drift and read noise are the card's in both cases.
        compensation: How the mean magnitude of drifted parameters is restored; the parameters of a
            layer are one column, so that ``"per-column"`` is ``"global"``.

    Raises:
        ValueError: No standard deviations were learned, several adapters are active, or the
            adapter is sampled by weight or has the form ``"normalize"``.

    Source:
        docs/method.md, "Analog deployment".
    """

    base_layer: Any

    def __init__(
        self,
        layer: GraspLinear,
        name: str,
        card: DeviceCard,
        programming_error: ProgrammingError,
        compensation: DriftCompensation,
    ) -> None:
        super().__init__()
        self.base_layer = layer.base_layer
        self.name, self._card, self._compensation = name, card, compensation
        # In a tuple, so that its parameters are not those of the deployed model.
        self._digital_layer = (layer,)
        adapter = _only_adapter(layer)
        group = layer.group_of[adapter]
        shared = isinstance(layer, StochGraspLinear) and layer.sampling[adapter] == "group"
        self._device_of = group if shared else torch.arange(len(group), device=group.device)
        stored = torch.arange(int(group.max()) + 1, device=group.device) if shared else group
        means = [mean.detach()[stored] for mean in layer.means(adapter)]
        stds: list[Tensor | None] = [None, None]
        if programming_error == "learned":
            if not isinstance(layer, StochGraspLinear):
                raise ValueError(
                    "programming_error is 'learned', but only a StochGRASP adapter has learned "
                    "standard deviations: use programming_error='device'."
                )
            stds = [sigma.detach()[stored] for sigma in layer.sigmas(adapter)]
        self.vectors = [ProgrammedVector(*pair) for pair in zip(means, stds, strict=True)]

    @property
    def weight(self) -> object:
        """The weight of the projection, for modules that read it."""
        return self.base_layer.weight

    @property
    def in_features(self) -> int:
        """D, the number of input features."""
        return len(self._device_of)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the projection, for modules that read it."""
        return cast(Tensor | None, self.base_layer.bias)

    def erase(self) -> None:
        """Compute with the digital scales and shifts, as before the first programming."""
        for vector in self.vectors:
            vector.erase()

    def program(self, chip: int) -> None:
        """Write the scales and the shifts onto a chip instance; they are then 0 s old."""
        for kind, vector in zip(("scale", "shift"), self.vectors, strict=True):
            vector.program(self._card, derive_seed(chip, self.name, kind), chip, self._compensation)

    def drift_to(self, seconds: float) -> None:
        """Age the devices to a time since programming, in s."""
        for vector in self.vectors:
            vector.drift_to(seconds)

    def _apply(self, fn: Any, recurse: bool = True) -> "ProgrammedModulation":
        # The vectors are no buffers: the digital layer has the saved state, and types stay.
        device = fn(self.vectors[0].target.new_empty(0)).device
        self._device_of = self._device_of.to(device)
        for vector in self.vectors:
            vector.move(device)
        return cast("ProgrammedModulation", super()._apply(fn, recurse))

    def digital_state(self) -> dict[str, Tensor]:
        """Return the state dict of the digital adapter of this layer."""
        state = cast(dict[str, Tensor], self._digital_layer[0].state_dict())
        return {name: t for name, t in state.items() if not name.startswith("base_layer.")}

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``W x' + c`` with the scales and shifts as they are read now.

        Args:
            x: Inputs, ``(..., D)``.

        Returns:
            ``(..., D_out)``.
        """
        scale, shift = (vector.value[self._device_of] for vector in self.vectors)
        wide = x.to(scale.dtype)
        modulated = torch.addcmul(shift, wide, scale)
        variances = [vector.variance for vector in self.vectors]
        if any(variance is not None for variance in variances):
            of_scale, of_shift = (
                0.0 if variance is None else variance[self._device_of] for variance in variances
            )
            std = (wide.square() * of_scale + of_shift).sqrt()
            key = int(torch.randint(2**62, ()))
            noise = normal(key, tuple(wide.shape), device=wide.device, dtype=wide.dtype)
            modulated = modulated + std * noise
        return cast(Tensor, self.base_layer(modulated.to(x.dtype)))


def put_into_devices(
    model: nn.Module, settings: DeploymentSettings
) -> "list[ProgrammedModulation | ChipLayer]":
    """Put the adapter of a deployed model into devices, in place, and return what stores it.

    The parameters of a GRASP or StochGRASP layer have devices of their own; LoRA's two small
    matrices go onto tiles.

    Args:
        model: A peft model whose frozen layers are on tiles.
        settings: The settings of the deployment.

    Raises:
        ValueError: The adapter has no parameters that devices can store, or as
            `ProgrammedModulation`.
    """
    stored: list[ProgrammedModulation | ChipLayer] = []
    for path, layer in list(model.named_modules()):
        name = base_name(path)
        if isinstance(layer, GraspLinear):
            how = settings.card, settings.programming_error, settings.drift_compensation
            stored.append(ProgrammedModulation(layer, name, *how))
            model.set_submodule(path, stored[-1])
        elif isinstance(layer, LoraLayer):
            stored += _lora_on_tiles(name, layer, settings)
    if not stored:
        raise ValueError(
            "placement is 'programmed', but the model has no GRASP, StochGRASP or LoRA adapter "
            "with parameters that devices can store: use placement='digital' or 'folded'."
        )
    learned = settings.programming_error == "learned"
    if learned and any(isinstance(part, ChipLayer) for part in stored):
        raise ValueError(
            "programming_error is 'learned', but LoRA has no learned standard deviations: use "
            "programming_error='device'."
        )
    return stored


def _lora_on_tiles(name: str, layer: LoraLayer, settings: DeploymentSettings) -> list[ChipLayer]:
    """Put the two matrices of a LoRA layer onto tiles, in place."""
    adapter = _only_adapter(layer)
    tiles: list[ChipLayer] = []
    for which, matrices in (("A", layer.lora_A), ("B", layer.lora_B)):
        matrix: Any = dict(matrices.items()).get(adapter)
        if not isinstance(matrix, nn.Linear):
            # Such as AdaLoRA, or LoRA on embeddings or convolutions.
            raise ValueError(
                f"placement is 'programmed', but the adapter of the layer {name} is a "
                f"{type(layer).__name__}, not LoRA on a linear layer: use placement='digital'."
            )
        tiles.append(settings.put_on_tiles(f"{name}.{which}", matrix))
        matrices[adapter] = tiles[-1]
    return tiles


def _only_adapter(layer: BaseTunerLayer) -> str:
    active = list(layer.active_adapters)
    if len(active) != 1:
        raise ValueError(
            f"placement is 'programmed' and {len(active)} adapters are active, but devices store "
            "one: activate one with set_adapter."
        )
    if isinstance(layer, GraspLinear):
        sampling = layer.sampling[active[0]] if isinstance(layer, StochGraspLinear) else "feature"
        check_programmable(layer.form[active[0]], sampling)
    return active[0]
