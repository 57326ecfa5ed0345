"""Provenance of a run: hashes of everything a value is computed from, and the files of its folder.

torch and transformers are imported where they are used, so that the folder of a run can be checked
without them.
"""

import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from analog_grasp.devices.ages import parse_ages
from analog_grasp.devices.card import DeviceAtTime, DeviceCard
from analog_grasp.study.checks import teacher_folder
from analog_grasp.study.config import (
    ADAPTER_FILES,
    CHANGEABLE,
    MODEL_FILES,
    RECORDS,
    StudyConfig,
    flat,
    resolve,
    weight_files,
)
from analog_grasp.utils.errors import CardError
from analog_grasp.utils.io import place_name, read_toml, write_atomically
from analog_grasp.utils.time import format_time
from analog_grasp.utils.types import RANGES_FILE

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from analog_grasp.tasks import Task

RUN_FILE, STORE_FILE, LOG_FILE = "run.toml", "results.sqlite", "run.log"
CARDS_FOLDER = "devices"
"""The subfolder of device cards that a run was given in Python."""
_PACKAGES = ("analog-grasp", "torch", "aihwkit", "transformers", "peft", "numpy")
# The text fields of a card, which no figure depends on.
_PROSE = {"title", "source", "valid_range", "not_modelled"}
# Settings to which a run may add: cells that are measured already stay as they are.
_GROWING = ("devices", "times", "repeats", "trainings")
# Settings that may be paths; the hashes decide whether it is still the same content.
_PATHS = (
    *("model", "data_dir", "adapters", "devices", "teacher"),
    *("noise_target", "injection", "converters", "evaluate_on", "then"),
)


def adapter_hash(path: Path) -> str:
    """Return a hash of the weights of a saved adapter or model, and one of its configuration.

    Learned input ranges count as weights.

    peft writes sets as lists in any order, which does not count. A missing file counts as empty.
    """
    config, weights = path / ADAPTER_FILES[0], [path / ADAPTER_FILES[1]]
    if not config.is_file():
        config, weights = path / MODEL_FILES[0], weight_files(path)
    try:
        settings = json.loads(config.read_bytes()) if config.is_file() else {}
        lists = {name: value for name, value in settings.items() if isinstance(value, list)}
    except (ValueError, AttributeError):
        raise ValueError(
            f"The file {config} is damaged: restore it, or train the adapter again."
        ) from None
    settings |= {name: sorted(value, key=repr) for name, value in lists.items()}
    learned = [file for file in (*weights, path / RANGES_FILE) if file.is_file()]
    return _hash(b"".join(map(Path.read_bytes, learned))) + _hash(_json(settings))


def model_hash(model: "PreTrainedModel") -> str:
    """Return a hash of a model's configuration and weights, independent of its folder's name."""
    import torch

    other = ("_name_or_path", "transformers_version")
    config = {name: v for name, v in model.config.to_dict().items() if name not in other}
    parts = [_json(config)]
    for name, tensor in sorted(model.state_dict().items()):
        stored = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        parts += [_json([name, str(tensor.dtype), list(tensor.shape)]), stored]
    return _hash(*parts)


def card_hash(card: DeviceCard) -> str:
    """Return a hash of a card's figures; its text fields do not count.

    Example:
        >>> card = DeviceCard.load("pcm-hermes-2")
        >>> card_hash(card) == card_hash(card.model_copy(update={"title": "Another"}))
        True
        >>> card_hash(card) == card_hash(card.without("read"))
        False
    """
    return _hash(_json(card.model_dump(mode="json", exclude_none=True, exclude=_PROSE)))


def training_hashes(config: StudyConfig, task: "Task") -> dict[str, str]:
    """Return the hashes of what a training reads, by name in records: rows, adapters and cards.

    The rows are those for training, on which adapters are also calibrated and recalibrated; the
    adapters are the teacher and the one that a training starts from. The cards are those that the
    settings name, and those of the second stage. Devices that are measured alone are measured again
    if their cards are edited.
    """
    training, hashes = config.training, {"training_rows_hash": rows_hash(task.train)}
    if training.start_from is not None:
        hashes["start_from_hash"] = adapter_hash(Path(training.start_from))
    if training.teacher is not None:
        hashes["teacher_hash"] = adapter_hash(teacher_folder(training.teacher))
    named = [training.injection, training.noise_target, training.evaluate_on]
    ages = [each for each in named if isinstance(each, str) and "@" in each]
    cards = [each.card for each in parse_ages(",".join(ages))] if ages else []
    cards += [each.card for each in config.second_stage()]
    if training.converters is not None:
        cards.append(DeviceCard.load(training.converters))
    return hashes | {f"{card.name}_card_hash": card_hash(card) for card in cards}


