"""Hashes of what a measured value comes from, so that a name cannot come to mean another thing."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from analog_grasp.devices.card import DeviceCard
from analog_grasp.tasks import Task

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What a card says of itself in words.
_PROSE = {"title", "source", "valid_range", "not_modelled"}


def adapter_hash(path: Path) -> str:
    """A hash of a saved adapter's weights, followed by one of its settings.

    peft writes sets as lists in any order, which does not count. A file that is not there counts
    as an empty one.

    Example:
        >>> len(adapter_hash(Path("nowhere")))
        64
    """
    config, weights = (path / name for name in ADAPTER_FILES)
    settings = json.loads(config.read_bytes()) if config.is_file() else {}
    in_order = {
        name: sorted(value, key=repr) if isinstance(value, list) else value
        for name, value in settings.items()
    }
    return _hash(weights.read_bytes() if weights.is_file() else b"") + _hash(_json(in_order))


def model_hash(model: PreTrainedModel) -> str:
    """A hash of a model's configuration and weights, whatever its folder is called."""
    other = ("_name_or_path", "transformers_version")
    config = {name: v for name, v in model.config.to_dict().items() if name not in other}
    parts = [_json(config)]
    for name, tensor in sorted(model.state_dict().items()):
        stored = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        parts += [_json([name, str(tensor.dtype), list(tensor.shape)]), stored]
    return _hash(*parts)


def card_hash(card: DeviceCard) -> str:
    """A hash of a card's numbers: an edited card is another card, an explained one is not.

    Example:
        >>> card = DeviceCard.load("pcm-hermes-2")
        >>> card_hash(card) == card_hash(card.model_copy(update={"title": "Another"}))
        True
        >>> card_hash(card) == card_hash(card.without("read"))
        False
    """
    return _hash(_json(card.model_dump(mode="json", exclude_none=True, exclude=_PROSE)))


def data_hash(task: Task, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a task measures on: its rows, their tokens, and its own settings."""
    encoded = task.encode("validation", tokenizer)
    own = {
        field.name: repr(getattr(task, field.name))
        for field in fields(task)
        if field.init and not isinstance(getattr(task, field.name), Dataset)
    }
    return _hash(_json(own), _json(_columns(task.validation)), _json(_columns(encoded)))


def _columns(rows: Dataset) -> Mapping[str, Any]:
    return {name: rows[name][:] for name in rows.column_names}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _hash(*parts: Any) -> str:
    """BLAKE2b of bytes and the like, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
