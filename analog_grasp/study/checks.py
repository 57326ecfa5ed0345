"""Checks of the settings of a study: that everything they name exists, and fits.

They need neither torch nor the task's data nor the model's weights.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analog_grasp.adapters.registry import (
    check_placement,
    check_programmable,
    check_programming_error,
    check_sampling,
)
from analog_grasp.devices import check_name
from analog_grasp.study.config import (
    ADAPTER_FILES,
    MODEL_FILES,
    StudyConfig,
    is_saved,
    weight_files,
)
from analog_grasp.study.fields import GRASP
from analog_grasp.study.sections import TaskSettings
from analog_grasp.utils.errors import check_packages, unknown_name
from analog_grasp.utils.io import check_model_folder
from analog_grasp.utils.types import HARNESS_PREFIX, RANGES_FILE, TASK_NAMES

if TYPE_CHECKING:
    from analog_grasp.devices.card import DeviceCard


def check_study(config: StudyConfig) -> None:
    """Raise an error if a study names anything that does not exist.

    Raises:
        ValueError: A task, device, adapter or engine is unknown, or a setting does not fit.
        FileNotFoundError: A folder or file is missing.
    """
    if config.run.engine == "ray":
        check_packages("The engine ray", "ray", "ray")
    check_task(config.task)
    check_model(config.model.name)
    for adapter in config.model.adapters:
        if is_saved(adapter):
            check_saved(Path(adapter))
        else:
            check_placement(adapter, config.hardware.placement)
            if config.hardware.placement == "programmed":
                check_programming_error(adapter, config.hardware.programming_error)
                if adapter in GRASP.adapters:
                    check_programmable(*_form(config, adapter))
    # Last, as cards take longest to read.
    cards = config.hardware.cards()
    if config.hardware.calibrate == "learned":
        _check_ranges(config, cards.values())
    _check_converters(config, cards.values())
    check_costs(config.run.costs, len(config.hardware.devices))
    check_limits(config)
    check_training(config)


def _check_ranges(config: StudyConfig, cards: Iterable["DeviceCard"]) -> None:
    """Raise ValueError where an adapter has no learned input ranges, or a card rescales inputs."""
    stated = "The setting calibrate is 'learned', but"
    for adapter in config.model.adapters:
        if is_saved(adapter) and not (Path(adapter) / RANGES_FILE).is_file():
            raise ValueError(
                f"{stated} the folder {adapter} holds no {RANGES_FILE}: train the adapter with "
                "--learn-ranges, or give a percentile."
            )
        if not is_saved(adapter) and not config.training.learn_ranges:
            raise ValueError(
                f"{stated} no ranges are learned: give --learn-ranges and --converters too, or a "
                "percentile."
            )
    for card in cards:
        if config.hardware.mapping_on(card).rescale is not None:
            raise ValueError(
                f"{stated} inputs are rescaled on {card.name}, which the training did not do: omit "
                "rescale (for a card that states it, --no-mapping), or give a percentile."
            )


def _check_converters(config: StudyConfig, cards: Iterable["DeviceCard"]) -> None:
    """Raise ValueError where ranges of converters are set, and no device has converters."""
    for name in ("calibrate", "output_ranges"):
        value = config.value(name)
        if value is not None and all(card.converters is None for card in cards):
            raise ValueError(
                f"The setting {name} is {value!r}, but none of the devices has converters: use a "
                f"device with converters, or omit {name}."
            )


def _form(config: StudyConfig, adapter: str) -> tuple[str, str]:
    """Return the form and the sampling of a GRASP adapter that is not yet trained."""
    sampling = config.training.sampling if adapter == "stochgrasp" else "feature"
    return config.training.form or "affine", sampling


def check_limits(config: StudyConfig) -> None:
    """Raise ValueError where fewer trainings or chips are allowed than a study begins with."""
    if config.run.until_ci is None:
        return
    for name in ("trainings", "repeats"):
        limit, first = config.value(f"{name}_limit"), config.value(name)
        if limit < first:
            raise ValueError(
                f"The setting {name}_limit is {limit}, but the study begins with {name} = {first}: "
                f"give {first} or more."
            )
    if config.run.repeats_limit < 2:
        raise ValueError(
            "The setting repeats_limit is 1, but until_ci is given, and one chip instance has no "
            "interval: give 2 or more."
        )


def check_training(config: StudyConfig) -> None:
    """Raise an error if a device, time or saved adapter is unknown, or a setting does not fit."""
    training = config.training
    for adapter in config.model.adapters:
        check_sampling(*_form(config, adapter))
    named = {name: getattr(training, name) for name in ("noise_target", "injection", "evaluate_on")}
    for name, where in (named | {"then": ",".join(training.then)}).items():
        if not isinstance(where, str) or (name == "then" and where in ("none", "devices")):
            continue
        try:
            for part in where.split(","):
                if "@" in part:
                    check_name(part.rpartition("@")[0])
            from analog_grasp.devices.ages import parse_age, parse_ages
            from analog_grasp.devices.card import DeviceAtTime

            parsers = {"noise_target": parse_age, "evaluate_on": DeviceAtTime.parse}
            parsers.get(name, parse_ages)(where)
        except ValueError as error:
            raise ValueError(f"The setting {name} is {where!r}: {error}") from None
    if training.start_from is not None:
        check_saved(Path(training.start_from))
    if training.teacher is not None:
        check_saved(teacher_folder(training.teacher))
    if training.converters is None:
        return
    check_name(training.converters)
    from analog_grasp.devices.card import DeviceCard

    if DeviceCard.load(training.converters).converters is None:
        raise ValueError(
            f"The setting converters is {training.converters!r}, a device whose card states no "
            "converters: choose one that does, or omit the setting for exact arithmetic."
        )


def check_task(task: TaskSettings) -> None:
    """Raise an error if the task is unknown or the folder of its data is missing."""
    registry = sys.modules.get("analog_grasp.tasks.registry")
    known = registry.task_names() if registry else TASK_NAMES
    harness = task.name.startswith(HARNESS_PREFIX)
    if task.name not in known and not harness:
        raise ValueError(unknown_name("task", task.name, known))
    if harness:
        check_packages("A task of lm-eval", "lm-eval", "lm_eval")
    if task.data_dir is None or Path(task.data_dir).is_dir():
        return
    if task.name != "lm" and not harness:
        raise FileNotFoundError(
            f"The data folder {task.data_dir} does not exist: give the folder with the files of "
            f"the task {task.name}."
        )
    # A text file, or a data set of the Hub, which is looked up when the task is loaded.
    if not Path(task.data_dir).is_file() and not _is_dataset_id(task.data_dir):
        raise FileNotFoundError(
            f"The text {task.data_dir} does not exist: give a text file, a folder of .txt "
            "files, or a data set of the Hub such as Salesforce/wikitext:wikitext-2-raw-v1."
        )


def _is_dataset_id(name: str) -> bool:
    """Return True if a name can be a data set's id on the Hub, with or without a configuration."""
    owner, _, rest = name.partition("/")
    starts_as_path = owner.startswith((".", "~")) or not owner
    return bool(rest) and not starts_as_path and "/" not in rest and not rest.endswith(".txt")


