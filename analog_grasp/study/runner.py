"""Carrying out a study: adapters trained once, each chip programmed once, each cell kept."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import PeftModel

from analog_grasp.adapters.registry import ADAPTERS, check_placement, kind_of
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study import folder
from analog_grasp.study.adapters import (
    learned_parameters,
    load_with_hash,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.engines import engine
from analog_grasp.study.evaluator import Bench
from analog_grasp.study.grid import Chip, chips, times
from analog_grasp.study.layers import LAYERS_FILE, write_layers
from analog_grasp.study.leases import POLL, Claims, claiming
from analog_grasp.study.measuring import Measuring
from analog_grasp.study.progress import Progress, logged, silent
from analog_grasp.study.provenance import adapter_hash, card_hash, data_hash
from analog_grasp.study.records import AdapterRecord, Origin
from analog_grasp.study.store import Store
from analog_grasp.tasks import Task, tokenizer_for
from analog_grasp.training.loss import target_std


@dataclass
class Study:
    """A study whose every name has been found and every setting fits: ready to run.

    Made by `prepare`, which raises what can be known to be wrong before anything is trained.
    """

    settings: StudyConfig
    task: Task
    cards: dict[str, DeviceCard]
    """The devices by their cards' names, in the order of the settings."""
    adapters: dict[str, str]
    """What is compared: the name in tables, and what the settings call it (a kind or a folder)."""
    directory: Path
    loaded: dict[str, tuple[PeftModel, str]] = field(default_factory=dict)
    """The saved adapters as they were loaded to be checked, with their models' hashes."""


def prepare(settings: StudyConfig, directory: Path) -> Study:
    """Find the task, the model, the devices and the adapters, and claim the output folder.

    Raises:
        ValueError: A name is unknown, a setting does not fit, or the folder holds another run.
        FileNotFoundError: The model's or the task's files are not there.
        OSError: The folder cannot be written.
    """
    engine(settings)
    cards = settings.hardware.cards()
    task = settings.task.load()
    target_std(settings.training.noise_target)
    adapters = adapter_names(settings.model.adapters)
    loaded = {}
    for name, asked in adapters.items():
        if _is_saved(asked):
            loaded[name] = load_with_hash(
                Path(asked), settings.model.name, task, settings.model.trust_remote_code
            )
            if kind := kind_of(loaded[name][0].active_peft_config):
                check_placement(kind, settings.hardware.placement)
        else:
            check_placement(asked, settings.hardware.placement)
            new_adapter(settings, task, asked)
    folder.claim(directory, settings)
    return Study(settings, task, cards, adapters, directory, loaded)


def run(study: Study, progress: Progress = silent) -> None:
    """Train what is not trained and measure what is not measured; each is kept as it comes.

    Several processes that run the same study share its work.

    Raises:
        ValueError: A score is not finite, or a trained adapter's folder has been changed.
        RuntimeError: Workers die again and again.
        OSError: The disk is full or a file cannot be written; what was measured is kept.
    """
    progress = logged(progress, study.directory / folder.LOG_FILE)
    with Store(study.directory / folder.STORE_FILE) as store, claiming(store) as claims:
        hashes = {name: card_hash(card) for name, card in study.cards.items()}
        for asked, (name, hashed) in zip(
            study.settings.hardware.devices, hashes.items(), strict=True
        ):
            store.set_card(name, hashed, asked)
        models, records = _all_trained(study, store, claims, progress)
        origins = {
            (adapter, device): Origin(
                record.model_hash, record.data_hash, record.fingerprint, hashed, _options(study)
            )
            for adapter, record in records.items()
            for device, hashed in hashes.items()
        }
        settings = study.settings
        bench = Bench(
            study.task, models, study.cards, settings.hardware.deploy_arguments(), settings.hardware
        )
        Measuring(study.settings, bench, origins, store, claims, progress).finish()
        layers = study.directory / LAYERS_FILE
        if not layers.exists() and claims.take(LAYERS_FILE):
            first = [Chip(device, 0, settings.run.seed) for device in study.cards]
            write_layers(layers, bench, first, times(settings), progress)
            claims.release(LAYERS_FILE)


