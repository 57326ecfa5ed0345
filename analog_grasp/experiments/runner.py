"""Carrying out a study: adapters trained once, each chip programmed once, each cell kept."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.config import PeftConfig
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback

from analog_grasp.adapters.baselines import ADAPTERS, adapter_config
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices import DeviceCard, format_time
from analog_grasp.experiments import folder
from analog_grasp.experiments.grid import Chip, cell_count, chips, times
from analog_grasp.experiments.settings import Settings
from analog_grasp.experiments.store import AdapterRecord, CellKey, Measurement, Store
from analog_grasp.tasks import Task, load_base_model, load_task
from analog_grasp.training import train
from analog_grasp.training.objective import spread_target

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

Progress = Callable[[str, int], Callable[[], None]]
"""Begins a stage of so many steps, and returns what is to be called after each."""


def silent(_description: str, _total: int) -> Callable[[], None]:
    """The progress that shows nothing."""
    return lambda: None


@dataclass
class Study:
    """A study whose every name has been found and every setting fits: ready to run.

    Made by `prepare`, which raises what can be known to be wrong before anything is trained.
    """

    settings: Settings
    task: Task
    cards: dict[str, DeviceCard]
    adapters: dict[str, str]
    """What is compared: the name in tables, and what the settings call it (a kind or a folder)."""
    directory: Path


def prepare(settings: Settings, directory: Path) -> Study:
    """Find the task, the model, the devices and the adapters, and claim the output folder.

    Raises:
        ValueError: A name is unknown, a setting does not fit, or the folder holds another run.
        FileNotFoundError: The model's or the task's files are not there.
        OSError: The folder cannot be written.
    """
    cards = {name: DeviceCard.load(name) for name in settings.devices}
    task = load_task(settings.task, settings.data_dir)
    spread_target(settings.noise_target)
    for adapter in settings.adapters:
        _fits(settings, task, adapter)
    adapters = _named(settings.adapters)
    folder.claim(directory, settings)
    return Study(settings, task, cards, adapters, directory)


def run(study: Study, progress: Progress = silent) -> None:
    """Train what is not trained and measure what is not measured; each is kept as it comes.

    Raises:
        ValueError: A score is not finite, or a trained adapter's folder has been changed.
        OSError: The disk is full or a file cannot be written; what was measured is kept.
    """
    with Store(study.directory / folder.STORE_FILE) as store:
        models = {name: _trained(study, name, store, progress) for name in study.adapters}
        _measure(study, models, store, progress)


def _measure(
    study: Study, models: Mapping[str, PeftModel], store: Store, progress: Progress
) -> None:
    done = store.keys()
    missing = {chip: _cells(set(_keys(study, chip)) - done) for chip in chips(study.settings)}
    left = sum(map(len, missing.values()))
    advance = progress(f"measuring {left} of {cell_count(study.settings)} cells", left)
    for card_name, card in study.cards.items():
        deployed: list[tuple[str, Deployment, nn.Module]] = []
        for chip in (c for c in missing if c.device == card_name and missing[c]):
            deployed = deployed or list(_deployed(models, card, study.settings.placement))
            for deployment in {id(d): d for _, d, _ in deployed}.values():
                deployment.program(chip.seed)
            _measure_chip(study, chip, deployed, missing[chip], store, advance)


def _measure_chip(
    study: Study,
    chip: Chip,
    deployed: list[tuple[str, Deployment, nn.Module]],
    missing: set[tuple[str, float]],
    store: Store,
    advance: Callable[[], None],
) -> None:
    for seconds in times(study.settings):
        for adapter, deployment, model in deployed:
            if (adapter, seconds) not in missing:
                continue
            if deployment.time_s != seconds:
                deployment.drift_to(seconds)
            try:
                scores = study.task.scores(model)
            except ValueError as error:
                raise ValueError(
                    f"The cell {adapter} on {chip.device} at {format_time(seconds)}, chip "
                    f"{chip.seed}, cannot be scored: {error}"
                ) from error
            keys = (_key(study, m, adapter, chip, seconds) for m in study.task.metrics)
            store.add([Measurement(*key, value=scores[key.metric]) for key in keys])
            advance()


def _deployed(
    models: Mapping[str, PeftModel], card: DeviceCard, placement: str
) -> Iterator[tuple[str, Deployment, nn.Module]]:
    """Each adapter on its chip; digital adapters share the chip that holds the frozen weights."""
    shared: Deployment | None = None
    for name, model in models.items():
        if shared is not None and placement == "digital":
            yield name, shared, shared.attach(model)
            continue
        shared = deploy(model, card, placement=placement)  # type: ignore[arg-type]
        yield name, shared, shared.model


def _trained(study: Study, adapter: str, store: Store, progress: Progress) -> PeftModel:
    """The adapter, saved before this run or trained in it, as it lies in its folder."""
    asked = study.adapters[adapter]
    path = Path(asked) if _is_saved(asked) else study.directory / "adapters" / adapter
    known = next((r for r in store.adapters() if r.adapter == adapter), None)
    seconds = 0.0
    if known is None and not _is_saved(asked):
        fresh = new_adapter(study.settings, study.task, asked)
        seconds = train_adapter(fresh, study.settings, study.task, f"training {adapter}", progress)
        save_adapter(fresh, path)
    elif known is not None and known.fingerprint != _fingerprint(path):
        raise ValueError(
            f"The adapter in {path} is not the one that this run has measured: put it back, or "
            "name another output folder."
        )
    model = load_adapter(path, study.settings.model, study.task)
    if known is None:
        store.add_adapter(_record(study, adapter, path, model, seconds))
    return model


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
    named = _base_model_name(path)
    base = load_base_model(model or named, task)
    try:
        adapted = PeftModel.from_pretrained(base, path, use_safetensors=True)
    except SafetensorError as error:
        raise ValueError(
            f"The file {path / _ADAPTER_FILES[1]} is damaged ({error}): train the adapter again."
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"The adapter in {path} does not fit the model {base.name_or_path} with the task "
            f"{task.name} ({reason}): name the model and the task that it was made for."
        ) from error
    return adapted.to(_processor()).eval()


def _base_model_name(path: Path) -> str | None:
    """The pre-trained model that a saved adapter names, if it does."""
    if not all((path / file).is_file() for file in _ADAPTER_FILES):
        raise FileNotFoundError(
            f"The folder {path} holds no adapter: it should hold {' and '.join(_ADAPTER_FILES)}, "
            "which save_pretrained writes."
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
        if config.peft_type is None:
            raise KeyError("peft_type")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The file {path / _ADAPTER_FILES[0]} is not one that peft wrote ({error}): train the "
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
    config: PeftConfig = adapter_config(
        adapter,
        groups=settings.groups,
        target_modules=settings.target_modules
        if isinstance(settings.target_modules, str)
        else list(settings.target_modules),
        noise_weight=settings.noise_weight,
        noise_target=settings.noise_target,
        sampling=settings.sampling,
    )
    base = load_base_model(settings.model, task, settings.seed)
    try:
        return get_peft_model(base, config).to(_processor())
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
    start = time.perf_counter()
    train(
        model,
        task,
        injection=settings.injection,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=settings.seed,
        callbacks=[_Steps(description, progress)],
    )
    return time.perf_counter() - start


def _record(
    study: Study, adapter: str, path: Path, model: PeftModel, seconds: float
) -> AdapterRecord:
    inside = path.is_relative_to(study.directory)
    own, head = learned_parameters(model)
    try:
        digital = study.task.scores(model)
    except ValueError as error:
        raise ValueError(
            f"The adapter {adapter} cannot be scored before it is deployed: {error}"
        ) from error
    return AdapterRecord(
        adapter=adapter,
        task=study.task.name,
        trainable_parameters=own,
        head_parameters=head,
        digital=digital,
        train_seconds=seconds,
        path=str(path.relative_to(study.directory) if inside else path),
        fingerprint=_fingerprint(path),
    )


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
        self._advance: Callable[[], None] = lambda: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance = self._progress(self._description, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._advance()


def _is_saved(adapter: str) -> bool:
    """Whether an entry of the settings is the folder of a saved adapter, and not a kind."""
    return adapter not in ADAPTERS and ("/" in adapter or Path(adapter).is_dir())


def _fits(settings: Settings, task: Task, adapter: str) -> None:
    """Raise what is wrong with an adapter before anything is trained."""
    if _is_saved(adapter):
        load_adapter(Path(adapter), settings.model, task)
    else:
        new_adapter(settings, task, adapter)


def _named(adapters: tuple[str, ...]) -> dict[str, str]:
    """The adapters by the names that tables use: a kind's own, or a folder's last part."""
    named = {Path(a).resolve().name if _is_saved(a) else a: a for a in adapters}
    if len(named) < len(adapters):
        raise ValueError(
            f"Two of the adapters {', '.join(adapters)} have the same name: saved adapters are "
            "called by the last part of their folder, which must differ."
        )
    return named


def _keys(study: Study, chip: Chip) -> list[CellKey]:
    return [
        _key(study, metric, adapter, chip, seconds)
        for adapter in study.adapters
        for seconds in times(study.settings)
        for metric in study.task.metrics
    ]


def _key(study: Study, metric: str, adapter: str, chip: Chip, seconds: float) -> CellKey:
    return CellKey(
        study.task.name,
        metric,
        adapter,
        study.settings.placement,
        chip.device,
        seconds,
        chip.repeat,
        chip.seed,
    )


def _cells(keys: set[CellKey]) -> set[tuple[str, float]]:
    return {(key.adapter, key.time_s) for key in keys}


def _fingerprint(path: Path) -> str:
    """A hash of an adapter's weights; of nothing where they are gone."""
    weights = path / _ADAPTER_FILES[1]
    content = weights.read_bytes() if weights.is_file() else b""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _processor() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