def check_model(name: str | None) -> None:
    """Raise FileNotFoundError if the model is a folder that is missing, or holds no model."""
    # An id on the Hub has one slash at most, and no leading dot or slash.
    local = name is not None and (name.count("/") > 1 or name.startswith((".", "/", "~")))
    if name is not None and local and not Path(name).is_dir():
        raise FileNotFoundError(
            f"The model folder {name} does not exist: give a folder that save_pretrained of "
            "transformers wrote, or an id on the Hub."
        )
    if name is not None:
        check_model_folder(Path(name))


def check_saved(folder: Path) -> None:
    """Raise FileNotFoundError if a folder holds no saved adapter and no model trained whole."""
    adapter, model = ((folder / each[0]).is_file() for each in (ADAPTER_FILES, MODEL_FILES))
    whole = model and not adapter and weight_files(folder)
    if not whole and not all((folder / name).is_file() for name in ADAPTER_FILES):
        # The folder of a run, or that of its adapters.
        files = [
            f for part in ("adapters/*", "*") for f in folder.glob(f"{part}/{ADAPTER_FILES[0]}")
        ]
        if inside := sorted(str(file.parent) for file in files):
            raise FileNotFoundError(
                f"The folder {folder} holds no adapter itself: give {' or '.join(inside)}."
            )
        raise FileNotFoundError(
            f"The folder {folder} holds no adapter: it should hold {' and '.join(ADAPTER_FILES)}, "
            f"or {' and '.join(MODEL_FILES)} of a model trained whole, as save_pretrained writes."
        )


def teacher_folder(name: str) -> Path:
    """Return the folder of a teacher; a model of the Hub is downloaded if it is not there yet.

    Raises:
        FileNotFoundError: There is no such folder, and no such model of the Hub can be reached.
    """
    if Path(name).exists() or Path(name).is_absolute() or name.count("/") > 1:
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        # A tokenizer may be text or a model of sentencepiece; code and pickles are skipped.
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"The teacher '{name}' is neither a folder nor available from the Hub: give the folder "
            "of a saved adapter or model, or the Hub id of a model."
        ) from error


def check_costs(costs: Sequence[str], devices: int) -> None:
    """Raise an error if a cost model is unknown or invalid, or their number fits no devices."""
    if not costs:
        return
    from analog_grasp.devices.cost_model import CostModel

    for name in costs:
        CostModel.load(name)
    if len(costs) not in (1, devices):
        raise ValueError(
            f"The setting costs names {len(costs)} cost models for "
            f"{'1 device' if devices == 1 else f'{devices} devices'}: name one, or one per device."
        )


def check_empty(folder: Path) -> None:
    """Raise ValueError unless a folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"The output {folder} is not empty: name a new folder for the adapter.")


def check_folder(path: Path) -> None:
    """Raise ValueError if an output folder is a file."""
    if path.is_file():
        raise ValueError(f"The output {path} is a file: name a folder.")


def check_export(path: Path) -> None:
    """Raise an error if a file cannot be written, as its folder is missing or it is a folder."""
    if path.is_dir():
        raise ValueError(f"The export {path} is a folder: name a file, such as chip.safetensors.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder {path.parent} of the export {path} does not exist: create it, or name a "
            "file in another folder."
        )
