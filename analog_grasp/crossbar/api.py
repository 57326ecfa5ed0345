"""Python interface of deployment: `deploy`."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from analog_grasp.adapters.frozen import LayerPattern, fold
from analog_grasp.crossbar.deployment import Deployment
from analog_grasp.crossbar.mapping import Clip
from analog_grasp.crossbar.saving import check_whole, stream_weights
from analog_grasp.crossbar.tile_sets import (
    DeploymentSettings,
    FirstToken,
    TileBackend,
    check_adapter,
    copy_sharing_frozen,
)
from analog_grasp.devices.card import Device, DeviceCard, Effect
from analog_grasp.devices.schema import LayerMapping
from analog_grasp.utils.types import DriftCompensation, Placement, ProgrammingError


def deploy(
    model: nn.Module,
    device: Device,
    *,
    placement: Placement = "digital",
    programming_error: ProgrammingError = "device",
    layers: LayerPattern = "all-linear",
    tile: TileBackend = "torch",
    programming_noise: bool = True,
    drift: bool = True,
    read_noise: bool = True,
    converters: bool = True,
    circuit: bool = True,
    drift_compensation: DriftCompensation = "global",
    clip: Clip | None = None,
    first_token: FirstToken | None = None,
    dtype: torch.dtype = torch.float32,
    weights: str | Path | None = None,
    inplace: bool = False,
) -> Deployment:
    """Put a copy of a model's frozen linear layers onto simulated crossbar tiles.

    Adapter arithmetic, embeddings, norms, biases and the task head stay digital, and so do
    convolutions and recurrent layers; `Deployment.report` lists them. Fused experts and the input
    projections of ``nn.MultiheadAttention`` go onto tiles too. Each effect of the device can be
    switched off separately; one that the card does not have stays off.

    The deployment needs memory for one more copy of the weights on tiles, in `dtype`, one to three
    bytes per weight for products of integers (not with `weights`), and for the adapter. Frozen
    weights are referred to, not copied, unless the adapter is folded.

    Args:
        model: A transformers model or another torch module, bare or with PEFT adapters; it stays
            digital. Its frozen parameters must not be changed in place while the deployment is
            used.
        device: The device: the name of a card, the path of a TOML file, or a `DeviceCard`.
        placement: Where the adapter is: ``"digital"``, exact arithmetic before the DAC;
            ``"folded"``, merged into the weights that are programmed; ``"programmed"``, its
            parameters in devices beside them.
        programming_error: That of a programmed adapter: ``"device"``, the card's programming noise,
            or ``"learned"``, its StochGRASP Gaussians; see `ProgrammedModulation`.
        layers: The frozen layers, by PEFT-style patterns; see `frozen_layers`.
        tile: ``"torch"``, which computes what aihwkit's torch tile does; ``"rpucuda"``, aihwkit's
            compiled tile, whose forward noise is not determined by the seed; or ``"ir-drop"``,
            its time-stepped torch tile.
        programming_noise: Enable programming noise.
        drift: Enable drift.
        read_noise: Enable accumulated 1/f noise, and noise drawn at each read.
        converters: Enable DAC, ADC and output noise.
        circuit: Enable wire resistance and nonlinear bit lines; only aihwkit's tiles simulate them.
        drift_compensation: ``"global"``, ``"per-column"``, ``"exact"`` or ``"none"``; see
            `CrossbarLinear`.
        clip: Clip large weights as they are mapped, so that all others are larger on the devices:
            at a multiple of their column's standard deviation, or ``"least-error"`` under the
            card's noise after a day; see `column_scale`. By default as the card states (section
            ``mapping``), else none.
        first_token: ``"digital"`` computes the first token of each sequence exactly, where language
            models have the largest activations. Real if all sequences begin with the same token,
            whose keys and values are stored. For layers with inputs ``(B, T, D)`` or
            ``(B T, D)``, and so neither for experts, whose tokens a router chooses, nor for models
            with an encoder and a decoder, other inputs than token ids, or a programmed adapter. By
            default as the card states, else ``"analog"``.
        dtype: The type in which weights on tiles are stored; see `CrossbarLinear`.
        weights: For a bare model on the meta device: the safetensors file or folder with its
            weights, which are read as they are needed; see `stream_weights`.
        inplace: Deploy the model itself instead of a copy; it is then no longer digital.

    Raises:
        ValueError: An unknown device, placement, error, tile, compensation, type or layer pattern;
            an adapter that cannot be placed so; an argument without effect; or a tensor on the meta
            device that `weights` does not hold.
        FileNotFoundError: `weights` is not a file or folder with weights.
        RuntimeError: The compiled tile does not work with the installed torch.

    Source:
        docs/method.md, "Analog deployment"; aihwkit (Rasch et al., AICAS 2021).

    Example:
        ``deploy(model, "rram-wan2022").program(seed=0).drift_to("30d")``
    """
    switches: dict[Effect, bool] = {
        "programming": programming_noise,
        "drift": drift,
        "read": read_noise,
        "converters": converters,
        "circuit": circuit,
    }
    if programming_error == "learned" and not programming_noise:
        raise ValueError(
            "programming_error is 'learned', but programming_noise is False: omit one of them."
        )
    card = DeviceCard.load(device).without(*(effect for effect, on in switches.items() if not on))
    stated = card.mapping or LayerMapping()
    settings = DeploymentSettings(
        card,
        placement,
        programming_error,
        layers,
        tile,
        drift_compensation,
        dtype,
        stated.clip if clip is None else clip,
        stated.first_token if first_token is None else first_token,
        weights is not None,
    )
    check_adapter(model, placement)
    with torch.inference_mode(False):
        shared: dict[str, Tensor] = {}
        if not inplace and placement == "folded":
            model = copy.deepcopy(model)
        elif not inplace:
            model, shared = copy_sharing_frozen(model, layers)
        if weights is not None:
            stream_weights(model, weights)
        check_whole(model)
        if placement == "folded" and isinstance(model, PeftModel):
            model = fold(model)
        return Deployment(model, settings, shared)
