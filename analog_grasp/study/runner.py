"""Runner of a study: trains each adapter, programs each chip once, stores each cell at once.

`run` executes a study from `analog_grasp.study.study.prepare`: `_train_adapters`, then
`_measure_cells`, both again if `until_ci` asks for more trainings, then the weight errors of the
layers. Several processes may run the same study,
on one or several machines; leases in the store divide the work between them.
"""

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path

from peft import PeftModel

from analog_grasp.study.cost_table import COSTS_FILE, write_costs
from analog_grasp.study.engines import engine
from analog_grasp.study.evaluator import (
    LAYERS_FILE,
    Cell,
    Chip,
    Evaluator,
    Job,
    ModelKey,
    Subject,
    check_metrics,
    share_frozen,
    training_folder,
    write_layers,
)
from analog_grasp.study.leases import POLL_SECONDS, Leases, open_leases
from analog_grasp.study.plan import Plan
from analog_grasp.study.progress import Progress, logged, silent
from analog_grasp.study.provenance import (
    LOG_FILE,
    STORE_FILE,
    adapter_hash,
    card_hash,
    data_hash,
    training_seed,
)
from analog_grasp.study.records import AdapterRecord, Measurement, Origin
from analog_grasp.study.schedules import fit_schedules
from analog_grasp.study.store import Store
from analog_grasp.study.study import Study, deployment_text
from analog_grasp.study.trained_adapters import (
    is_saved,
    learned_parameters,
    load_with_hash,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.study.variants import TreatedAdapter
from analog_grasp.utils.time import format_time

type _Place = tuple[Chip, Subject]
"""A cell: where, and what is measured there."""


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
        trainings = 0
        while (wanted := study.plan(store.measurements()).trainings) > trainings:
            trainings = wanted
            models, records = _train_adapters(study, trainings, store, leases, progress)
            evaluator = Evaluator(
                *(study.task, models, study.cards, study.config.hardware),
                recalibrated=study.directory / "recalibrated",
            )
            if study.config.run.schedule:
                fit_schedules(study, evaluator, leases, progress)
            origins = {
                (subject, device): _origin(study, records, subject, hashed)
                for subject in study.subjects(trainings)
                for device, hashed in hashes.items()
            }
            _measure_cells(study, evaluator, origins, store, leases, progress)
        if leases.acquire(LAYERS_FILE):
            first = [Chip(device, 0, study.config.run.seed) for device in study.cards]
            path = study.directory / LAYERS_FILE
            write_layers(path, evaluator, first, study.times, progress)
            leases.release(LAYERS_FILE)
        if study.config.run.costs and leases.acquire(COSTS_FILE):
            by_name = {adapter: model for (adapter, index), model in models.items() if index == 0}
            devices, settings = list(study.cards), study.config
            write_costs(study.directory, by_name, devices, settings.hardware, settings.run)
            leases.release(COSTS_FILE)


def measured_cells(study: Study) -> tuple[int, int]:
    """Return how many cells of a study are measured, and how many there are as far as known."""
    with Store(study.directory / STORE_FILE) as store:
        measured = store.measurements()
    # All metrics of a cell are measured at once.
    done = {measurement.key._replace(metric="") for measurement in measured}
    return len(done), _count_cells(study, study.plan(measured))


def _count_cells(study: Study, plan: Plan) -> int:
    return len(study.subjects(plan.trainings)) * len(study.chips(plan))


def _origin(
    study: Study, records: Mapping[ModelKey, AdapterRecord], subject: Subject, card: str
) -> Origin:
    """Return what the measurements of a subject on a device depend on."""
    record, deployed = records[subject.model], deployment_text(study.config)
    variant = TreatedAdapter.parse(subject.adapter)
    if variant.treatment:
        text = f"recalibrate={variant.examples}" if variant.examples else variant.treatment
        deployed = ", ".join(filter(None, (deployed, text)))
    return Origin(record.model_hash, record.data_hash, record.fingerprint, card, deployed)


def _train_adapters(
    study: Study, trainings: int, store: Store, leases: Leases, progress: Progress
) -> tuple[dict[ModelKey, PeftModel], dict[ModelKey, AdapterRecord]]:
    """Return every adapter and its record, trained by this process or by another on the store."""
    wanted = study.trainings(trainings)
    found: dict[ModelKey, tuple[PeftModel, AdapterRecord]] = {}
    while len(found) < len(wanted):
        before = len(found)
        for key in [key for key in wanted if key not in found]:
            work = f"adapter {training_folder(*key)}"
            if leases.acquire(work):
                found[key] = _trained(study, key, store, progress)
                leases.release(work)
                # At once, as each brings a copy of the pre-trained model.
                share_frozen(model for model, _ in found.values())
        if len(found) == before:
            time.sleep(POLL_SECONDS)
    return {key: found[key][0] for key in wanted}, {key: found[key][1] for key in wanted}


def _trained(
    study: Study, key: ModelKey, store: Store, progress: Progress
) -> tuple[PeftModel, AdapterRecord]:
    """Train an adapter unless it is trained, and return it as loaded from its folder."""
    config, (adapter, training) = study.config, key
    asked, name = study.adapters[adapter], training_folder(*key)
    path = Path(asked) if is_saved(asked) else study.directory / "adapters" / name
    known = next((r for r in store.adapters() if (r.adapter, r.training) == key), None)
    seconds = 0.0
    if known is None and not is_saved(asked):
        seeded = config.replace(seed=training_seed(config, training))
        fresh = new_adapter(seeded, study.task, asked)
        text = f"training {adapter}" + (f", seed {seeded.run.seed}" if training else "")
        seconds = train_adapter(fresh, seeded, study.task, text, progress)
        save_adapter(fresh, path)
    fingerprint = adapter_hash(path)
    if known is not None and known.fingerprint != fingerprint:
        raise _changed(f"adapter in {path}")
    if key not in study.loaded:
        study.loaded[key] = load_with_hash(
            path, config.model.name, study.task, config.model.trust_remote_code
        )
    model, base = study.loaded[key]
    data = data_hash(study.task, study.task.tokenizer_of(model))
    if known is None:
        known = _record(study, key, path, seconds, (fingerprint, base, data))
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
    study: Study, key: ModelKey, path: Path, seconds: float, hashes: tuple[str, str, str]
) -> AdapterRecord:
    model, (adapter, training) = study.loaded[key][0], key
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
        *(adapter, study.task.name, own, head, digital, seconds, relative), *hashes, training
    )


