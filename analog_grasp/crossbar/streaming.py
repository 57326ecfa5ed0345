"""Weights that stay in their file: a model on the meta device, filled from safetensors."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel


def stream_weights(model: nn.Module, weights: str | Path) -> None:
    """Map the weights of a model on the meta device from its files, without reading them.

    A tensor is read when it is used, and the operating system may drop it from memory at any time.
    A tensor whose type in the model differs from that in the file is converted, and so read.

    Args:
        model: A transformers model; its tensors on the meta device are replaced where the files
            have them. An adapter is put on it afterwards.
        weights: A safetensors file, or a folder that save_pretrained wrote, in shards or not.

    Raises:
        FileNotFoundError: There is no such file, or no model*.safetensors in the folder.
        ValueError: A file is damaged, or a tensor has another shape than the model's.

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
    if isinstance(model, PreTrainedModel):
        # accelerate.init_empty_weights unties what transformers ties.
        model.tie_weights()
    empty = {name: t for name, t in model.state_dict(keep_vars=True).items() if t.is_meta}
    # Tied tensors, such as an output embedding, are in the file once.
    places: dict[int, list[str]] = {}
    for name, tensor in empty.items():
        places.setdefault(id(tensor), []).append(name)
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found: dict[str, Tensor] = {}
    for file in _files(Path(weights)):
        for key, stored in _tensors(file):
            # A file of the body alone, or of a model with a head that this model does not have.
            for name in {key, prefix + key, key.removeprefix(prefix)} & empty.keys():
                tensor = _fitted(stored, empty[name], key, file)
                found |= dict.fromkeys(places[id(empty[name])], tensor)
    model.load_state_dict(found, strict=False, assign=True)


def check_whole(model: nn.Module) -> None:
    """Raise an error if a tensor of a model is on the meta device.

    Raises:
        ValueError: A tensor is on the meta device.
    """
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


def _fitted(stored: Tensor, empty: Tensor, key: str, file: Path) -> Tensor:
    """Return a tensor of the file as it replaces an empty one."""
    if stored.shape != empty.shape:
        raise ValueError(
            f"The tensor {key} in {file} has the shape {tuple(stored.shape)}, but the model's is "
            f"{tuple(empty.shape)}: give the weights of this model."
        )
    tensor = stored.to(empty.dtype)
    return nn.Parameter(tensor, empty.requires_grad) if isinstance(empty, nn.Parameter) else tensor
