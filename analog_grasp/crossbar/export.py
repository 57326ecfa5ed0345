"""The chip as a file: target conductances, column scales and write tolerances, for real crossbars.

A safetensors file. For every tile, named ``LAYER.tile.R.C`` after its first input R and its first
output C:

- ``...g_plus`` and ``...g_minus``, ``(D_out, width)`` in µS: the targets of the two devices of
  each weight; or ``...g`` where the card has one device per weight;
- ``...scale``, ``(D_out,)``: the weight of a column for which its conductance difference is the
  whole range; ``...offset``, the weight at g_min, where the card has one device per weight.

For a StochGRASP layer, ``LAYER.tolerance.scale`` and ``LAYER.tolerance.shift``, ``(K,)`` for K
groups: the standard deviation to which each stored value is to be written and verified. With write
tolerances of the frozen weights, ``LAYER.tolerance.weight``, broadcast to ``(D_out, D)``: half the
width of the accepted range in units of the conductance range, infinite without verification.

Under ``digital.``, all that is not on tiles, by the names of the model's state dict: embeddings,
norms, biases, the adapter, the task head. The metadata holds the card, as
`analog_grasp.crossbar.saving.card_from_data` reads it, and the structure of the model, so that the
file suffices to make the model again; see `read_chip`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import LayerPattern, base_name, by_output
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.crossbar.chip_layer import parts
from analog_grasp.crossbar.mapping import column_scale
from analog_grasp.crossbar.saving import (
    DAMAGE,
    card_as_data,
    describe,
    digital_state,
    restore,
    save_tensors,
)
from analog_grasp.crossbar.tile_sets import selected_for_tiles
from analog_grasp.crossbar.write_tolerance import check_tolerances
from analog_grasp.devices.card import Device, DeviceCard
from analog_grasp.devices.programming import CardConductanceConverter
from analog_grasp.devices.schema import LayerMapping

FORMAT = "analog-grasp chip 3"
_DIGITAL = "digital."


def export_chip(
    model: nn.Module,
    device: Device,
    path: str | Path,
    layers: LayerPattern = "all-linear",
    write_tolerances: Mapping[str, float | Tensor] | None = None,
) -> None:
    """Write the target conductances of every tile, and what is needed beside them.

    Args:
        model: The digital model, bare or with one peft adapter; a folded adapter is merged before.
        device: The device: the name of a card, the path of a TOML file, or a `DeviceCard`.
        path: The file.
        layers: The frozen layers that go onto tiles; see `frozen_layers`.
        write_tolerances: Tolerances of the frozen weights by layer, a number or tensor each; see
            `analog_grasp.crossbar.write_tolerance`.

    Raises:
        ValueError: The pattern matches no layer, the card states a rescaling or clipping, or as
            `check_tolerances`.
        OSError: The file cannot be written.

    Example:
        ``export_chip(model, "rram-wan2022", "chip.safetensors")``
    """
    card = DeviceCard.load(device)
    check_exportable(card)
    digital = digital_state(model)
    tensors: dict[str, Tensor] = {}
    on_tiles: dict[str, dict[str, Any]] = {}
    shapes: dict[str, torch.Size] = {}
    for key, name, matrices, transposed in _mapped(model, layers):
        stored = digital.pop(key)
        on_tiles[key] = {
            "name": name,
            "shape": list(stored.shape),
            "dtype": str(stored.dtype).removeprefix("torch."),
            "parts": list(matrices),
            "transposed": transposed,
        }
        for part, weight in matrices.items():
            shapes[part] = weight.shape
            tensors |= _tiles(part, weight.float().cpu(), card)
    tensors |= {_DIGITAL + key: tensor for key, tensor in digital.items()}
    tensors |= _tolerances(model)
    for name, tolerance in check_tolerances(write_tolerances or {}, shapes).items():
        tensors[f"{name}.tolerance.weight"] = tolerance.detach().cpu()
    geometry = {
        "g_min": card.conductance.g_min,
        "g_max": card.conductance.g_max,
        "rows": card.tile.rows,
        "columns": card.tile.columns,
    }
    metadata = {
        "format": FORMAT,
        "card": json.dumps(card_as_data(card)),
        "geometry": json.dumps(geometry),
        "tiles": json.dumps(on_tiles),
        "model": json.dumps(describe(model)),
    }
    save_tensors(tensors, Path(path), metadata)


def check_exportable(card: DeviceCard) -> None:
    """Raise ValueError if a card states a mapping of weights, which an exported chip lacks."""
    stated = card.mapping or LayerMapping()
    for name in ("rescale", "clip"):
        if getattr(stated, name) is not None:
            raise ValueError(
                f"The card {card.name} states {name} (section mapping), but the weights of an "
                "exported chip are mapped as they are: use card.without('mapping') or --no-mapping."
            )


def read_chip(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the digital model whose targets a chip's file holds.

    Args:
        path: A file from `export_chip`.
        model: A model of the same structure, for a model that is not one of transformers.

    Returns:
        The model, with its adapter, in evaluation mode.

    Raises:
        ValueError: The file is not a chip, is damaged, or was made from another model.
        FileNotFoundError: There is no such file.

    Example:
        ``read_chip("chip.safetensors")``
    """
    metadata, tensors = _read(Path(path))
    try:
        return _restored(metadata, tensors, model)
    except (json.JSONDecodeError, *DAMAGE) as error:
        raise _damaged(path, error) from None


