"""Deployments and digital models as files: the structure and the state of a model, and its chip."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.config import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analog_grasp.crossbar.chip_layer import TileSettings, chip_layer
from analog_grasp.crossbar.programmed_adapter import ProgrammedModulation
from analog_grasp.crossbar.tile_weight import FusedTiles, TileWeight
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.schema import TabulatedDrift

_FORMAT = "analog-grasp deployment 1"
_CHIP = ("seed", "time_s", "input_ranges", "output_ranges", "input_scales")
_DESCRIPTION, _WEIGHTS = "deployment.json", "model.safetensors"


def card_as_data(card: DeviceCard) -> dict[str, Any]:
    """Return a card in values that JSON holds; `card_from_data` gives the same card again."""
    stated = card.model_dump(mode="json", exclude_defaults=True)
    if isinstance(card.drift, TabulatedDrift):
        # The table states it.
        stated.pop("programming", None)
    absent = [name for name in type(card).model_fields if getattr(card, name) is None]
    return {"stated": stated, "absent": absent}


def card_from_data(data: Mapping[str, Any]) -> DeviceCard:
    """Return the card of `card_as_data`.

    Raises:
        ValueError: The data are not those of a card.

    Example:
        >>> card = DeviceCard.load("rram-wan2022").without("programming", "read")
        >>> card_from_data(card_as_data(card)) == card
        True
    """
    card = DeviceCard.model_validate_json(json.dumps(data["stated"]))
    return card.model_copy(update=dict.fromkeys(data["absent"]))


def write_deployment(
    folder: Path,
    model: nn.Module,
    settings: TileSettings,
    arguments: Mapping[str, Any],
    chip: Mapping[str, Any],
) -> None:
    """Write the folder of a deployment.

    Args:
        folder: The folder, made if it is missing.
        model: The deployed model.
        settings: The device, and the type in which weights are stored.
        arguments: Further arguments of `deploy`.
        chip: The chip instance, its time, its input and output ranges and its input scales.

    Raises:
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.contiguous().clone() for name, t in digital_state(model).items()}
    save_file(state, folder / _WEIGHTS)
    content = {
        "format": _FORMAT,
        "model": describe(model),
        "card": card_as_data(settings.card),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "arguments": arguments,
        "chip": chip,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_deployment(
    folder: Path, model: nn.Module | None
) -> tuple[nn.Module, DeviceCard, torch.dtype, dict[str, Any], dict[str, Any]]:
    """Return what `write_deployment` wrote.

    Args:
        folder: The folder.
        model: A model of the same structure, for a model that is not one of transformers.

    Returns:
        The digital model, the card, the type in which weights are stored, further arguments of
        `deploy`, and the state of the chip.

    Raises:
        FileNotFoundError: The folder holds no deployment.
        ValueError: A file is damaged, or the structure is another or unknown.
    """
    description, weights = folder / _DESCRIPTION, folder / _WEIGHTS
    if not (description.is_file() and weights.is_file()):
        raise FileNotFoundError(
            f"The folder {folder} holds no deployment: give one that Deployment.save wrote."
        )
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        card, dtype = card_from_data(content["card"]), getattr(torch, content["dtype"])
        structure, arguments, chip = (content[key] for key in ("model", "arguments", "chip"))
        chip = {key: chip[key] for key in _CHIP}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"The file {description} is damaged ({reason}): save the deployment again."
        ) from None
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(
            f"The file {weights} is damaged ({error}): save the deployment again."
        ) from None
    return restore(structure, state, model), card, dtype, arguments, chip


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the structure of a model, in values that JSON holds.

    Returns:
        ``class`` and ``config`` of a transformers model, else ``class`` alone; ``adapter``, the
        configuration of its active PEFT adapter, or None.
    """
    adapter = None
    inner = model
    if isinstance(model, PeftModel):
        adapter = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in model.active_peft_config.to_dict().items()
        }
        inner = model.get_base_model()
    description: dict[str, Any] = {"class": type(inner).__name__, "adapter": adapter}
    if isinstance(inner, transformers.PreTrainedModel):
        description["config_class"] = type(inner.config).__name__
        description["config"] = inner.config.to_dict()
    return description


def restore(
    description: Mapping[str, Any], state: Mapping[str, Tensor], model: nn.Module | None = None
) -> nn.Module:
    """Return the model of a structure and a state, in evaluation mode.

    Args:
        description: From `describe`.
        state: From `digital_state`.
        model: A model of the structure, for one that transformers does not make; it is copied.

    Raises:
        ValueError: The class is unknown, or the state does not fit the structure.
    """
    model = _made(description) if model is None else copy.deepcopy(model)
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        # Folding an adapter with shifts adds biases to layers that have none.
        owner = _submodule(model, path)
        if attribute == "bias" and owner is not None and getattr(owner, "bias", 0) is None:
            owner.bias = nn.Parameter(torch.empty_like(tensor), requires_grad=False)
    try:
        model.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The saved state does not fit a {description['class']} ({reason}): give the model "
            "that was saved."
        ) from None
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(inner, transformers.PreTrainedModel):
        inner.tie_weights()
    return model.eval()


def digital_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that the digital model of a deployed model has.

    Layers on tiles appear with their frozen weights, programmed adapters with their targets. A
    model that is not deployed gives its own state dict.

    Example:
        >>> from analog_grasp import deploy
        >>> linear = nn.Sequential(nn.Linear(3, 2))
        >>> state = digital_state(deploy(linear, "pcm-hermes-2").program(seed=0).model)
        >>> torch.equal(state["0.weight"], linear[0].weight)
        True
    """
    state: dict[str, Tensor] = dict(model.state_dict())
    on_tiles: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(prefix) for prefix in on_tiles):
            continue
        if isinstance(module, FusedTiles):
            on_tiles.append(path + ".")
            state[path] = module.frozen
        elif hasattr(module, "weight_error"):
            layer = chip_layer(module)
            on_tiles.append(path + ".")
            state = {k: t for k, t in state.items() if not k.startswith(path + ".")}
            # The tiles inside a layer with a forward of its own are its weight.
            path = path.removesuffix(".tiles")
            transposed = cast(TileWeight, module.weight).transposed
            state[f"{path}.weight"] = layer.frozen.T if transposed else layer.frozen
            if layer.bias is not None:
                state[f"{path}.bias"] = layer.bias
        elif isinstance(module, ProgrammedModulation):
            state |= {f"{path}.{k}": t for k, t in module.digital_state().items()}
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def _made(description: Mapping[str, Any]) -> nn.Module:
    """Return a model of a structure, with random values."""
    made = getattr(transformers, description["class"], None)
    config_class = getattr(transformers, description.get("config_class", ""), None)
    if made is None or config_class is None:
        raise ValueError(
            f"The model is a {description['class']}, which transformers does not provide: give a "
            "digital model of the same structure (argument model)."
        )
    with torch.random.fork_rng():
        model: Any = made(config_class.from_dict(dict(description["config"])))
        if description["adapter"] is not None:
            config = PeftConfig.from_peft_type(**description["adapter"])
            model = get_peft_model(model, config)
    return cast(nn.Module, model)


def _submodule(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
