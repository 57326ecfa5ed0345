"""Runner of a study: trains each adapter, programs each chip once, stores each cell at once.

`run` executes a study from `analog_grasp.study.study.prepare`: it trains the adapters and measures
the cells, both again if `until_ci` asks for more trainings, then the weight errors of the layers
and the costs. Several processes may run the same study, on one or several machines; leases in the
store divide the work between them.
"""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain

from analog_grasp.costs.estimate import Costs, cost_rows, costs_csv
from analog_grasp.costs.work import count_work
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.crossbar.write_tolerance import mean_pulses
from analog_grasp.devices.cost_model import CostModel
from analog_grasp.study.engines import measure
from analog_grasp.study.evaluator import Cell, Chip, Evaluator, Job, Subject
from analog_grasp.study.preparation import Preparation
from analog_grasp.study.progress import Progress, logged
from analog_grasp.study.provenance import LOG_FILE, STORE_FILE, card_hash, record_seeds
from analog_grasp.study.records import (
    LAYERS_FILE,
    Measurement,
    Origin,
    TreatedAdapter,
    read_layers,
    write_layers,
)
from analog_grasp.study.sections import RunSettings
from analog_grasp.study.store import POLL_SECONDS, Leases, Store
from analog_grasp.study.study import Study
from analog_grasp.tasks.base import position_limit
from analog_grasp.utils.io import place_name, write_atomically
from analog_grasp.utils.time import format_time

COSTS_FILE = "costs.csv"
# Tokens per sequence of the costs, or as many as the model has positions for.
_SEQUENCE = 128


class FailedCellsError(ValueError):
    """Cells that cannot be scored; all others are measured."""


def run(study: Study, progress: Progress) -> None:
    """Train the adapters and measure the cells that are missing; each is stored at once.

    Raises:
        FailedCellsError: A cell cannot be scored, after all others are measured and written.
        ValueError: An adapter cannot be scored, or its files have changed.
        RuntimeError: Workers die repeatedly.
        OSError: The disk is full or a file cannot be written; measured cells are kept.
    """
    progress = logged(progress, study.directory / LOG_FILE)
    with Store(study.directory / STORE_FILE) as store, Leases(store) as leases:
        preparation = Preparation(study, store, leases, progress)
        _Run(study, store, leases, progress, preparation).execute()


def measured_cells(study: Study) -> tuple[int, int]:
    """Return how many cells of a study are measured, and how many there are as far as known."""
    with Store(study.directory / STORE_FILE) as store:
        measured = store.measurements()
    # All metrics of a cell are measured at once.
    done = {measurement.key._replace(metric="") for measurement in measured}
    # A run that had measured more until its intervals were narrow may be asked for fewer.
    return len(done), max(len(done), study.count_cells(measured))


def sequence_costs(deployment: Deployment, run: RunSettings) -> list[Costs]:
    """Return the costs of one sequence of a deployment, one for each cost model."""
    sequence = min(_SEQUENCE, position_limit(deployment.model) or _SEQUENCE)
    work = count_work(deployment, sequence) if run.costs else None
    pulses = mean_pulses(deployment)
    return [Costs(CostModel.load(name), work, run.tiles, pulses) for name in run.costs if work]


