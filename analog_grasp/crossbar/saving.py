"""Models and deployments in files: weights that stay in theirs, and a saved chip."""

import copy
import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel, get_peft_model
from peft.config import PeftConfig
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analog_grasp.crossbar.chip_layer import ChipLayer, FusedTiles
from analog_grasp.crossbar.programmed_adapter import ProgrammedModulation
from analog_grasp.crossbar.tile_sets import DeploymentSettings
from analog_grasp.crossbar.write_tolerance import check_tolerances
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.schema import TabulatedDrift
from analog_grasp.utils.errors import last_line
from analog_grasp.utils.io import write_atomically

_FORMAT = "analog-grasp deployment 2"
_DESCRIPTION, _WEIGHTS = "deployment.json", "model.safetensors"
_TOLERANCES = "write_tolerances.safetensors"

# What a description with a part missing or of another type raises.
DAMAGE = (KeyError, TypeError, AttributeError, StrictDataclassError)

type _Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Chip(BaseModel):
    """The chip of a saved deployment; see `write_deployment`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int | None
    time_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    input_ranges: dict[str, _Size]
    output_ranges: dict[str, list[list[_Size]]]
    input_scales: dict[str, list[_Size]]
    write_tolerances: list[str]


def write_deployment(
    folder: Path,
    model: nn.Module,
    settings: DeploymentSettings,
    chip: Mapping[str, Any],
    tolerances: Mapping[str, Tensor],
) -> None:
    """Write the folder of a deployment: its model, settings, chip and write tolerances by layer.

    The chip is the instance, its time, its input and output ranges and its input scales.
    """
    others = {key: value for key, value in vars(settings).items() if key not in ("card", "dtype")}
    content = {
        "format": _FORMAT,
        "model": describe(model),
        "card": card_as_data(settings.card),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "arguments": others,
        "chip": {**chip, "write_tolerances": list(tolerances)},
    }
    # All that can fail comes before the first file. The names of layers may be a set.
    text = json.dumps(content, indent=1, default=list)
    state = digital_state(model)
    folder.mkdir(parents=True, exist_ok=True)
    # Without it, what an interrupted save leaves is no deployment.
    (folder / _DESCRIPTION).unlink(missing_ok=True)
    (folder / _TOLERANCES).unlink(missing_ok=True)
    save_tensors(state, folder / _WEIGHTS)
    if tolerances:
        save_tensors(tolerances, folder / _TOLERANCES)
    write_atomically(folder / _DESCRIPTION, text.encode())


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file in one step, so that no reader sees a partial file.

    Raises:
        OSError: The file cannot be written; an older one is kept.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    stored = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        save_file(stored, part, metadata)
        part.replace(path)
    except SafetensorError as error:
        raise OSError(f"The file {path} cannot be written: {last_line(error)}.") from None
    finally:
        part.unlink(missing_ok=True)


def read_deployment(
    folder: Path, model: nn.Module | None
) -> tuple[nn.Module, DeploymentSettings, dict[str, Any]]:
    """Return the digital model, settings and chip of a folder; see `Deployment.load`."""
    description, weights = folder / _DESCRIPTION, folder / _WEIGHTS
    if not (description.is_file() and weights.is_file()):
        raise FileNotFoundError(
            f"The folder {folder} holds no deployment: give one that Deployment.save wrote."
        )
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}")
        card = card_from_data(content["card"])
        dtype = getattr(torch, content["dtype"])
        settings = DeploymentSettings(card, dtype=dtype, **content["arguments"])
        structure = content["model"]
        chip = _Chip.model_validate(content["chip"]).model_dump()
    except (ValueError, *DAMAGE) as error:
        raise _damaged(description, error) from None
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise _damaged(weights, error) from None
    try:
        return restore(structure, state, model), settings, chip
    except DAMAGE as error:
        raise _damaged(description, error) from None


def check_layers(folder: Path, chip: Mapping[str, Any], layers: Mapping[str, ChipLayer]) -> None:
    """Raise ValueError where the saved chip of a folder has other layers than a deployment."""
    parts = ("input_scales", "input_ranges", "output_ranges")
    named = (name for part in parts for name in chip[part])
    if unknown := next((name for name in named if name not in layers), None):
        error = ValueError(f"it names the layer {unknown!r}, which is not on tiles")
        raise _damaged(folder / _DESCRIPTION, error)


def restore_tolerances(folder: Path, layers: Mapping[str, ChipLayer], names: set[str]) -> None:
    """Set the write tolerances of the named layers from a folder; program them afterwards.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged, or does not fit the layers.
    """
    if not names:
        return
    file = folder / _TOLERANCES
    if not file.is_file():
        raise FileNotFoundError(f"The file {file} is missing: save the deployment again.")
    shapes = {name: layer.frozen.shape for name, layer in layers.items()}
    try:
        tolerances = check_tolerances(load_file(file), shapes)
        if tolerances.keys() != names:
            raise ValueError(f"its layers are not those of {_DESCRIPTION}")
    except (SafetensorError, ValueError) as error:
        raise _damaged(file, error) from None
    for name, tolerance in tolerances.items():
        cast(Any, layers[name]).write_tolerance = tolerance


def _damaged(file: Path, error: Exception) -> ValueError:
    """Return the error for a damaged file of a deployment."""
    reason = " ".join(str(error).split())[:100]
    return ValueError(f"The file {file} is damaged ({reason}): save the deployment again.")


def describe(model: nn.Module) -> dict[str, Any]:
    """Return the structure of a model in values that JSON holds: class, config and adapters."""
    adapters: dict[str, dict[str, Any]] = {}
    inner, active = model, None
    if isinstance(model, PeftModel):
        inner, active = model.get_base_model(), model.active_adapter
        adapters = {name: _as_data(config) for name, config in model.peft_config.items()}
    description: dict[str, Any] = {
        "class": type(inner).__name__,
        "adapters": adapters,
        "active_adapter": active,
    }
    if isinstance(inner, transformers.PreTrainedModel):
        description["config_class"] = type(inner.config).__name__
        description["config"] = inner.config.to_dict()
    return description


def restore(
    description: Mapping[str, Any], state: Mapping[str, Tensor], model: nn.Module | None = None
) -> nn.Module:
    """Return the model of a structure (`describe`) and a state, in evaluation mode.

    `model` is one of the structure, for one that transformers does not make; it is copied.

    Raises:
        ValueError: The class is unknown, or the state does not fit the structure.
    """
    model = _made(description) if model is None else copy.deepcopy(model)
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in state.items():
        path, _, attribute = name.rpartition(".")
        # Folding an adapter with shifts adds biases to layers that have none.
        if attribute == "bias" and getattr(modules.get(path), "bias", 0) is None:
            modules[path].bias = nn.Parameter(torch.empty_like(tensor), requires_grad=False)
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
        elif isinstance(module, ChipLayer):
            on_tiles.append(path + ".")
            state = {k: t for k, t in state.items() if not k.startswith(path + ".")}
            # The tiles inside a layer with a forward of its own are its weight.
            path = path.removesuffix(".tiles")
            frozen = module.frozen
            state[f"{path}.weight"] = frozen.T if module.weight.transposed else frozen
            if module.bias is not None:
                state[f"{path}.bias"] = module.bias
        elif isinstance(module, ProgrammedModulation):
            state |= {f"{path}.{k}": t for k, t in module.digital_state().items()}
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def card_from_data(data: Mapping[str, Any]) -> DeviceCard:
    """Return the card of `card_as_data`.

    Raises:
        ValueError: The card is not valid.
        KeyError: A part of the data is missing.
    """
    card = DeviceCard.model_validate_json(json.dumps(data["stated"]))
    return card.model_copy(update=dict.fromkeys(data["absent"]))


def card_as_data(card: DeviceCard) -> dict[str, Any]:
    """Return a card in values that JSON holds: what it states, and the sections that it lacks."""
    stated = card.model_dump(mode="json", exclude_defaults=True)
    if isinstance(card.drift, TabulatedDrift):
        # The table states it.
        stated.pop("programming", None)
    # A section that no effect was switched off in is not stated.
    absent = [name for name in card.model_fields_set if getattr(card, name) is None]
    return {"stated": stated, "absent": absent}


def _as_data(config: PeftConfig) -> dict[str, Any]:
    """Return the config of an adapter in values that JSON holds."""
    return {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
    }


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
        for name, data in description["adapters"].items():
            config = PeftConfig.from_peft_type(**data)
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, adapter_name=name)
        if isinstance(model, PeftModel):
            model.set_adapter(description["active_adapter"])
    return cast(nn.Module, model)


def stream_weights(model: nn.Module, weights: str | Path) -> None:
    """Map the weights of a model on the meta device from its files, without reading them.

    A tensor is read when it is used, and the operating system may drop it from memory at any time.
    A tensor whose type in the model differs from that in the file is converted, and so read. So are
    tensors that transformers assembles as it loads a checkpoint, such as the experts of Mixtral and
    Qwen2-MoE, which have one tensor each in the file: they are in memory once.

    Args:
        model: A model with the names of the files, or a transformers model; its tensors on the meta
            device are replaced where the files have them. An adapter is put on it afterwards.
        weights: A safetensors file, or a folder that save_pretrained wrote, in shards or not.

    Raises:
        FileNotFoundError: There is no such file, or no model*.safetensors in the folder.
        ValueError: A file is damaged, its tensors cannot be assembled, a tensor has another shape
            than the model's, or no tensor of the model is on the meta device.

    Example:
        >>> import tempfile, torch
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                     intermediate_size=16, vocab_size=10)
        >>> with torch.device("meta"):
        ...     empty = BertModel(config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     stream_weights(empty, folder)
        >>> empty.pooler.dense.weight.device.type
        'cpu'
    """
    if not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        raise ValueError(
            f"The {type(model).__name__} has all its values and would use none of {weights}: make "
            "the model under accelerate.init_empty_weights, or give no weights."
        )
    stored = {key: tensor for file in _files(Path(weights)) for key, tensor in _tensors(file)}
    if isinstance(model, transformers.PreTrainedModel):
        # accelerate.init_empty_weights unties what transformers ties.
        model.tie_weights()
        stored = _converted(model, stored, weights)
    empty = {name: t for name, t in model.state_dict(keep_vars=True).items() if t.is_meta}
    # Tied tensors, such as an output embedding, are in the file once.
    places: dict[int, list[str]] = {}
    for name, tensor in empty.items():
        places.setdefault(id(tensor), []).append(name)
    found: dict[str, Tensor] = {}
    for name in stored.keys() & empty.keys():
        replaced = empty[name]
        if stored[name].shape != replaced.shape:
            raise ValueError(
                f"The tensor {name} in {weights} has the shape {tuple(stored[name].shape)}, but "
                f"the model's is {tuple(replaced.shape)}: give the weights of this model."
            )
        tensor = stored[name].to(replaced.dtype)
        if isinstance(replaced, nn.Parameter):
            tensor = nn.Parameter(tensor, replaced.requires_grad)
        found |= dict.fromkeys(places[id(replaced)], tensor)
    model.load_state_dict(found, strict=False, assign=True)


def _converted(
    model: transformers.PreTrainedModel, stored: Mapping[str, Tensor], weights: str | Path
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names of a model, as from_pretrained does.

    Tensors that are renamed at most share the memory of the stored ones.
    """
    try:
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(stored),
            dtype=model.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except RuntimeError:
        raise ValueError(
            f"The tensors in {weights} cannot be assembled to those of a {type(model).__name__}: "
            "give the weights of this model."
        ) from None
    state: dict[str, Tensor] = loaded.state_dict()
    # transformers fills what is missing or has another shape with random values.
    state = {name: t for name, t in state.items() if name not in info["missing_keys"]}
    others = {name: torch.empty(shape, device="meta") for name, shape, _ in info["mismatched_keys"]}
    return state | others


def check_whole(model: nn.Module) -> None:
    """Raise ValueError if a tensor of a model is on the meta device."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta and hasattr(model.get_submodule(name.rpartition(".")[0]), "_hf_hook"):
            raise ValueError(
                f"The tensor {name} of the model is offloaded by accelerate, which tiles cannot "
                "follow: load the model with a device_map of devices, without cpu or disk offload."
            )
        if tensor.is_meta:
            raise ValueError(
                f"The tensor {name} of the model is on the meta device, where it has no values: "
                "give weights, the safetensors file or folder that holds it; make the model under "
                "accelerate.init_empty_weights, which keeps buffers, and add an adapter after "
                "stream_weights."
            )


def _files(weights: Path) -> list[Path]:
    files = sorted(weights.glob("model*.safetensors")) if weights.is_dir() else [weights]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"weights is {weights}, which has no weights: give a safetensors file, or a folder "
            "with model.safetensors or its shards."
        )
    return files


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                yield key, opened.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(
            f"The weights in {file} are damaged ({error}): download the file again."
        ) from error
