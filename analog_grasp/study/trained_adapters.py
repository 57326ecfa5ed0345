"""Adapters of a study: create, train, save, load, count their parameters."""

import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import NoMatchingPeftModuleError, PeftModel, get_peft_model_state_dict
from peft.config import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerCallback

from analog_grasp.adapters.frozen import head_names
from analog_grasp.adapters.model import saved_config, start_from
from analog_grasp.adapters.registry import adapt, kind_of, own_learning_rate
from analog_grasp.devices.ages import parse_ages
from analog_grasp.devices.card import DeviceAtTime
from analog_grasp.study.checks import check_saved, teacher_folder
from analog_grasp.study.config import (
    ADAPTER_FILES,
    SETTINGS,
    StudyConfig,
    is_saved,
    weight_files,
)
from analog_grasp.study.evaluator import processor
from analog_grasp.study.fields import GRASP
from analog_grasp.study.progress import Progress, silent
from analog_grasp.study.provenance import model_hash
from analog_grasp.study.records import TreatedAdapter
from analog_grasp.tasks import SentenceTask, Task, load_base_model
from analog_grasp.tasks.models import quiet, tokenizer_for
from analog_grasp.training import train
from analog_grasp.training.adapter_parameters import check_adapter
from analog_grasp.training.distillation import distil
from analog_grasp.training.input_ranges import load_ranges, save_ranges
from analog_grasp.training.loss import target_std
from analog_grasp.training.teacher_checks import check_teacher
from analog_grasp.utils.errors import last_line, shown

# Settings that are arguments of `analog_grasp.train`.
_TRAIN_ARGUMENTS = (
    *("learn_ranges", "epochs", "shift_lr_ratio", "sigma_lr_ratio", "batch_size"),
    *("gradient_accumulation_steps", "bf16", "noise_weight_schedule", "noise_target_schedule"),
)
# Settings of GRASP that keep the default of its configuration where they are not given.
_SHAPE = ("grouping", "form")
# Settings of StochGRASP's Gaussians.
_DISTRIBUTION = ("noise_weight", "noise_target", "noise_loss", "init_sigma", "sampling")
# Training rows on which a collapse to a constant prediction is looked for.
_COLLAPSE_ROWS = 128


def load_adapter(
    path: Path, model: str | None, task: Task, trust_remote_code: bool = False
) -> PeftModel | PreTrainedModel:
    """Load a saved adapter, or a model that was trained whole, ready to be measured.

    Args:
        path: Its folder.
        model: Hub id or folder of the pre-trained model; the one that the adapter names if None.
        task: Determines the shape of the head.
        trust_remote_code: Allow Python code that comes with the model to run.

    Raises:
        FileNotFoundError: The folder holds no adapter.
        ValueError: The adapter was made for another model or another task, or a file is damaged.
    """
    return load_with_hash(path, model, task, trust_remote_code)[0]


def load_with_hash(
    path: Path, model: str | None, task: Task, trust_remote_code: bool
) -> tuple[PeftModel | PreTrainedModel, str]:
    """Load as `load_adapter`, and return the hash of the pre-trained model too.

    A model that was trained whole is its own: its hash is that of its present weights.
    """
    check_saved(path)
    if not (path / ADAPTER_FILES[0]).is_file():
        whole = _with_ranges(_load_whole(path, task, trust_remote_code), path)
        return whole, model_hash(whole)
    saved = _saved_config(path)
    named = model or saved.base_model_name_or_path
    base = load_base_model(task, named, trust_remote_code=trust_remote_code)
    base_hash = model_hash(base)
    try:
        # Allocates what the file holds, not what the adapter's configuration states.
        adapted = PeftModel.from_pretrained(
            base, path, low_cpu_mem_usage=not _changes_base_weights(saved, path)
        )
    except SafetensorError as error:
        raise ValueError(
            f"The file {path / ADAPTER_FILES[1]} is damaged ({error}): train the adapter again."
        ) from error
    except Exception as error:
        # Any error: peft checks few values of a configuration.
        reason = last_line(error)
        raise ValueError(
            f"The adapter in {path} does not fit the model {base.name_or_path} with the task "
            f"{task.name} ({reason}): name the model and the task that it was made for."
        ) from error
    # peft would silently keep missing parameters at their initial values.
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if odd := sorted(_shapes(path / ADAPTER_FILES[1]).keys() ^ expected):
        kind = "lacks" if odd[0] in expected else "has an unexpected"
        raise ValueError(
            f"The adapter in {path} does not fit the model {base.name_or_path}: it {kind} "
            f"{odd[0]}, and {len(odd)} parameters in all differ from those of the adapted model; "
            "name the model that it was made for, or train it again."
        )
    # The base model is in float32, whatever type the adapter and the head were saved in.
    return _with_ranges(adapted.float().to(processor()).eval(), path), base_hash


