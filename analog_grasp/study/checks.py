"""Checks of a request that need neither torch nor the task's data nor the model's weights.

They run before anything that takes seconds to import, so that a wrong name is reported at once.
"""

import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from analog_grasp.devices import check_name
from analog_grasp.study.config import StudyConfig, is_folder
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.study.sections import (
    RunSettings,
    TaskSettings,
    TrainingSettings,
)
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.types import HARNESS_PREFIX, TASK_NAMES, Placement

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a saved adapter, as PEFT writes them."""
MODEL_FILES = ("config.json", "model.safetensors")
"""The files of a model that was trained whole, as transformers writes them."""


def check_study(config: StudyConfig) -> None:
    """Raise an error if a study names anything that does not exist.

    Raises:
        ValueError: A task, device, adapter or engine is unknown, or a setting does not fit.
        FileNotFoundError: A folder or file is missing.
    """
    check_engine(config.run)
    check_task(config.task)
    check_model(config.model.name)
    check_adapters(config.model.adapters, config.hardware)
    # Last, as cards take longest to read.
    check_devices(config.hardware)
    check_costs(config.run.costs, len(config.hardware.devices))
    check_training(config.training)
    if config.training.then:
        check_then(config.hardware)


def check_then(hardware: HardwareSettings) -> None:
    """Warn if tiles are mapped in a way that the second stage of training is not."""
    changed = hardware.changes()
    for name in ("layers", "rescale", "clip", "calibrate", "first_token"):
        if name in changed:
            warnings.warn(
                f"The second stage of training (then) maps its simulated chips without {name}, "
                f"which is {changed[name]!r} where the adapters are measured.",
                stacklevel=2,
            )


def check_training(training: TrainingSettings) -> None:
    """Raise ValueError if a device or time of the training is unknown."""
    for name in ("noise_target", "injection", "evaluate_on", "then"):
        where = getattr(training, name)
        if isinstance(where, str) or (where and name == "then"):
            asked = where if isinstance(where, str) else ",".join(where)
            try:
                for part in asked.split(","):
                    if "@" in part:
                        check_name(part.rpartition("@")[0])
                from analog_grasp.devices.ages import parse_ages
                from analog_grasp.devices.card import DeviceAtTime

                (parse_ages if name in ("injection", "then") else DeviceAtTime.parse)(where)
            except ValueError as error:
                raise ValueError(f"The setting {name} is {asked!r}: {error}") from None
    if training.start_from is not None:
        check_saved(Path(training.start_from))
    if training.converters is None:
        return
    check_name(training.converters)
    from analog_grasp.devices.card import DeviceCard

    if DeviceCard.load(training.converters).converters is None:
        raise ValueError(
            f"The setting converters is {training.converters!r}, a device whose card states no "
            "converters: choose one that does, or omit the setting for exact arithmetic."
        )


def check_devices(hardware: HardwareSettings) -> None:
    """Raise ValueError if a device is unknown, or a changed value does not fit its card."""
    hardware.cards()


def check_task(task: TaskSettings) -> None:
    """Raise an error if the task is unknown or the folder of its data is missing."""
    registry = sys.modules.get("analog_grasp.tasks.registry")
    known = registry.task_names() if registry else TASK_NAMES
    harness = task.name.startswith(HARNESS_PREFIX)
    if task.name not in known and not harness:
        raise ValueError(unknown_name("task", task.name, known))
    if task.data_dir is None or Path(task.data_dir).is_dir():
        return
    if task.name == "lm" or harness:
        # A text file, or a data set of the Hub, which is looked up when the task is loaded.
        if not Path(task.data_dir).is_file() and not is_dataset_id(task.data_dir):
            raise FileNotFoundError(
                f"The text {task.data_dir} does not exist: give a text file, a folder of .txt "
                "files, or a data set of the Hub such as Salesforce/wikitext:wikitext-2-raw-v1."
            )
    else:
        raise FileNotFoundError(
            f"The data folder {task.data_dir} does not exist: give the folder with the files of "
            f"the task {task.name}."
        )


def is_dataset_id(name: str) -> bool:
    """Return True if a name can be a data set's id on the Hub, with or without a configuration.

    Example:
        >>> is_dataset_id("Salesforce/wikitext:wikitext-2-raw-v1"), is_dataset_id("my/book.txt")
        (True, False)
    """
    owner, _, rest = name.partition("/")
    starts_as_path = owner.startswith((".", "~")) or not owner
    return bool(rest) and not starts_as_path and "/" not in rest and not rest.endswith(".txt")


def check_model(name: str | None) -> None:
    """Raise FileNotFoundError if the model can only be a folder, and is missing."""
    # An id on the Hub has one slash at most, and no leading dot or slash.
    local = name is not None and (name.count("/") > 1 or name.startswith((".", "/", "~")))
    if name is not None and local and not Path(name).is_dir():
        raise FileNotFoundError(
            f"The model folder {name} does not exist: give a folder that save_pretrained of "
            "transformers wrote, or an id on the Hub."
        )


def check_adapters(adapters: Iterable[str], hardware: HardwareSettings) -> None:
    """Raise an error if an adapter is unknown, missing, or cannot have the placement."""
    for adapter in adapters:
        if is_folder(adapter):
            check_saved(Path(adapter))
        else:
            check_kind(adapter, hardware.placement)


def check_kind(adapter: str, placement: Placement = "folded") -> None:
    """Raise ValueError if an adapter is unknown, or cannot have the placement."""
    from analog_grasp.adapters.registry import check_placement

    check_placement(adapter, placement)


def check_saved(folder: Path) -> None:
    """Raise FileNotFoundError if a folder holds no saved adapter."""
    whole = not (folder / ADAPTER_FILES[0]).is_file() and (folder / MODEL_FILES[0]).is_file()
    if not whole and not all((folder / name).is_file() for name in ADAPTER_FILES):
        raise FileNotFoundError(
            f"The folder {folder} holds no adapter: it should hold {' and '.join(ADAPTER_FILES)}, "
            "which save_pretrained writes."
        )


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


def check_engine(run: RunSettings) -> None:
    """Raise ValueError if the engine needs a package that is not installed."""
    if run.engine == "ray" and find_spec("ray") is None:
        raise ValueError(
            "The engine ray needs the package ray, which is not installed: run pip install "
            "'analog-grasp[ray]', or use the engine local."
        )


def check_empty(folder: Path) -> None:
    """Raise ValueError unless a folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"The output {folder} is not empty: name a new folder for the adapter.")


def check_export(path: Path) -> None:
    """Raise an error if a file cannot be written, as its folder is missing or it is a folder."""
    if path.is_dir():
        raise ValueError(f"The export {path} is a folder: name a file, such as chip.safetensors.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder {path.parent} of the export {path} does not exist: create it, or name a "
            "file in another folder."
        )