def data_hash(task: "Task", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a hash of a task's validation rows, their tokens, and the task's own settings."""
    encoded = task.encode("validation", tokenizer)
    return _hash(_json(task.identity()), _columns(task.validation), _columns(encoded))


def rows_hash(rows: "Dataset") -> str:
    """Return a hash of the rows of a data set."""
    return _hash(_columns(rows))


def _columns(rows: "Dataset") -> bytes:
    return _json({name: rows[name][:] for name in rows.column_names})


def open_run(directory: Path, config: StudyConfig, task: "Task") -> StudyConfig:
    """Create the folder of a run, or resume the run that it holds; return the run's settings.

    Writes run.toml: the settings, the versions, the metrics, the seeds of the trainings and the
    chips, the second stage with its devices, and the hashes of `training_hashes`. A resumed run may
    be executed differently, and may grow: devices, times, chip instances and trainings are added to
    those that it has, and are in the settings returned. Settings that change a figure must be the
    same.

    Raises:
        ValueError: The folder holds another run, or files that do not belong to a run.
        OSError: The folder cannot be created or written.
    """
    check_new(directory)
    if not (directory / RUN_FILE).is_file():
        return _recorded(directory, config, task)
    there, known = read_run(directory)
    config = _grown(there, config)
    # First, as other devices have other hashes too.
    if there.training.then == ("devices",):
        _check_second_stage(directory, known.get("second_stage", []), config)
    before = _fixed(there) | known.get("hashes", {}) | {"metrics": known.get("metrics")}
    now = _fixed(config) | training_hashes(config, task) | {"metrics": list(task.metrics)}
    check_same(f"The output {directory}", "run", before, now)
    # Raises where an added device has the name of another one.
    config.hardware.cards()
    old, new = known.get("versions", {}), _versions()
    if changed := ", ".join(f"{n} {old.get(n)} to {new[n]}" for n in new if old.get(n) != new[n]):
        warnings.warn(
            f"The run in {directory} was begun with other versions ({changed}): what is measured "
            "from now on can differ.",
            stacklevel=2,
        )
    return config if there == config else _recorded(directory, config, task)


def _recorded(directory: Path, config: StudyConfig, task: "Task") -> StudyConfig:
    """Write run.toml, and return the settings."""
    records = {
        "versions": _versions(),
        "seeds": _seeds(config, config.training.trainings, config.run.repeats),
        "metrics": list(task.metrics),
        "hashes": training_hashes(config, task),
        "second_stage": [str(ages) for ages in config.second_stage()],
    }
    known = {name: record for name, record in records.items() if record}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / RUN_FILE, tomli_w.dumps(flat(config) | known).encode())
    return config


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def record_seeds(directory: Path, config: StudyConfig, trainings: int, chips: int) -> None:
    """Write the seeds of the trainings and chips that were measured to run.toml.

    With `until_ci` they are more than the run began with.
    """
    path = directory / RUN_FILE
    recorded, seeds = read_toml(path, f"The file {path}"), _seeds(config, trainings, chips)
    if recorded.get("seeds") != seeds:
        write_atomically(path, tomli_w.dumps(recorded | {"seeds": seeds}).encode())


def _seeds(config: StudyConfig, trainings: int, chips: int) -> dict[str, list[int]]:
    return {
        "trainings": [training_seed(config, training) for training in range(trainings)],
        "chips": [config.run.seed + repeat for repeat in range(chips)],
    }


def check_new(directory: Path, work: str = "run", own: tuple[str, ...] = (RUN_FILE,)) -> None:
    """Raise ValueError if a folder holds anything but device cards and files being written.

    Not where it holds some work already: one of its `own` files.
    """
    if any((directory / name).is_file() for name in own):
        return
    found = directory.iterdir() if directory.is_dir() else ()
    foreign = any(path.name != CARDS_FOLDER and not path.name.startswith(".") for path in found)
    if foreign or directory.is_file():
        raise ValueError(
            f"The output {directory} holds files that do not belong to a {work}: name an empty or "
            "new folder."
        )


def read_run(directory: Path) -> tuple[StudyConfig, dict[str, Any]]:
    """Return the settings of a run and its records (versions, seeds, hashes).

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: Its run.toml is damaged.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"The folder {directory} holds no run: it should hold {RUN_FILE} and {STORE_FILE}, "
            "which compare writes."
        )
    recorded = read_toml(path, f"The file {path}")
    try:
        config = resolve({}, path)
    except ValueError as error:
        raise ValueError(f"The settings in {path} are not valid: {error}") from None
    return config, {name: recorded[name] for name in RECORDS if name in recorded}


def training_seed(config: StudyConfig, training: int) -> int:
    """Return the seed of a training, by its index."""
    return (config.run.seed + training) % 2**32