def _with_ranges[M: PeftModel | PreTrainedModel](model: M, path: Path) -> M:
    """Give a model the input ranges that were learned with it, if there are any."""
    if ranges := load_ranges(path):
        vars(model)["input_ranges"] = ranges
    return model


def _load_whole(path: Path, task: Task, trust_remote_code: bool) -> PreTrainedModel:
    """Load a model that was trained whole."""
    model = load_base_model(task, str(path), trust_remote_code=trust_remote_code)
    saved = {name: shape for file in weight_files(path) for name, shape in _shapes(file).items()}
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    if odd := sorted(name for name, shape in shapes.items() if saved.get(name) != shape):
        raise ValueError(
            f"The model in {path} does not fit the task {task.name}: {len(odd)} of its parameters "
            f"are missing or of another shape, such as {odd[0]}; name the task it was made for."
        )
    return model.to(processor()).eval()


def _shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a file of safetensors, by name."""
    with safe_open(file, "pt") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118


def _changes_base_weights(saved: Any, path: Path) -> bool:
    """Return whether a LoRA adapter starts from its base weights and changes them, as PiSSA does.

    The ranks that its configuration states must be those of the file, which limits the memory.
    """
    start = getattr(saved, "init_lora_weights", True)
    if not isinstance(start, str) or start.lower() == "gaussian":
        return False
    shapes = _shapes(path / ADAPTER_FILES[1])
    largest = max((shape[0] for name, shape in shapes.items() if ".lora_A." in name), default=0)
    return largest >= max([saved.r, *saved.rank_pattern.values()])


def _saved_config(path: Path) -> PeftConfig:
    """Return the configuration of a saved adapter that adapts layers."""
    saved = saved_config(path)
    if saved.is_prompt_learning or saved.is_adaption_prompt or saved.peft_type == "XLORA":
        # Their configurations name further files to read, in other formats too.
        raise ValueError(
            f"The adapter in {path} is of the kind {str(saved.peft_type)[:40]}, which is not "
            "supported: it should be one that adapts layers, such as LoRA."
        )
    return saved


def new_adapter(config: StudyConfig, task: Task, adapter: str) -> PeftModel | PreTrainedModel:
    """Return an untrained adapter, by its name, on the pre-trained model of some settings.

    Raises:
        FileNotFoundError: The model is missing.
        ValueError: The adapter is unknown, or a setting does not fit the model.
    """
    training, seed = config.training, config.run.seed
    target_std(training.noise_target)
    shape = {name: value for name in _SHAPE if (value := getattr(training, name)) is not None}
    base = load_base_model(
        task, config.model.name, seed=seed, trust_remote_code=config.model.trust_remote_code
    )
    try:
        # Some methods are initialised at random.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            targets = training.target_modules
            adapted = adapt(
                base,
                adapter,
                task_type=task.task_type,
                groups=training.groups,
                target_modules=targets if isinstance(targets, str) else list(targets),
                **{name: getattr(training, name) for name in _DISTRIBUTION},
                **shape,
            )
    except NoMatchingPeftModuleError as error:
        # Its message does not say what is accepted.
        if config.is_changed("target_modules"):
            raise ValueError(
                f"No layer of the model {base.name_or_path} matches the target_modules "
                f"{shown(targets)}: give endings of the names of its linear layers, or all-linear."
            ) from error
        raise ValueError(
            f"The model {base.name_or_path} has no layer that {adapter} can adapt "
            f"({last_line(error)}): use another model or another adapter."
        ) from error
    if config.training.then != ("devices",) and config.second_stage():
        check_adapter(adapted)
    if (teacher := _teacher(config, task)) is not None:
        check_teacher(teacher, adapted, task)
    if training.start_from is not None and adapter in GRASP.adapters:
        assert isinstance(adapted, PeftModel)
        start_from(adapted, training.start_from)
    return adapted.to(processor())


def _teacher(config: StudyConfig, task: Task) -> PeftModel | PreTrainedModel | None:
    teacher, settings = config.training.teacher, config.model
    if teacher is None:
        return None
    folder = teacher_folder(teacher)
    return load_adapter(folder, settings.name, task, settings.trust_remote_code)


def train_adapter(
    model: PeftModel | PreTrainedModel,
    config: StudyConfig,
    task: Task,
    description: str,
    progress: Progress,
    checkpoints: Path | None = None,
    save_steps: int | None = None,
) -> float:
    """Train an adapter from `new_adapter` in place, as the settings say; return the time in s.

    Warns if the trained adapter has collapsed to a constant prediction.

    Args:
        model, config, task: The adapter, the settings and the task to learn.
        description, progress: What the progress of the steps is called, and where it is shown.
        checkpoints: A folder for checkpoints; training resumes from the latest one in it.
        save_steps: Steps between two checkpoints, and between two evaluations on a chip; one epoch
            if None.

    Raises:
        ValueError: As `analog_grasp.train`.
    """
    training, seed = config.training, config.run.seed
    learning_rate = training.learning_rate or own_learning_rate(model)
    kind = kind_of(model)
    arguments = {
        name: getattr(training, name)
        for name in _TRAIN_ARGUMENTS
        if not (own := SETTINGS[name].note.adapters) or kind in own
    }
    arguments |= _hardware_arguments(config, task)
    if save_steps is not None:
        arguments["save_steps"] = save_steps
    if checkpoints is not None:
        arguments |= {"output_dir": checkpoints, "save_total_limit": 1}
    start = time.perf_counter()
    train(
        model,
        task,
        learning_rate=learning_rate,
        seed=seed,
        teacher=_teacher(config, task),
        resume_from_checkpoint=_last_checkpoint(checkpoints),
        callbacks=[_Steps(description, progress)],
        **arguments,
    )
    ages = config.second_stage()
    if ages and not isinstance(model, PeftModel):
        warnings.warn(
            f"The adapter {kind_of(model) or 'full'} trains the whole model, so that no digital "
            "parameters are left for the second stage (then): it has the first stage alone.",
            stacklevel=2,
        )
    elif ages:
        advance = progress(f"{description}, on simulated chips", training.then_steps)
        assert isinstance(model, PeftModel)
        distil_adapter(model, config, task, advance)
    seconds = time.perf_counter() - start
    if isinstance(task, SentenceTask):
        few = task.subset(train=min(_COLLAPSE_ROWS, len(task.train)))
        if _is_constant(model, few):
            warnings.warn(
                f"The adapter {kind_of(model)} predicts the same for {len(few.train)} training "
                f"sentences of {task.name}: train it longer (--epochs, here {training.epochs:g}) "
                f"or with a lower learning rate (--learning-rate, here {learning_rate:g}).",
                stacklevel=2,
            )
    return seconds


def _hardware_arguments(config: StudyConfig, task: Task) -> dict[str, Any]:
    """Return the devices of a training, on cards changed and mapped as the settings say."""
    training, hardware = config.training, config.hardware
    injection, converters, where = training.injection, training.converters, training.evaluate_on
    found: dict[str, Any] = {"injection": injection}
    if isinstance(injection, str):
        ages = parse_ages(injection)
        found["injection"] = [each._replace(card=hardware.changed(each.card)) for each in ages]
    if converters is not None:
        found["converters"] = hardware.card(converters)
    if where is not None:
        device = DeviceAtTime.parse(where)
        found["evaluate_on"] = device._replace(card=hardware.changed(device.card))
    if hardware.weights == "analog":
        # Training sets the input ranges as they are learned.
        fixed = {"calibrate": None} if hardware.calibrate == "learned" else {}
        found["put_on_chip"] = partial(
            hardware.model_copy(update=fixed).deploy, task=task, programming_error="device"
        )
        found["layers"] = hardware.layers
    return found


def distil_adapter(
    model: PeftModel, config: StudyConfig, task: Task, advance: Callable[[], object] = int
) -> None:
    """Run the second stage of a trained adapter in place, as the settings say; see `distil`."""
    training = config.training
    distil(
        model, task, config.second_stage(), steps=training.then_steps,
        learning_rate=training.learning_rate, shift_lr_ratio=training.shift_lr_ratio,
        seed=config.run.seed, advance=advance,
        put_on_chip=partial(
            config.hardware.deploy, task=task, placement="digital", programming_error="device"
        ),
    )  # fmt: skip


def _is_constant(model: PeftModel | PreTrainedModel, few: SentenceTask) -> bool:
    """Return whether training rows with different labels all have the same prediction.

    Too high a learning rate makes features diverge until they are independent of the input.
    """
    predicted, labels = few.predict(model, "train"), few.labels("train")
    if few.regression:
        return bool(predicted.std() < 0.01 * labels.std())
    classes = predicted > 0 if few.multi_label else predicted.argmax(1)
    return len(np.unique(labels, axis=0)) > 1 and len(np.unique(classes, axis=0)) == 1


def _last_checkpoint(folder: Path | None) -> str | bool:
    """Return the latest complete checkpoint: trainer_state.json is the last file of one."""
    states = [] if folder is None else folder.glob("checkpoint-*/trainer_state.json")
    complete = {int(state.parent.name.rpartition("-")[2]): state.parent for state in states}
    return str(complete[max(complete)]) if complete else False


def save_adapter(model: PeftModel | PreTrainedModel, path: Path) -> None:
    """Write an adapter's folder as PEFT does, or a model trained whole as transformers does.

    Embeddings are never part of an adapter; peft would query the Hub to find out.
    """
    if ranges := vars(model).get("input_ranges"):
        save_ranges(ranges, path)
    if not isinstance(model, PeftModel):
        with quiet():
            model.save_pretrained(str(path))
        if model.name_or_path:
            tokenizer_for(model).save_pretrained(str(path))
        return
    model.save_pretrained(str(path), save_embedding_layers=False)


def adapter_names(adapters: Iterable[str]) -> dict[str, str]:
    """Return the adapters by their names in tables: their own, or the last part of a folder's path.

    Raises ValueError where two have the same name, or one has the name of another one's training
    or treatment.

    Example:
        >>> adapter_names(["grasp", "runs/one/mine"])
        {'grasp': 'grasp', 'mine': 'runs/one/mine'}
    """
    adapters = tuple(adapters)
    named = {Path(a).resolve().name if is_saved(a) else a: a for a in adapters}
    if len(named) < len(adapters):
        raise ValueError(
            f"Two of the adapters {', '.join(adapters)} have the same name: saved adapters are "
            "called by the last part of their folder, which must differ."
        )
    for name, asked in named.items():
        base, _, number = name.rpartition("-training-")
        if TreatedAdapter.parse(name).treatment:
            raise ValueError(
                f"The name of the adapter {asked} ends in that of a treatment: rename its folder."
            )
        if number.isdecimal() and base in named and not is_saved(named[base]):
            raise ValueError(
                f"The adapter {asked} has the name of a training of {base}, which is among the "
                "adapters too: rename its folder."
            )
    return named


def learned_parameters(model: PeftModel | PreTrainedModel) -> tuple[int, int]:
    """Return the number of parameters of the active adapter, and of the task head saved with it."""
    weights: dict[str, torch.Tensor]
    if isinstance(model, PeftModel):
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        heads = set(model.modules_to_save or ())
    else:
        weights, heads = dict(model.named_parameters()), set(head_names(model))
    head = sum(t.numel() for name, t in weights.items() if heads.intersection(name.split(".")))
    return sum(tensor.numel() for tensor in weights.values()) - head, head


class _Steps(TrainerCallback):
    """Reports the steps of a trainer to a progress."""

    def __init__(self, description: str, progress: Progress) -> None:
        self._description, self._progress = description, progress
        self._advance = silent(description, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance = self._progress(self._description, state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()