@dataclass
class _Run:
    """The execution of a study by this process, among others on the same store.

    Attributes:
        study, store, leases, progress: As in `run`.
        preparation: Trains the adapters.
        origins: What the measurements of each subject on each device depend on.
        failures: Why cells cannot be scored.
    """

    study: Study
    store: Store
    leases: Leases
    progress: Progress
    preparation: Preparation
    origins: dict[tuple[Subject, str], Origin] = field(default_factory=dict)
    failures: dict[tuple[Chip, Subject], str] = field(default_factory=dict)

    def execute(self) -> None:
        """Train and measure until nothing is missing."""
        study, trainings, run = self.study, 0, self.study.config.run
        cards = {name: card_hash(card) for name, card in study.cards.items()}
        for name, hashed in cards.items():
            before = self.store.card_hash(name)
            if before is not None and before != hashed:
                self._exchange(name, before, hashed)
            self.store.set_card(name, hashed)
        while (wanted := study.plan(self.store.measurements()).trainings) > trainings:
            trainings = wanted
            evaluator = self.preparation.evaluator(trainings)
            self.origins = {
                (subject, device): self._origin(subject, hashed)
                for subject in study.subjects(trainings)
                for device, hashed in cards.items()
            }
            self._measure(evaluator)
        if measured := self.store.measurements():
            chips = 1 + max(cell.repeat for cell in measured)
            record_seeds(study.directory, study.config, trainings, chips)
        if self.leases.acquire(LAYERS_FILE):
            self._write_layers(evaluator)
            self.leases.release(LAYERS_FILE)
        if run.costs and self.leases.acquire(COSTS_FILE):
            self._write_costs()
            self.leases.release(COSTS_FILE)
        if self.failures:
            raise FailedCellsError(_failure_text(self.failures))

    def _exchange(self, device: str, before: str, now: str) -> None:
        """Set aside the schedules and weight errors of a card that was edited, and fetch its own.

        Those of the card as it is now exist if it was so before.
        """
        place, directory = place_name(device), self.study.directory
        for folder in directory.glob("scheduled/*"):
            for old, new in ((place, f"{place}-{before[:8]}"), (f"{place}-{now[:8]}", place)):
                if (folder / old).is_dir():
                    (folder / old).rename(folder / new)
        path = directory / LAYERS_FILE
        aside, own = (path.with_stem(f"layers-{place}-{card[:8]}") for card in (before, now))
        if path.is_file():
            records = read_layers(path)
            write_layers([each for each in records if each.device == device], aside)
            others = [each for each in records if each.device != device]
            write_layers(others + read_layers(own), path)

    def _origin(self, subject: Subject, card: str) -> Origin:
        """Return what the measurements of a subject on a device depend on."""
        record, config = self.preparation.records[subject.model], self.study.config
        changes = config.hardware.changes()
        if config.hardware.placement == "programmed":
            changes = {"programming_error": config.hardware.programming_error} | changes
        variant, names = TreatedAdapter.parse(subject.adapter), list[str]()
        if variant.examples:
            changes["recalibrate"] = variant.examples
            names += ["recalibrate_method", "recalibrate_groups", "recalibrate_steps"]
        if variant.treatment and config.run.schedule:
            changes["schedule"] = config.run.schedule
            names.append("schedule_groups")
        changes |= {name: config.value(name) for name in names if config.is_changed(name)}
        parts = [f"{name}={value}" for name, value in changes.items()]
        hashes = (record.model_hash, record.data_hash, record.fingerprint, card)
        return Origin(*hashes, ", ".join(parts))

    def _measure(self, evaluator: Evaluator) -> None:
        """Measure until no cell is missing, together with other processes on the same store.

        Raises:
            RuntimeError: Workers die repeatedly.
            OSError: The disk is full or the store cannot be written; measured cells are kept.
        """
        settings = self.study.config.run
        notes: list[str] = []
        try:
            while missing := self._missing():
                handed_out: dict[Chip, set[Subject]] = {}
                jobs = self._jobs(missing, handed_out)
                first = next(jobs, None)
                if first is None:
                    # Other processes hold every chip that is left.
                    time.sleep(POLL_SECONDS)
                    continue
                count = sum(map(len, missing.values()))
                total = self.study.count_cells(self.store.measurements())
                advance = self.progress(f"measuring {count} of {total} cells", count)
                with closing(measure(evaluator, chain([first], jobs), settings)) as cells:
                    for cell in cells:
                        left = handed_out.get(cell.chip, set())
                        if cell.subject not in left:
                            continue  # Yielded before, by a job that was restarted.
                        self._keep(cell)
                        left.remove(cell.subject)
                        if not left:
                            self.leases.release(str(cell.chip))
                        notes += cell.notes
                        advance(_cell_text(cell))
        finally:
            for note in dict.fromkeys(notes):
                warnings.warn(note, stacklevel=2)

    def _keep(self, cell: Cell) -> None:
        """Store a cell, or the reason why it has no score."""
        if cell.failure:
            self.failures[cell.chip, cell.subject] = cell.failure
            return
        measured = [
            Measurement(*self.study.key(cell.chip, metric, cell.subject), value=value)
            for metric, value in cell.scores.items()
        ]
        self.store.add(measured, self.origins[cell.subject, cell.chip.device])

    def _missing(self, chip: Chip | None = None) -> dict[Chip, set[Subject]]:
        """Return the cells to measure by chip, of all chips or of one; others are omitted.

        A cell is missing while any metric of the task has no measurement with its present origin.
        """
        study = self.study
        if chip is None:
            chips, done = study.chips(study.plan(self.store.measurements())), self.store.cells()
        else:
            chips, done = [chip], self.store.cells(chip.device, chip.seed)
        subjects = dict.fromkeys(subject for subject, _ in self.origins)
        missing = {
            chip: {
                subject
                for subject in subjects
                if (chip, subject) not in self.failures
                for metric in study.task.metrics
                if (study.key(chip, metric, subject), self.origins[subject, chip.device])
                not in done
            }
            for chip in chips
        }
        return {chip: cells for chip, cells in missing.items() if cells}

    def _jobs(self, missing: Iterable[Chip], handed_out: dict[Chip, set[Subject]]) -> Iterator[Job]:
        """Yield a job for each chip that this process can lease, when the engine asks for more."""
        for chip in missing:
            if not self.leases.acquire(str(chip)):
                continue
            # Another process may have measured it since.
            left = self._missing(chip)
            if not left:
                self.leases.release(str(chip))
                continue
            handed_out[chip] = left[chip]
            yield Job(chip, frozenset(left[chip]))

    def _write_layers(self, evaluator: Evaluator) -> None:
        """Write layers.csv: every layer on the first chip of each device, added to those there."""
        study, seed, times = self.study, self.study.config.run.seed, self.study.config.run.seconds
        records = read_layers(study.directory / LAYERS_FILE)
        known = {(record.device, record.seed, record.time_s) for record in records}
        missing = {
            device: left
            for device in study.cards
            if (left := [s for s in times if (device, seed, s) not in known])
        }
        if missing:
            advance = self.progress("weight errors", len(missing))
            for device, left in missing.items():
                records += evaluator.layers(Chip(device, 0, seed), left)
                advance(f"weights on {device}, chip {seed}")
            write_layers(records, study.directory / LAYERS_FILE)

    def _write_costs(self) -> None:
        """Write costs.csv: every quantity of a sequence, for each adapter and device."""
        config, devices, rows = self.study.config, list(self.study.cards), []
        for (adapter, training), model in self.preparation.models.items():
            if training:
                continue
            deployment = deploy(model, "ideal", **config.hardware.deploy_arguments())
            found = sequence_costs(deployment, config.run)
            by_device = found if len(found) == len(devices) else found[:1] * len(devices)
            for device, costs in zip(devices, by_device, strict=True):
                rows += cost_rows(costs, adapter, device)
        write_atomically(self.study.directory / COSTS_FILE, costs_csv(rows).encode())


def _cell_name(chip: Chip, subject: Subject) -> str:
    training = f", training {subject.training}," if subject.training else ""
    where = f"{chip.device} at {format_time(subject.time_s)}, chip {chip.seed}"
    return f"{subject.adapter}{training} on {where}"


def _cell_text(cell: Cell) -> str:
    scores = ", ".join(f"{metric} {value:.4f}" for metric, value in cell.scores.items())
    return f"{_cell_name(cell.chip, cell.subject)}: {scores or cell.failure}"


def _failure_text(failures: Mapping[tuple[Chip, Subject], str]) -> str:
    place, reason = next(iter(failures.items()))
    more = len(failures) - 1
    others = f" Nor can {more} other {'cell' if more == 1 else 'cells'}." if more else ""
    return f"The cell {_cell_name(*place)}, cannot be scored: {reason}{others}"