def _measure_cells(
    study: Study,
    evaluator: Evaluator,
    origins: Mapping[tuple[Subject, str], Origin],
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
            handed_out: dict[Chip, set[Subject]] = {}
            jobs = _leased_jobs(study, origins, store, leases, missing, failures, handed_out)
            first = next(jobs, None)
            if first is None:
                # Other processes hold every chip that is left.
                time.sleep(POLL_SECONDS)
                continue
            count = sum(map(len, missing.values()))
            total = _count_cells(study, study.plan(store.measurements()))
            advance = progress(f"measuring {count} of {total} cells", count)
            with closing(measure(evaluator, chain([first], jobs))) as cells:
                for cell in cells:
                    left = handed_out.get(cell.chip, set())
                    if cell.subject not in left:
                        continue  # Yielded before, by a job that was restarted.
                    place = (cell.chip, cell.subject)
                    if cell.failure:
                        failures[place] = cell.failure
                    else:
                        origin = origins[cell.subject, cell.chip.device]
                        store.add(_measurements(study, cell), origin)
                        stored.add(place)
                    left.remove(cell.subject)
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
    origins: Mapping[tuple[Subject, str], Origin],
    store: Store,
    failures: Mapping[_Place, str],
    chip: Chip | None = None,
) -> dict[Chip, set[Subject]]:
    """Return the cells to measure by chip, of all chips or of one; chips without any are omitted.

    A cell is missing while any metric of the task has no measurement with its present origin.
    """
    done = store.cells() if chip is None else store.cells(chip.device, chip.seed)
    chips = study.chips(study.plan(store.measurements())) if chip is None else [chip]
    missing = {
        chip: {
            subject
            for subject in dict.fromkeys(subject for subject, _ in origins)
            if (chip, subject) not in failures
            for metric in study.task.metrics
            if (study.key(chip, metric, subject), origins[subject, chip.device]) not in done
        }
        for chip in chips
    }
    return {chip: cells for chip, cells in missing.items() if cells}


def _leased_jobs(
    study: Study,
    origins: Mapping[tuple[Subject, str], Origin],
    store: Store,
    leases: Leases,
    missing: Iterable[Chip],
    failures: Mapping[_Place, str],
    handed_out: dict[Chip, set[Subject]],
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


def _check_progress(missing: Mapping[Chip, set[Subject]], stored: set[_Place]) -> None:
    """Raise if a stored cell is still missing: it would be measured endlessly."""
    for chip, subjects in missing.items():
        for subject in subjects:
            if (chip, subject) in stored:
                raise RuntimeError(
                    f"The cell {_cell_name(chip, subject)}, was measured but is still missing from "
                    "the store: its scores must hold every metric of the task."
                )


def _measurements(study: Study, cell: Cell) -> list[Measurement]:
    return [
        Measurement(*study.key(cell.chip, metric, cell.subject), value=value)
        for metric, value in cell.scores.items()
    ]


def _chip_name(chip: Chip) -> str:
    return f"chip {chip.seed} of {chip.device}"


def _cell_name(chip: Chip, subject: Subject) -> str:
    training = f", training {subject.training}," if subject.training else ""
    where = f"{chip.device} at {format_time(subject.time_s)}, chip {chip.seed}"
    return f"{subject.adapter}{training} on {where}"


def _cell_text(cell: Cell) -> str:
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in cell.scores.items())
    return f"{_cell_name(cell.chip, cell.subject)}: {scores or cell.failure}"


def _failure_text(failures: Mapping[_Place, str]) -> str:
    place, reason = next(iter(failures.items()))
    more = len(failures) - 1
    others = f" Nor can {more} other {'cell' if more == 1 else 'cells'}." if more else ""
    return f"The cell {_cell_name(*place)}, cannot be scored: {reason}{others}"
