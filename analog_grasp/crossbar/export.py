"""The chip as a file: target conductances, column scales and write tolerances, for real crossbars.

A safetensors file. For every tile, named ``LAYER.tile.R.C`` after its first input R and its first
output C:

- ``...g_plus`` and ``...g_minus``, ``(D_out, width)`` in µS: the targets of the two devices of
  every weight; or ``...g`` where the card holds a weight in one device;
- ``...scale``, ``(D_out,)``: the weight of a column for which its conductance difference is the
  whole range; ``...offset``, the weight at g_min, where one device holds a weight.

For every layer ``LAYER.bias``. The adapter and the task head under ``adapter.``, as peft saves
them; and for a StochGRASP layer, ``LAYER.tolerance.scale`` and ``LAYER.tolerance.shift``, ``(K,)``:
the standard deviation to which each stored value need be written and verified.

The metadata holds the card, the settings of the adapter and the shapes: `load_chip` gives the same
model again.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.config import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from analog_grasp.adapters.frozen import LayerPattern, base_name, by_output, frozen_layers
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.crossbar.linear import column_scale, parts
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import CardConductanceConverter

FORMAT = "analog-grasp chip 1"


def export_chip(
    model: nn.Module, card: DeviceCard, path: str | Path, layers: LayerPattern = "all-linear"
) -> None:
    """Write the targets of every tile, and what it takes to get the same model again.

    Args:
        model: The digital model, bare or with one peft adapter; a folded adapter comes merged.
        card: The device.
        path: The file.
        layers: Which frozen layers go onto tiles; see `frozen_layers`.

    Raises:
        ValueError: The pattern matches no layer.
        OSError: The file cannot be written.

    Example:
        ``export_chip(model, DeviceCard.load("rram-wan2022"), "chip.safetensors")``
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, layer in frozen_layers(model, layers):
        weight = by_output(layer).float().cpu()
        shapes[base_name(name)] = list(weight.shape)
        tensors |= _tiles(base_name(name), weight, card)
        if layer.bias is not None:
            tensors[f"{base_name(name)}.bias"] = layer.bias.detach().float().cpu()
    adapter = None
    if isinstance(model, PeftModel):
        adapter = _plain(model.active_peft_config)
        tensors |= _adapter(model)
    metadata = {
        "format": FORMAT,
        "card": card.model_dump_json(exclude_none=True),
        "geometry": json.dumps(
            {
                "g_min": card.conductance.g_min,
                "g_max": card.conductance.g_max,
                "rows": card.tile.rows,
                "columns": card.tile.columns,
            }
        ),
        "layers": json.dumps(shapes),
        "adapter": json.dumps(adapter),
    }
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, Path(path), metadata)


def load_chip(path: str | Path, base_model: nn.Module) -> nn.Module:
    """The model that a chip's file holds, on the pre-trained model that it was made from.

    Args:
        path: A file from `export_chip`.
        base_model: The pre-trained model, with the task's head; its frozen layers are overwritten.

    Returns:
        The model, with its adapter.

    Raises:
        ValueError: The file is no chip, or it was made from another model.
        FileNotFoundError: There is no such file.

    Example:
        ``load_chip("chip.safetensors", load_base_model(task))``
    """
    metadata, tensors = _read(Path(path))
    geometry = json.loads(metadata["geometry"])
    model = base_model
    settings = json.loads(metadata["adapter"])
    if settings is not None:
        config = PeftConfig.from_peft_type(**settings)
        model = get_peft_model(base_model, config)
        state = {
            k.removeprefix("adapter."): v for k, v in tensors.items() if k.startswith("adapter.")
        }
        set_peft_model_state_dict(model, state)
    shapes = json.loads(metadata["layers"])
    found = {base_name(name): layer for name, layer in frozen_layers(model)}
    for name, shape in shapes.items():
        layer = found.get(name)
        if layer is None or list(by_output(layer).shape) != shape:
            raise ValueError(
                f"The chip in {path} holds a layer {name} of {shape[0]} x {shape[1]} weights, "
                "which the model has not: give the model that it was made from."
            )
        weight = _weight(name, shape, tensors, geometry)
        with torch.no_grad():
            by_output(layer).copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(tensors[f"{name}.bias"])
    return model.eval()


def _tiles(name: str, weight: Tensor, card: DeviceCard) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    converter = CardConductanceConverter(card.conductance)
    for rows in parts(weight.shape[1], card.tile.rows):
        scale = column_scale(weight[:, rows])
        target = weight[:, rows] / scale[:, None]
        for columns in parts(weight.shape[0], card.tile.columns):
            tile = f"{name}.tile.{rows.start}.{columns.start}"
            conductances, mapping = converter.convert_to_conductances(target[columns])
            names = ("g_plus", "g_minus") if len(conductances) == 2 else ("g",)
            tensors |= {f"{tile}.{n}": g for n, g in zip(names, conductances, strict=True)}
            span = card.conductance.g_max - card.conductance.g_min
            tensors[f"{tile}.scale"] = scale[columns] * span / mapping["scale"]
            if len(conductances) == 1:
                tensors[f"{tile}.offset"] = scale[columns] * mapping["offset"]
    return tensors


def _weight(
    name: str, shape: list[int], tensors: dict[str, Tensor], geometry: dict[str, Any]
) -> Tensor:
    weight = torch.empty(shape)
    g_min, g_max = geometry["g_min"], geometry["g_max"]
    for rows in parts(shape[1], geometry["rows"]):
        for columns in parts(shape[0], geometry["columns"]):
            tile = f"{name}.tile.{rows.start}.{columns.start}"
            if f"{tile}.g" in tensors:
                difference = tensors[f"{tile}.g"] - g_min
                offset = tensors[f"{tile}.offset"][:, None]
            else:
                difference = tensors[f"{tile}.g_plus"] - tensors[f"{tile}.g_minus"]
                offset = torch.zeros(1, 1)
            scale = tensors[f"{tile}.scale"][:, None]
            weight[columns, rows] = difference / (g_max - g_min) * scale + offset
    return weight


def _adapter(model: PeftModel) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {f"adapter.{name}": tensor.detach().cpu() for name, tensor in state.items()}
    adapter = model.active_adapter
    for path, layer in model.named_modules():
        if isinstance(layer, StochGraspLinear) and adapter in layer.group_of:
            for kind, sigma in zip(("scale", "shift"), layer.sigmas(adapter), strict=True):
                tensors[f"{base_name(path)}.tolerance.{kind}"] = sigma.detach().cpu()
    return tensors


def _plain(config: PeftConfig) -> dict[str, Any]:
    """The settings of an adapter as JSON holds them."""
    settings = config.to_dict()
    return {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"The chip {path} does not exist: give a file from --export.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"The file {path} is no chip that this version can read: give a file from "
                    "--export."
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"The chip {path} is damaged ({error}): export it again.") from error
