"""Pre-trained models, with a new head for a task."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from analog_grasp.tasks.base import Task, TaskType
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.sources import last_line, model_source, tokenizer_for
from analog_grasp.utils.types import DEFAULT_MODEL

# The class, what its models are used for, and some that can be.
_KINDS: dict[TaskType, tuple[Any, str, str]] = {
    "SEQ_CLS": (
        AutoModelForSequenceClassification, "classify sequences", "a BERT, RoBERTa or GPT-2",
    ),
    "CAUSAL_LM": (AutoModelForCausalLM, "generate text", "a GPT-2 or Llama"),
}  # fmt: skip


def load_base_model(
    name_or_path: str | None, task: Task, seed: int = 0, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A pre-trained model of the kind that the task asks for.

    For a task on sentences that is a model for sequence classification whose head fits the task;
    the head is new, drawn from `seed`, and the global random state is left alone. A new head that
    predicts numbers begins at their mean over the training rows, where it has a bias. For a
    generation task the model is a causal language model as it was saved. Weights are read from
    safetensors only, in float32; no pickle is ever loaded.

    Args:
        name_or_path: a folder, a Hub id, or None for the default model (`DEFAULT_MODEL`, see
            `model_source`), which classifies only.
        task: gives the kind of the model; for sentences the number and the names of the labels,
            and whether they are numbers.
        seed: of the new head.
        trust_remote_code: whether Python code that comes with the model may run, which can do
            whatever its writer likes.

    Raises:
        FileNotFoundError: there is no such model, or the folder lacks config.json or
            model.safetensors.
        ValueError: the model is not of the kind that the task asks for, its weights do not fill
            it, a file of it is damaged, or it comes with code that is not trusted.

    Example:
        >>> from analog_grasp.tasks import load_task
        >>> model = load_base_model(None, load_task("reviews"))
        >>> model.config.num_labels, model.config.problem_type
        (2, 'single_label_classification')
    """
    if name_or_path is None and task.task_type == "CAUSAL_LM":
        raise ValueError(
            f"The task '{task.name}' needs a model that writes text, and the default model, "
            f"{DEFAULT_MODEL}, does not; name one, such as gpt2-medium (--model)."
        )
    name = name_or_path or DEFAULT_MODEL
    source = model_source(name)
    config = _load_config(name, source, trust_remote_code)
    if isinstance(task, SentenceTask):
        _fit_head(config, task)
    model = _load_weights(name, source, config, task, seed, trust_remote_code)
    # The name, and not the folder of an installed package: it is what a saved adapter refers to,
    # and it should lead to the model on every machine.
    model.name_or_path = model.config._name_or_path = name
    if model.config.pad_token_id is None:
        # GPT-2 and its like need to know where each padded sentence ends.
        model.config.pad_token_id = tokenizer_for(model).pad_token_id
    return model


def _fit_head(config: PretrainedConfig, task: SentenceTask) -> None:
    config.num_labels = task.num_labels
    config.problem_type = "regression" if task.regression else "single_label_classification"
    if not task.regression:
        config.id2label = dict(enumerate(task.label_names))
        config.label2id = {label: i for i, label in config.id2label.items()}


def _load_config(name: str, source: str, trust_remote_code: bool) -> PretrainedConfig:
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise FileNotFoundError(
            f"The model folder {source} holds no config.json; it should be a folder that "
            "save_pretrained of transformers wrote."
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise FileNotFoundError(
            f"The model '{name}' is neither a folder nor a model that could be had from the Hub; "
            f"give a folder with config.json and model.safetensors, or a Hub id like "
            f"{DEFAULT_MODEL}."
        ) from error
    except Exception as error:
        _refuse_own_code(name, error)
        reason = "" if isinstance(error, ValueError) else f" ({last_line(error)})"
        raise ValueError(
            f"The config.json of the model '{name}' names no model that transformers knows"
            f"{reason}; it should have a known model_type."
        ) from error
    # Attention of a name like a Hub id is compiled code from there.
    if "/" in str(config._attn_implementation) and not trust_remote_code:
        raise _own_code(name)
    return config


def _load_weights(
    name: str,
    source: str,
    config: PretrainedConfig,
    task: Task,
    seed: int,
    trust_remote_code: bool,
) -> PreTrainedModel:
    kind, use, instead = _KINDS[task.task_type]
    try:
        # Only the CPU's generator: that is where the head is drawn.
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model, info = kind.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                # A head made for another number of labels is replaced by a new one.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except OSError as error:
        raise FileNotFoundError(
            f"The model '{name}' has no weights in model.safetensors, the only format that is "
            "read; save it again with save_pretrained."
        ) from error
    except Exception as error:
        _refuse_own_code(name, error)
        if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"The model '{name}' is a {config.model_type}, which transformers cannot use to "
                f"{use}; {instead} could."
            ) from error
        raise ValueError(
            f"The model '{name}' cannot be made of its files ({last_line(error)}); they should be "
            "as save_pretrained of transformers wrote them."
        ) from error
    new = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    _check_filled(name, model, new, task)
    if isinstance(task, SentenceTask) and task.regression:
        _begin_at_the_mean(model, new, task)
    return model


def _begin_at_the_mean(model: PreTrainedModel, new: list[str], task: SentenceTask) -> None:
    """Set the bias of a regression's new head to the mean of the training labels.

    From 0 the first steps of a training move every feature the way that raises the mean, until
    the features say the same of every sentence: on STS-B, LoRA then learned nothing.
    """
    mean = float(task.labels("train").mean())
    for key in new:
        if key.endswith("bias") and (bias := model.get_parameter(key)).shape == (1,):
            torch.nn.init.constant_(bias, mean)


def _refuse_own_code(name: str, error: Exception) -> None:
    """Say so where an error is that a model's own code was not allowed to run."""
    if "trust_remote_code=True" in str(error):
        raise _own_code(name) from error


def _own_code(name: str) -> ValueError:
    return ValueError(
        f"The model '{name}' comes with code of its own, which is not run unless you say that you "
        "trust it: read it, and give --trust-remote-code (trust_remote_code=True)."
    )


def _check_filled(name: str, model: PreTrainedModel, new: list[str], task: Task) -> None:
    """Refuse a model whose weights, apart from a head that is to be new, were not in the file.

    transformers would only warn, and that warning is silenced here for the sake of the head's.
    """
    if task.task_type == "SEQ_CLS":
        body = f"{model.base_model_prefix}."
        new = [key for key in new if key.startswith(body) and ".pooler." not in key]
    if new:
        raise ValueError(
            f"The weights of the model '{name}' lack {len(new)} of those that it needs to "
            f"{_KINDS[task.task_type][1]}, such as {new[0]}; its weights and its config.json "
            "should be of one model of this kind."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its warning that the head is new, which is meant."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
