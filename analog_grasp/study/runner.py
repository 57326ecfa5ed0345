"""Runner of a study: trains each adapter once, programs each chip once, stores each cell at once.

`prepare` checks a request and returns a `Study`; `run` executes it: `_train_adapters`, then
`_measure_cells`, then the weight errors of the layers. Several processes may run the same study,
on one or several machines; leases in the store divide the work between them.
"""

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from peft import PeftModel

from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.engines import engine
from analog_grasp.study.evaluator import (
    LAYERS_FILE,
    Cell,
    Chip,
    Evaluator,
    Job,
    base_and_examples,
    check_metrics,
    variant_name,
    write_layers,
)
from analog_grasp.study.leases import POLL_SECONDS, Leases, open_leases
from analog_grasp.study.progress import Progress, logged, silent
from analog_grasp.study.provenance import (
    LOG_FILE,
    STORE_FILE,
    adapter_hash,
    card_hash,
    data_hash,
    open_run,
)
from analog_grasp.study.records import AdapterRecord, CellKey, Measurement, Origin
from analog_grasp.study.statistics import chip_count
from analog_grasp.study.store import Store
from analog_grasp.study.trained_adapters import (
    adapter_names,
    is_saved,
    learned_parameters,
    load_with_hash,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.tasks import Task
from analog_grasp.training.loss import target_std
from analog_grasp.utils.time import format_time, parse_time

type _Place = tuple[Chip, str, float]
"""Chip, adapter and drift time of a cell, s."""


@dataclass
class Study:
    """A study whose names are all known and whose settings fit: ready to run.

    Returned by `prepare`.

    Attributes:
        config: The settings, those of the resumed run included.
        task: The task.
        cards: The device cards by name, in the order of the settings.
        adapters: By their names in tables: the adapter's own name, or the folder of a saved one.
        directory: The output folder.
        loaded: Saved adapters as loaded for the check, with the hashes of their models.
    """

    config: StudyConfig
    task: Task
    cards: dict[str, DeviceCard]
    adapters: dict[str, str]
    directory: Path
    loaded: dict[str, tuple[PeftModel, str]] = field(default_factory=dict)

    def chips(self, measured: Iterable[Measurement]) -> list[Chip]:
        """Return the chip instances to measure, device by device, given what is measured so far."""
        known: dict[str, list[Measurement]] = {device: [] for device in self.cards}
        for measurement in measured:
            if measurement.device in known:
                known[measurement.device].append(measurement)
        values = self.cells_per_chip * len(self.task.metrics)
        return [
            Chip(device, repeat, self.config.run.seed + repeat)
            for device, cells in known.items()
            for repeat in range(chip_count(self.config.run, values, cells))
        ]

    @property
    def times(self) -> list[float]:
        """The drift times, s."""
        return drift_times(self.config)

    @property
    def cells_per_chip(self) -> int:
        """Number of cells of each chip instance."""
        return len(self.variants) * len(self.times)

    @property
    def variants(self) -> list[str]:
        """The adapters, and each of them after recalibration with each number of examples."""
        counts = (0, *self.config.run.recalibrate)
        return [variant_name(adapter, n) for adapter in self.adapters for n in counts]

    def key(self, chip: Chip, metric: str, adapter: str, seconds: float) -> CellKey:
        """Return the key of a measurement."""
        placement = self.config.hardware.placement
        return CellKey(
            *(self.task.name, metric, adapter, placement, chip.device, seconds),
            *(chip.repeat, chip.seed),
        )


def prepare(config: StudyConfig, directory: Path) -> Study:
    """Find the task, the model, the devices and the adapters, and create or resume the folder.

    Raises:
        ValueError: A name is unknown, a setting does not fit, the folder holds another run, or
            several processes were started by torchrun.
        FileNotFoundError: Files of the model or the task are missing.
        OSError: The folder cannot be written.
    """
    check_single_process()
    engine(config.run)
    cards = config.hardware.cards()
    task = config.task.load()
    target_std(config.training.noise_target)
    adapters = adapter_names(config.model.adapters)
    loaded = {}
    for name, asked in adapters.items():
        if is_saved(asked):
            loaded[name] = load_with_hash(
                Path(asked), config.model.name, task, config.model.trust_remote_code
            )
            if kind := kind_of(loaded[name][0]):
                check_placement(kind, config.hardware.placement)
        else:
            check_placement(asked, config.hardware.placement)
            new_adapter(config, task, asked)
    resumed = open_run(directory, config)
    if resumed.hardware.devices != config.hardware.devices:
        cards = resumed.hardware.cards()
    return Study(resumed, task, cards, adapters, directory, loaded)


def run(study: Study, progress: Progress = silent) -> None:
    """Train the adapters and measure the cells that are missing; each is stored at once.

    Raises:
        ValueError: A score is missing or not finite, or the files of an adapter have changed.
        RuntimeError: Workers die repeatedly.
        OSError: The disk is full or a file cannot be written; measured cells are kept.
    """
    progress = logged(progress, study.directory / LOG_FILE)
    with Store(study.directory / STORE_FILE) as store, open_leases(store) as leases:
        hashes = {name: card_hash(card) for name, card in study.cards.items()}
        for name, hashed in hashes.items():
            store.set_card(name, hashed)
        models, records = _train_adapters(study, store, leases, progress)
        evaluator = Evaluator(
            *(study.task, models, study.cards, study.config.hardware),
            recalibrated=study.directory / "recalibrated",
        )
        origins = {
            (variant, device): _origin(study, records, variant, hashed)
            for variant in study.variants
            for device, hashed in hashes.items()
        }
        _measure_cells(study, evaluator, origins, store, leases, progress)
        if leases.acquire(LAYERS_FILE):
            first = [Chip(device, 0, study.config.run.seed) for device in study.cards]
            path = study.directory / LAYERS_FILE
            write_layers(path, evaluator, first, study.times, progress)
            leases.release(LAYERS_FILE)


def measured_cells(study: Study) -> tuple[int, int]:
    """Return how many cells of a study are measured, and how many there are as far as known."""
    with Store(study.directory / STORE_FILE) as store:
        measured = store.measurements()
    # All metrics of a cell are measured at once.
    done = {measurement.key._replace(metric="") for measurement in measured}
    return len(done), study.cells_per_chip * len(study.chips(measured))


def check_single_process() -> None:
    """Raise where torchrun has started several processes, which would wait for each other.

    Raises:
        ValueError: There are several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"A study was started in {os.environ['WORLD_SIZE']} processes by torchrun, but divides "
            "its work itself: start it without torchrun and set the number of workers (--workers), "
            "or train each adapter with torchrun by the command train."
        )


def drift_times(config: StudyConfig) -> list[float]:
    """Return the drift times of a study, s, in the order of the settings."""
    return [parse_time(text) for text in config.run.times]


def deployment_text(config: StudyConfig) -> str:
    """Return the settings of a deployment that no column of results.csv holds."""
    programmed = config.hardware.placement == "programmed"
    error = {"programming_error": config.hardware.programming_error} if programmed else {}
    changes = error | config.hardware.changes()
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def _origin(study: Study, records: Mapping[str, AdapterRecord], variant: str, card: str) -> Origin:
    """Return what the measurements of a variant on a device depend on."""
    adapter, examples = base_and_examples(variant)
    record, deployed = records[adapter], deployment_text(study.config)
    if examples:
        deployed = ", ".join(filter(None, (deployed, f"recalibrate={examples}")))
    return Origin(record.model_hash, record.data_hash, record.fingerprint, card, deployed)


def _train_adapters(
    study: Study, store: Store, leases: Leases, progress: Progress
) -> tuple[dict[str, PeftModel], dict[str, AdapterRecord]]:
    """Return every adapter and its record, trained by this process or by another on the store."""
    found: dict[str, tuple[PeftModel, AdapterRecord]] = {}
    while len(found) < len(study.adapters):
        before = len(found)
        for name in [name for name in study.adapters if name not in found]:
            if leases.acquire(f"adapter {name}"):
                found[name] = _trained(study, name, store, progress)
                leases.release(f"adapter {name}")
        if len(found) == before:
            time.sleep(POLL_SECONDS)
    models = {name: found[name][0] for name in study.adapters}
    return models, {name: found[name][1] for name in study.adapters}


def _trained(
    study: Study, adapter: str, store: Store, progress: Progress
) -> tuple[PeftModel, AdapterRecord]:
    """Train an adapter unless it is trained, and return it as loaded from its folder."""
    config, asked = study.config, study.adapters[adapter]
    path = Path(asked) if is_saved(asked) else study.directory / "adapters" / adapter
    known = next((r for r in store.adapters() if r.adapter == adapter), None)
    seconds = 0.0
    if known is None and not is_saved(asked):
        fresh = new_adapter(config, study.task, asked)
        seconds = train_adapter(fresh, config, study.task, f"training {adapter}", progress)
        save_adapter(fresh, path)
    fingerprint = adapter_hash(path)
    if known is not None and known.fingerprint != fingerprint:
        raise _changed(f"adapter in {path}")
    if adapter not in study.loaded:
        study.loaded[adapter] = load_with_hash(
            path, config.model.name, study.task, config.model.trust_remote_code
        )
    model, base = study.loaded[adapter]
    data = data_hash(study.task, study.task.tokenizer_of(model))
    if known is None:
        known = _record(study, adapter, path, seconds, (fingerprint, base, data))
        store.add_adapter(known)
    if known.model_hash != base:
        raise _changed(f"model of the adapter {adapter}")
    if known.data_hash != data:
        raise _changed(f"data of the task {study.task.name}")
    return model, known


def _changed(what: str) -> ValueError:
    return ValueError(
        f"The {what} differs from the one that this run has measured: restore it, or name another "
        "output folder."
    )


def _record(
    study: Study, adapter: str, path: Path, seconds: float, hashes: tuple[str, str, str]
) -> AdapterRecord:
    model = study.loaded[adapter][0]
    own, head = learned_parameters(model)
    try:
        digital = study.task.scores(model)
        check_metrics(study.task, digital)
    except ValueError as error:
        raise ValueError(
            f"The adapter {adapter} cannot be scored before it is deployed: {error}"
        ) from error
    relative = Path(os.path.relpath(path, study.directory)).as_posix()
    return AdapterRecord(
        *(adapter, study.task.name, own, head, digital, seconds, relative), *hashes
    )


def _measure_cells(
    study: Study,
    evaluator: Evaluator,
    origins: Mapping[tuple[str, str], Origin],
    store: Store,
    leases: Leases,
    progress: Progress,
) -> None:
    """Measure until no cell is missing, together with other processes on the same store.

    Raises:
        ValueError: A cell cannot be scored. All other cells are measured before that.
        RuntimeError: Workers die repeatedly, or a measured cell is still missing.
        OSError: The disk is full or the store cannot be written; measured cells are kept.
    """
    measure = engine(study.config.run)
    failures: dict[_Place, str] = {}
    stored: set[_Place] = set()
    notes: dict[str, None] = {}
    try:
        while missing := _missing_cells(study, origins, store, failures):
            _check_progress(missing, stored)
            handed_out: dict[Chip, set[tuple[str, float]]] = {}
            jobs = _leased_jobs(study, origins, store, leases, missing, failures, handed_out)
            first = next(jobs, None)
            if first is None:
                # Other processes hold every chip that is left.
                time.sleep(POLL_SECONDS)
                continue
            count = sum(map(len, missing.values()))
            total = study.cells_per_chip * len(study.chips(store.measurements()))
            advance = progress(f"measuring {count} of {total} cells", count)
            with closing(measure(evaluator, chain([first], jobs))) as cells:
                for cell in cells:
                    left = handed_out.get(cell.chip, set())
                    if (cell.adapter, cell.time_s) not in left:
                        continue  # Yielded before, by a job that was restarted.
                    place = (cell.chip, cell.adapter, cell.time_s)
                    if cell.failure:
                        failures[place] = cell.failure
                    else:
                        store.add(
                            _measurements(study, cell), origins[cell.adapter, cell.chip.device]
                        )
                        stored.add(place)
                    left.remove((cell.adapter, cell.time_s))
                    if not left:
                        leases.release(_chip_name(cell.chip))
                    notes |= dict.fromkeys(cell.notes)
                    advance(_cell_text(cell))
    finally:
        for note in notes:
            warnings.warn(note, stacklevel=2)
    if failures:
        raise ValueError(_failure_text(failures))


def _missing_cells(
    study: Study,
    origins: Mapping[tuple[str, str], Origin],
    store: Store,
    failures: Mapping[_Place, str],
    chip: Chip | None = None,
) -> dict[Chip, set[tuple[str, float]]]:
    """Return the cells to measure by chip, of all chips or of one; chips without any are omitted.

    A cell is missing while any metric of the task has no measurement with its present origin.
    """
    done = store.cells() if chip is None else store.cells(chip.device, chip.seed)
    chips = study.chips(store.measurements()) if chip is None else [chip]
    missing = {
        chip: {
            (adapter, seconds)
            for adapter in study.variants
            for seconds in study.times
            if (chip, adapter, seconds) not in failures
            for metric in study.task.metrics
            if (study.key(chip, metric, adapter, seconds), origins[adapter, chip.device])
            not in done
        }
        for chip in chips
    }
    return {chip: cells for chip, cells in missing.items() if cells}


def _leased_jobs(
    study: Study,
    origins: Mapping[tuple[str, str], Origin],
    store: Store,
    leases: Leases,
    missing: Iterable[Chip],
    failures: Mapping[_Place, str],
    handed_out: dict[Chip, set[tuple[str, float]]],
) -> Iterator[Job]:
    """Yield a job for each chip that this process can lease, when the engine asks for more."""
    for chip in missing:
        if not leases.acquire(_chip_name(chip)):
            continue
        # Another process may have measured it since.
        left = _missing_cells(study, origins, store, failures, chip)
        if not left:
            leases.release(_chip_name(chip))
            continue
        handed_out[chip] = left[chip]
        yield Job(chip, frozenset(left[chip]))


def _check_progress(missing: Mapping[Chip, set[tuple[str, float]]], stored: set[_Place]) -> None:
    """Raise if a stored cell is still missing: it would be measured endlessly."""
    for chip, cells in missing.items():
        for adapter, seconds in cells:
            if (chip, adapter, seconds) in stored:
                raise RuntimeError(
                    f"The cell {_cell_name(chip, adapter, seconds)}, was measured but is still "
                    "missing from the store: its scores must hold every metric of the task."
                )


def _measurements(study: Study, cell: Cell) -> list[Measurement]:
    return [
        Measurement(*study.key(cell.chip, metric, cell.adapter, cell.time_s), value=value)
        for metric, value in cell.scores.items()
    ]


def _chip_name(chip: Chip) -> str:
    return f"chip {chip.seed} of {chip.device}"


def _cell_name(chip: Chip, adapter: str, seconds: float) -> str:
    return f"{adapter} on {chip.device} at {format_time(seconds)}, chip {chip.seed}"


def _cell_text(cell: Cell) -> str:
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in cell.scores.items())
    return f"{_cell_name(cell.chip, cell.adapter, cell.time_s)}: {scores or cell.failure}"


def _failure_text(failures: Mapping[_Place, str]) -> str:
    place, reason = next(iter(failures.items()))
    more = len(failures) - 1
    others = f" Nor can {more} other {'cell' if more == 1 else 'cells'}." if more else ""
    return f"The cell {_cell_name(*place)}, cannot be scored: {reason}{others}"