def done_of_all(study: Study) -> tuple[int, int]:
    """How many cells of a study are measured, and how many there are as far as is known yet."""
    each = len(study.adapters) * len(study.settings.run.times)
    with Store(study.directory / folder.STORE_FILE) as store:
        measured = store.measurements()
    # A cell is measured by all metrics of the task at once.
    done = {measurement.key._replace(metric="") for measurement in measured}
    values = each * len(study.task.metrics)
    return len(done), each * len(chips(study.settings, study.cards, values, measured))


def adapter_names(adapters: tuple[str, ...]) -> dict[str, str]:
    """The adapters by the names that tables use: a kind's own, or a folder's last part.

    Raises:
        ValueError: Two have the same name.
    """
    named = {Path(a).resolve().name if _is_saved(a) else a: a for a in adapters}
    if len(named) < len(adapters):
        raise ValueError(
            f"Two of the adapters {', '.join(adapters)} have the same name: saved adapters are "
            "called by the last part of their folder, which must differ."
        )
    return named


def _options(study: Study) -> str:
    """The settings of a deployment that no column tells."""
    hardware = study.settings.hardware
    changes = hardware.changes()
    if hardware.placement == "programmed":
        changes = {"programming_error": hardware.programming_error} | changes
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _all_trained(
    study: Study, store: Store, claims: Claims, progress: Progress
) -> tuple[dict[str, PeftModel], dict[str, AdapterRecord]]:
    """Every adapter and its record, trained by this process or by another on the same store."""
    found: dict[str, tuple[PeftModel, AdapterRecord]] = {}
    while len(found) < len(study.adapters):
        waiting = [name for name in study.adapters if name not in found]
        for name in waiting:
            if claims.take(f"adapter {name}"):
                found[name] = _trained(study, name, store, progress)
                claims.release(f"adapter {name}")
        if len(waiting) + len(found) == len(study.adapters):
            time.sleep(POLL)
    models = {name: found[name][0] for name in study.adapters}
    return models, {name: found[name][1] for name in study.adapters}


def _trained(
    study: Study, adapter: str, store: Store, progress: Progress
) -> tuple[PeftModel, AdapterRecord]:
    """The adapter, saved before this run or trained in it, as it lies in its folder."""
    asked = study.adapters[adapter]
    path = Path(asked) if _is_saved(asked) else study.directory / "adapters" / adapter
    known = next((r for r in store.adapters() if r.adapter == adapter), None)
    seconds = 0.0
    if known is None and not _is_saved(asked):
        fresh = new_adapter(study.settings, study.task, asked)
        seconds = train_adapter(fresh, study.settings, study.task, f"training {adapter}", progress)
        save_adapter(fresh, path)
    fingerprint = adapter_hash(path)
    if known is not None and not fingerprint.startswith(known.fingerprint):
        raise _changed(f"adapter in {path}")
    if adapter not in study.loaded:
        study.loaded[adapter] = load_with_hash(
            path, study.settings.model.name, study.task, study.settings.model.trust_remote_code
        )
    model, base = study.loaded[adapter]
    data = data_hash(study.task, tokenizer_for(model))
    if known is None:
        record = _record(study, adapter, path, model, seconds)
    elif known.model_hash not in ("", base):
        raise _changed(f"model of the adapter {adapter}")
    elif known.data_hash not in ("", data):
        raise _changed(f"data of the task {study.task.name}")
    else:
        record = known
    record = replace(record, fingerprint=fingerprint, model_hash=base, data_hash=data)
    store.add_adapter(record)
    return model, record


def _changed(what: str) -> ValueError:
    return ValueError(
        f"The {what} is not the one that this run has measured: put it back, or name another "
        "output folder."
    )


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
        fingerprint="",
    )


def _is_saved(adapter: str) -> bool:
    """Whether an entry of the settings is the folder of a saved adapter, and not a kind."""
    return adapter not in ADAPTERS and ("/" in adapter or Path(adapter).is_dir())
