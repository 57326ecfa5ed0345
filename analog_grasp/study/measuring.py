"""Which cells are left to measure, handed out chip by chip and kept as they come."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing

from analog_grasp.study.config import StudyConfig
from analog_grasp.study.engines import engine
from analog_grasp.study.evaluator import Bench, Cell, Job
from analog_grasp.study.grid import Chip, chips, times
from analog_grasp.study.leases import POLL, Claims
from analog_grasp.study.progress import Advance, Progress
from analog_grasp.study.records import CellKey, Measurement, Origin
from analog_grasp.study.store import Store
from analog_grasp.utils.time import format_time


class Measuring:
    """The measurements of one study, to be finished by this process and others on the same store.

    Args:
        settings: Those of the study.
        bench: What is measured with.
        origins: What the cells of each adapter and device come from.
        store: Holds what is measured.
        claims: What this process has taken on.
        progress: Told of each cell.
    """

    def __init__(
        self,
        settings: StudyConfig,
        bench: Bench,
        origins: Mapping[tuple[str, str], Origin],
        store: Store,
        claims: Claims,
        progress: Progress,
    ) -> None:
        self._settings, self._bench, self._origins = settings, bench, origins
        self._store, self._claims, self._progress = store, claims, progress
        # Why cells could not be scored, and what is left of the chips that were handed out.
        self._failed: dict[tuple[Chip, str, float], str] = {}
        self._pending: dict[Chip, set[tuple[str, float]]] = {}
        self._advance: Advance | None = None

    def finish(self) -> None:
        """Measure until nothing is left.

        Raises:
            ValueError: A score is not finite. All other cells are measured before that.
            RuntimeError: Workers die again and again.
            OSError: The disk is full or the store cannot be written; what was measured is kept.
        """
        measure = engine(self._settings)
        while left := self._left():
            self._advance = None
            with closing(measure(self._bench, self._jobs(left))) as cells:
                for cell in cells:
                    self._keep(cell)
            if self._advance is None:
                time.sleep(POLL)
        if self._failed:
            raise ValueError(self._failures())

    def _left(self) -> dict[Chip, set[tuple[str, float]]]:
        """The chips that are not measured whole, with what is missing."""
        done = self._store.cells()
        missing = {chip: self._missing(chip, done) for chip in self._chips()}
        return {chip: cells for chip, cells in missing.items() if cells}

    def _chips(self) -> list[Chip]:
        values = self._cells_each() * len(self._bench.task.metrics)
        return chips(self._settings, self._bench.cards, values, self._store.measurements())

    def _cells_each(self) -> int:
        """How many cells a chip instance has."""
        return len(self._bench.models) * len(self._settings.run.times)

    def _missing(self, chip: Chip, done: set[tuple[CellKey, Origin]]) -> set[tuple[str, float]]:
        return {
            (adapter, seconds)
            for adapter in self._bench.models
            for seconds in times(self._settings)
            if (chip, adapter, seconds) not in self._failed
            for metric in self._bench.task.metrics
            if (self._key(chip, metric, adapter, seconds), self._origins[adapter, chip.device])
            not in done
        }

    def _key(self, chip: Chip, metric: str, adapter: str, seconds: float) -> CellKey:
        name, placement = self._bench.task.name, self._settings.hardware.placement
        return CellKey(
            name, metric, adapter, placement, chip.device, seconds, chip.repeat, chip.seed
        )

    def _jobs(self, left: Mapping[Chip, set[tuple[str, float]]]) -> Iterator[Job]:
        """What this process takes on, when it is asked for more."""
        for chip in left:
            if not self._claims.take(_name(chip)):
                continue
            # Another process may have been there since.
            missing = self._missing(chip, self._store.cells(chip.device, chip.seed))
            if not missing:
                self._claims.release(_name(chip))
                continue
            if self._advance is None:
                count = sum(map(len, left.values()))
                total = len(self._chips()) * self._cells_each()
                self._advance = self._progress(f"measuring {count} of {total} cells", count)
            self._pending[chip] = missing
            yield Job(chip, frozenset(missing))

    def _keep(self, cell: Cell) -> None:
        """Write a cell down; one that comes again, from a job that was begun again, is known."""
        pending = self._pending.get(cell.chip, set())
        if (cell.adapter, cell.time_s) not in pending:
            return
        if cell.failure:
            self._failed[cell.chip, cell.adapter, cell.time_s] = cell.failure
        else:
            keys = (
                self._key(cell.chip, metric, cell.adapter, cell.time_s) for metric in cell.scores
            )
            self._store.add(
                [Measurement(*key, value=cell.scores[key.metric]) for key in keys],
                self._origins[cell.adapter, cell.chip.device],
            )
        pending.remove((cell.adapter, cell.time_s))
        if not pending:
            self._claims.release(_name(cell.chip))
        if self._advance is not None:
            self._advance(_told(cell))

    def _failures(self) -> str:
        (chip, adapter, seconds), reason = next(iter(self._failed.items()))
        more = len(self._failed) - 1
        others = f" Nor can {more} other {'cell' if more == 1 else 'cells'}." if more else ""
        return f"The cell {_place(chip, adapter, seconds)}, cannot be scored: {reason}{others}"


def _name(chip: Chip) -> str:
    return f"chip {chip.seed} of {chip.device}"


def _place(chip: Chip, adapter: str, seconds: float) -> str:
    return f"{adapter} on {chip.device} at {format_time(seconds)}, chip {chip.seed}"


def _told(cell: Cell) -> str:
    told = ", ".join(f"{metric} {value:.4f}" for metric, value in cell.scores.items())
    return f"{_place(cell.chip, cell.adapter, cell.time_s)}: {told or cell.failure}"