def check_same(where: str, work: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting of some work differs from that where it is to be resumed.

    Of paths, the last parts are compared, which a move of the tree keeps.
    """
    before, now = _without_folders(before), _without_folders(now)
    for name in {**now, **before}:
        if now.get(name) != before.get(name):
            if name.endswith("_hash"):
                what = name.removesuffix("_hash").replace("_", " ")
                raise ValueError(
                    f"{where} holds another {work}, with other content of the {what}: restore it, "
                    "or name another folder."
                )
            # The setting itself is in no file, as it may name code.
            option = " (--metric)" if name == "metrics" else ""
            raise ValueError(
                f"{where} holds another {work}, whose {name} is {before.get(name)!r} and not "
                f"{now.get(name)!r}: name another folder, or the same settings{option} to resume "
                "it."
            )


def _without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    def last(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [last(each) for each in value]
        if not isinstance(value, str):
            return value
        # A text may list devices, each with ages.
        return ",".join(Path(part).name for part in value.split(","))

    return {name: last(value) if name in _PATHS else value for name, value in settings.items()}


def with_card_files(
    settings: Mapping[str, Any], directory: Path, own: tuple[str, ...] = (RUN_FILE,)
) -> dict[str, Any]:
    """Return settings in which each `DeviceCard` is the path of its file in a run's folder.

    A card that is equal to the shipped one of its name is that name. A device at a time, such as
    ``card.at("1d")``, becomes ``"PATH@1d"``. Files are written to the subfolder ``devices``; `own`
    are the files that show that a folder is that of a run.

    Raises:
        ValueError: A card cannot be written, two different cards have the same name, or the folder
            holds files that do not belong to a run.
        OSError: A file cannot be written.

    Example:
        >>> card = DeviceCard.load("pcm-hermes-2")
        >>> with_card_files({"devices": [card], "injection": card.at("1d")}, Path("run"))
        {'devices': ['pcm-hermes-2'], 'injection': 'pcm-hermes-2@1d'}
    """
    written: dict[Path, DeviceCard] = {}

    def text(value: Any) -> Any:
        if isinstance(value, DeviceAtTime):
            return f"{text(value.card)}@{format_time(value.time)}"
        if isinstance(value, DeviceCard):
            return name_or_file(value)
        return [text(each) for each in value] if isinstance(value, list | tuple) else value

    def name_or_file(card: DeviceCard) -> str:
        with suppress(CardError):
            if DeviceCard.load(card.name) == card:
                return card.name
        path = (directory / CARDS_FOLDER / f"{place_name(card.name)}.toml").resolve()
        if written.setdefault(path, card) != card:
            raise ValueError(
                f"Two different cards have the name {card.name}: give each its own, as in "
                "card.model_copy(update={'name': 'mine'})."
            )
        content = card_toml(card)
        check_new(directory, own=own)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())
        return str(path)

    return {name: text(value) for name, value in settings.items()}


def card_toml(card: DeviceCard) -> str:
    """Return a card as the text of its TOML file; raise ValueError if no file can state it."""
    data = card.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if "table" in data.get("drift", {}):
        # The table begins with the programmed state.
        data.pop("programming", None)
    # An error names the key that no file can state.
    if DeviceCard.from_data(data, f'Device card "{card.name}"') != card:
        raise ValueError(
            f"The card {card.name} cannot be written to a file, as its drift table begins with the "
            "programming noise that it lacks: use the setting programming_noise=False instead."
        )
    return tomli_w.dumps(data)


def _grown(there: StudyConfig, asked: StudyConfig) -> StudyConfig:
    """Return the requested settings together with what a run has of those that may grow."""
    trainings = max(there.training.trainings, asked.training.trainings)
    by_file = {Path(device).name: device for device in asked.hardware.devices}
    devices = []
    for device in there.hardware.devices:
        # A card file that has moved is at its new path.
        again = by_file.get(Path(device).name, device)
        moved = not Path(device).exists() or Path(device).resolve() == Path(again).resolve()
        devices.append(again if moved else device)
    together = tuple(dict.fromkeys((*devices, *asked.hardware.devices)))
    return asked.replace(
        devices=together,
        **({"costs": _grown_costs(there, asked, together)} if len(asked.run.costs) > 1 else {}),
        times=tuple(dict.fromkeys((*there.run.times, *asked.run.times))),
        repeats=max(there.run.repeats, asked.run.repeats),
        # Not where all adapters are saved ones, on which the setting has no effect.
        **({"trainings": trainings} if trainings > 1 else {}),
    )


def _grown_costs(there: StudyConfig, asked: StudyConfig, devices: Sequence[str]) -> tuple[str, ...]:
    """Return a cost model for each device, of the request or else of the run."""
    known: dict[str, str] = {}
    for config in (there, asked):
        if len(config.run.costs) == len(config.hardware.devices):
            names = (Path(device).name for device in config.hardware.devices)
            known |= dict(zip(names, config.run.costs, strict=True))
    for device in devices:
        if Path(device).name not in known:
            raise ValueError(
                f"The setting costs names no cost model for {device}, a device that the run has "
                "already: name one cost model for all devices, or name all devices again."
            )
    return tuple(known[Path(device).name] for device in devices)


def _fixed(config: StudyConfig) -> dict[str, Any]:
    """Return the settings that must stay the same, also while a run grows."""
    return flat(config, (*CHANGEABLE, *_GROWING))


def _check_second_stage(directory: Path, before: Sequence[str], asked: StudyConfig) -> None:
    """Raise ValueError where a run is to grow beyond what its adapters were distilled on."""
    now = [str(ages) for ages in asked.second_stage()]
    if asked.training.then == ("devices",) and before != now:
        raise ValueError(
            f"The adapters of the output {directory} were trained for {', '.join(before)}: measure "
            "them on other devices or at later times with drift, or name another folder."
        )


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _hash(*parts: Any) -> str:
    """Return BLAKE2b of bytes and similar, in 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
