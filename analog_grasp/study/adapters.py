"""The adapters of a study: made, trained, saved, loaded and counted."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.config import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from analog_grasp.adapters.registry import ADAPTERS, adapt, kind_of
from analog_grasp.devices.card import DeviceAtTime
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.progress import Progress, silent
from analog_grasp.study.provenance import ADAPTER_FILES, model_hash
from analog_grasp.tasks import SentenceTask, Task, load_base_model
from analog_grasp.tasks.sources import last_line
from analog_grasp.training import train
from analog_grasp.training.converter_loop import card_with_converters

# Of an adapter's configuration, in bytes.
_LARGEST_CONFIG = 1 << 20
# Rows that tell whether an adapter learned anything at all.
_GLANCE = 128


def load_adapter(
    path: Path, model: str | None, task: Task, trust_remote_code: bool = False
) -> PeftModel:
    """A saved adapter on its pre-trained model, ready to be measured.

    Args:
        path: The adapter's folder.
        model: Hub id or folder of the pre-trained model; the one that the adapter names where
            None.
        task: The task that gives the head its shape.
        trust_remote_code: Whether Python code that comes with the model may run.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        ValueError: The adapter was made for another model or another task, or a file is damaged.
    """
    return load_with_hash(path, model, task, trust_remote_code)[0]


def load_with_hash(
    path: Path, model: str | None, task: Task, trust_remote_code: bool = False
) -> tuple[PeftModel, str]:
    """As `load_adapter`, with the hash of the pre-trained model: its weights and configuration."""
    named = _base_model_name(path)
    base = load_base_model(model or named, task, trust_remote_code=trust_remote_code)
    base_hash = model_hash(base)
    try:
        # Without memory for an adapter of the size that its configuration states: the file tells.
        adapted = PeftModel.from_pretrained(base, path, low_cpu_mem_usage=True)
    except SafetensorError as error:
        raise ValueError(
            f"The file {path / ADAPTER_FILES[1]} is damaged ({error}): train the adapter again."
        ) from error
    except Exception as error:
        # Whatever a configuration can lead peft into: it checks few of its values.
        reason = last_line(error)
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
    file = path / ADAPTER_FILES[0]
    if file.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(
            f"The file {file} is larger than {_LARGEST_CONFIG >> 20} MiB: one that peft wrote is "
            "a few kilobytes."
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
        base = config.base_model_name_or_path
        if config.peft_type is None or not isinstance(base, str | None):
            raise KeyError("peft_type" if config.peft_type is None else "base_model_name_or_path")
    except Exception as error:
        raise ValueError(
            f"The file {file} is not one that peft wrote ({last_line(error)}): train the adapter "
            "again."
        ) from error
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type == "XLORA":
        # Their configurations name further files to be read, in other formats too.
        raise ValueError(
            f"The adapter in {path} is of the kind {str(config.peft_type)[:40]}, which is not "
            "read: it should be one that adapts layers, such as LoRA."
        )
    return base


def new_adapter(settings: StudyConfig, task: Task, adapter: str) -> PeftModel:
    """An untrained adapter on its pre-trained model.

    Args:
        settings: Give the model and the adapter's own settings.
        task: Gives the head its shape.
        adapter: One of `analog_grasp.adapters.registry.ADAPTERS`.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: An unknown adapter, a setting does not fit the model, or one that training
            takes names no device or time.
    """
    _check_hardware(settings)
    base = load_base_model(
        settings.model.name,
        task,
        settings.run.seed,
        trust_remote_code=settings.model.trust_remote_code,
    )
    try:
        # Some methods begin from random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.run.seed)
            adapted = adapt(
                base,
                adapter,
                task_type=task.task_type,
                groups=settings.training.groups,
                target_modules=settings.training.target_modules
                if isinstance(settings.training.target_modules, str)
                else list(settings.training.target_modules),
                noise_weight=settings.training.noise_weight,
                noise_target=settings.training.noise_target,
                sampling=settings.training.sampling,
            )
        return adapted.to(processor())
    except ValueError as error:
        # peft says so in several ways, none of which tells what would be right.
        if "module" not in str(error).lower():
            raise
        raise ValueError(
            f"No layer of the model {base.name_or_path} answers to the target_modules "
            f"{settings.training.target_modules!r}: give endings of the names of its linear layers, "
            "or all-linear."
        ) from error


def _check_hardware(settings: StudyConfig) -> None:
    """Refuse what names no device, before anything is loaded."""
    for name in ("injection", "evaluate_on"):
        if isinstance(where := settings.value(name), str):
            DeviceAtTime.parse(where)
    if settings.training.converters is not None:
        card_with_converters(settings.training.converters)


def train_adapter(
    model: PeftModel,
    settings: StudyConfig,
    task: Task,
    description: str,
    progress: Progress,
    checkpoints: Path | None = None,
    save_steps: int | None = None,
) -> float:
    """Train an adapter in place, as the settings say.

    Warns where it answers the same to everything afterwards.

    Args:
        model: From `new_adapter`.
        settings: How it is trained.
        task: What it learns.
        description: Of the work, for the progress.
        progress: Told of each step.
        checkpoints: A folder for them. Where it holds one, the training goes on from there.
        save_steps: Steps between two checkpoints, and between two evaluations on a chip; those of
            an epoch where None.

    Returns:
        The seconds it took.

    Raises:
        ValueError: As `analog_grasp.train`.
    """
    kind = kind_of(model.active_peft_config)
    learning_rate = settings.training.learning_rate or ADAPTERS[kind or "grasp"].learning_rate
    saving: dict[str, Any] = {} if save_steps is None else {"save_steps": save_steps}
    if checkpoints is not None:
        saving |= {"output_dir": checkpoints, "save_total_limit": 1}
    start = time.perf_counter()
    train(
        model,
        task,
        injection=settings.training.injection,
        converters=settings.training.converters,
        evaluate_on=settings.training.evaluate_on,
        epochs=settings.training.epochs,
        learning_rate=learning_rate,
        shift_lr_ratio=settings.training.shift_lr_ratio,
        batch_size=settings.training.batch_size,
        seed=settings.run.seed,
        gradient_accumulation_steps=settings.training.gradient_accumulation_steps,
        bf16=settings.training.bf16,
        resume_from_checkpoint=_last_checkpoint(checkpoints),
        callbacks=[_Steps(description, progress)],
        **saving,
    )
    seconds = time.perf_counter() - start
    if isinstance(task, SentenceTask):
        few = task.subset(train=min(_GLANCE, len(task.train)))
        if _says_one_thing(model, few):
            warnings.warn(
                f"The adapter {kind} gives one answer to {len(few.train)} training sentences of "
                f"{task.name}: train it longer (--epochs, here {settings.training.epochs:g}) or "
                f"with a lower learning rate (--learning-rate, here {learning_rate:g}).",
                stacklevel=2,
            )
    return seconds


def _says_one_thing(model: PeftModel, few: SentenceTask) -> bool:
    """Whether training rows with labels that differ all have the same answer.

    Too high a learning rate makes a model's features run away until they depend on no sentence.
    """
    predicted, wanted = few.predict(model, "train"), few.labels("train")
    if few.regression:
        return bool(predicted.std() < 0.01 * wanted.std())
    return len(np.unique(wanted)) > 1 and len(np.unique(predicted.argmax(1))) == 1


def _last_checkpoint(folder: Path | None) -> str | bool:
    """The latest whole checkpoint: the trainer's state is the last file that it writes of one."""
    states = [] if folder is None else folder.glob("checkpoint-*/trainer_state.json")
    whole = {int(state.parent.name.rpartition("-")[2]): state.parent for state in states}
    return str(whole[max(whole)]) if whole else False


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
        self._advance = self._progress(self._description, state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()


def processor() -> torch.device:
    """Where models are trained and measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