def _restored(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor], model: nn.Module | None
) -> nn.Module:
    """Return the model of the contents of a chip's file."""
    geometry = json.loads(metadata["geometry"])
    state = {
        name.removeprefix(_DIGITAL): tensor
        for name, tensor in tensors.items()
        if name.startswith(_DIGITAL)
    }
    for key, about in json.loads(metadata["tiles"]).items():
        shape, count = about["shape"], len(about["parts"])
        # Those of one part, (D_out, D), as the tiles were made from it.
        stored = shape[1:] if len(shape) == 3 else [shape[0] // count, shape[1]]
        stored = stored[::-1] if about["transposed"] else stored
        matrices = [_weight(part, stored, tensors, geometry) for part in about["parts"]]
        matrices = [matrix.T if about["transposed"] else matrix for matrix in matrices]
        whole = torch.cat(matrices) if len(shape) == 2 else torch.stack(matrices)
        state[key] = whole.to(getattr(torch, about["dtype"]))
    return restore(json.loads(metadata["model"]), state, model)


def _mapped(
    model: nn.Module, pattern: LayerPattern
) -> Iterator[tuple[str, str, dict[str, Tensor], bool]]:
    """Yield each weight's key in the state dict, its name, its matrices, and if transposed."""
    linear, fused = selected_for_tiles(model, pattern)
    for path, layer in linear:
        name = base_name(path)
        yield f"{path}.weight", name, {name: by_output(layer)}, isinstance(layer, Conv1D)
    for each in fused:
        key = f"{each.path}.{each.attribute}".removeprefix(".")
        matrices = {part: by_output(layer) for part, layer in each.layers().items()}
        yield key, each.name, matrices, each.transposed


def _tiles(name: str, weight: Tensor, card: DeviceCard) -> dict[str, Tensor]:
    """Return the conductances and scales of the tiles of a weight ``(D_out, D)``, by name."""
    tensors: dict[str, Tensor] = {}
    converter = CardConductanceConverter(card.conductance)
    span = card.conductance.g_max - card.conductance.g_min
    for rows in parts(weight.shape[1], card.tile.rows):
        scale = column_scale(weight[:, rows])
        target = weight[:, rows] / scale[:, None]
        for columns in parts(weight.shape[0], card.tile.columns):
            tile = f"{name}.tile.{rows.start}.{columns.start}"
            conductances, mapping = converter.convert_to_conductances(target[columns])
            names = ("g_plus", "g_minus") if len(conductances) == 2 else ("g",)
            tensors |= {f"{tile}.{n}": g for n, g in zip(names, conductances, strict=True)}
            tensors[f"{tile}.scale"] = scale[columns] * span / mapping["scale"]
            if len(conductances) == 1:
                tensors[f"{tile}.offset"] = scale[columns] * mapping["offset"]
    return tensors


def _weight(
    name: str, shape: list[int], tensors: Mapping[str, Tensor], geometry: dict[str, Any]
) -> Tensor:
    """Return the weight ``(D_out, D)`` of a layer from the conductances of its tiles."""
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


def _tolerances(model: nn.Module) -> dict[str, Tensor]:
    """Return the learned standard deviations of the StochGRASP layers of a model, by name."""
    tensors: dict[str, Tensor] = {}
    if not isinstance(model, PeftModel):
        return tensors
    adapter = model.active_adapter
    for path, layer in model.named_modules():
        if isinstance(layer, StochGraspLinear) and adapter in layer.group_of:
            for kind, sigma in zip(("scale", "shift"), layer.sigmas(adapter), strict=True):
                tensors[f"{base_name(path)}.tolerance.{kind}"] = sigma.detach().cpu()
    return tensors


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"The chip {path} does not exist: give a file from --export.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(
                    f"The file {path} is not a chip that this version reads: give a file from "
                    "--export."
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"The chip {path} is damaged ({reason}): export it again.")
