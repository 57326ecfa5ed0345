"""The adapters of a study: made, trained, saved, loaded and counted."""

import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.config import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from analog_grasp.adapters.baselines import ADAPTERS, adapt, kind_of
from analog_grasp.experiments.hashes import ADAPTER_FILES, model_hash
from analog_grasp.experiments.progress import Progress, silent
from analog_grasp.experiments.settings import Settings
from analog_grasp.tasks import Task, load_base_model
from analog_grasp.training import train


def load_adapter(path: Path, model: str | None, task: Task) -> PeftModel:
    """A saved adapter on its pre-trained model, ready to be measured.

    Args:
        path: The adapter's folder.
        model: Hub id or folder of the pre-trained model; the one that the adapter names where
            None.
        task: The task that gives the head its shape.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        ValueError: The adapter was made for another model or another task, or a file is damaged.
    """
    return load_with_hash(path, model, task)[0]


def load_with_hash(path: Path, model: str | None, task: Task) -> tuple[PeftModel, str]:
    """As `load_adapter`, with the hash of the pre-trained model: its weights and configuration."""
    named = _base_model_name(path)
    base = load_base_model(model or named, task)
    base_hash = model_hash(base)
    try:
        adapted = PeftModel.from_pretrained(base, path, use_safetensors=True)
    except SafetensorError as error:
        raise ValueError(
            f"The file {path / ADAPTER_FILES[1]} is damaged ({error}): train the adapter again."
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"The adapter in {path} does not fit the model {base.name_or_path} with the task "
            f"{task.name} ({reason}): name the model and the task that it was made for."
        ) from error
    _check_complete(adapted, path, str(base.name_or_path))
    return adapted.to(processor()).eval(), base_hash


def _check_complete(model: PeftModel, path: Path, base: str) -> None:
    """Refuse an adapter that holds other parameters than the model has places for.

    peft would leave those that are missing as they were made.
    """
    with safe_open(path / ADAPTER_FILES[1], "pt") as file:
        held = set(file.keys())
    places = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(held ^ places):
        kind = "lacks" if odd[0] in places else "holds a surplus of"
        raise ValueError(
            f"The adapter in {path} does not fit the model {base}: it {kind} {odd[0]}, and "
            f"{len(odd)} parameters in all differ from those that the model has places for; name "
            "the model that it was made for, or train it again."
        )


def _base_model_name(path: Path) -> str | None:
    """The pre-trained model that a saved adapter names, if it does."""
    if not all((path / file).is_file() for file in ADAPTER_FILES):
        raise FileNotFoundError(
            f"The folder {path} holds no adapter: it should hold {' and '.join(ADAPTER_FILES)}, "
            "which save_pretrained writes."
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
        if config.peft_type is None:
            raise KeyError("peft_type")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The file {path / ADAPTER_FILES[0]} is not one that peft wrote ({error}): train the "
            "adapter again."
        ) from error
    return config.base_model_name_or_path


def new_adapter(settings: Settings, task: Task, adapter: str) -> PeftModel:
    """An untrained adapter on its pre-trained model.

    Args:
        settings: Give the model and the adapter's own settings.
        task: Gives the head its shape.
        adapter: One of `analog_grasp.adapters.baselines.ADAPTERS`.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: An unknown adapter, or a setting does not fit the model.
    """
    base = load_base_model(settings.model, task, settings.seed)
    try:
        # Some methods begin from random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            adapted = adapt(
                base,
                adapter,
                task_type=task.task_type,
                groups=settings.groups,
                target_modules=settings.target_modules
                if isinstance(settings.target_modules, str)
                else list(settings.target_modules),
                noise_weight=settings.noise_weight,
                noise_target=settings.noise_target,
                sampling=settings.sampling,
            )
        return adapted.to(processor())
    except ValueError as error:
        # peft says so in several ways, none of which tells what would be right.
        if "module" not in str(error).lower():
            raise
        raise ValueError(
            f"No layer of the model {base.name_or_path} answers to the target_modules "
            f"{settings.target_modules!r}: give endings of the names of its linear layers, or "
            "all-linear."
        ) from error


def train_adapter(
    model: PeftModel, settings: Settings, task: Task, description: str, progress: Progress
) -> float:
    """Train an adapter in place, as the settings say; returns the seconds it took."""
    kind = kind_of(model.active_peft_config)
    learning_rate = settings.learning_rate or ADAPTERS[kind or "grasp"].learning_rate
    start = time.perf_counter()
    train(
        model,
        task,
        injection=settings.injection,
        epochs=settings.epochs,
        learning_rate=learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
        callbacks=[_Steps(description, progress)],
    )
    return time.perf_counter() - start


def save_adapter(model: PeftModel, path: Path) -> None:
    """Write an adapter's folder as PEFT does.

    The embeddings are never part of it; asking peft to find out would have it look at the Hub.
    """
    model.save_pretrained(str(path), save_embedding_layers=False)


def learned_parameters(model: PeftModel) -> tuple[int, int]:
    """How many numbers the active adapter holds, and how many the task head saved with it."""
    own = head = 0
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    heads = set(model.modules_to_save or ())
    for name, tensor in weights.items():
        if heads.intersection(name.split(".")):
            head += tensor.numel()
        else:
            own += tensor.numel()
    return own, head


class _Steps(TrainerCallback):
    """Tells a progress of the trainer's steps."""

    def __init__(self, description: str, progress: Progress) -> None:
        self._description, self._progress = description, progress
        self._advance = silent(description, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance = self._progress(self._description, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()


def processor() -> torch.device:
    """Where models are trained and measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
