"""What a run has measured, kept in one SQLite file that survives interruption.

A measured cell is one row: on the disk when :meth:`Store.add` returns, never overwritten, its
value always finite. So a run that stops goes on where it stopped, and a report can be made at
any moment.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

SCHEMA_VERSION = 1
# Marks the file as ours, so that another program's database is never written to ("agsp").
APPLICATION_ID = 0x61677370
# How long a process waits for another one that is writing, in seconds.
BUSY_SECONDS = 30.0

_SCHEMA = (
    """CREATE TABLE measurements (
        task TEXT NOT NULL, metric TEXT NOT NULL, adapter TEXT NOT NULL, placement TEXT NOT NULL,
        device TEXT NOT NULL, time_s REAL NOT NULL, repeat INTEGER NOT NULL,
        seed INTEGER NOT NULL, value REAL NOT NULL,
        PRIMARY KEY (task, metric, adapter, placement, device, time_s, repeat, seed)
    ) WITHOUT ROWID""",
    """CREATE TABLE adapters (
        position INTEGER PRIMARY KEY, adapter TEXT NOT NULL, task TEXT NOT NULL,
        trainable_parameters INTEGER NOT NULL, head_parameters INTEGER NOT NULL,
        digital TEXT NOT NULL, train_seconds REAL NOT NULL, path TEXT NOT NULL,
        fingerprint TEXT NOT NULL, UNIQUE (adapter, task)
    )""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class CellKey(NamedTuple):
    """What names a measured cell: every column but the value, in the order of results.csv."""

    task: str
    metric: str
    adapter: str
    placement: str
    device: str
    time_s: float
    repeat: int
    seed: int


@dataclass(frozen=True)
class Measurement:
    """One score of one adapter on one programmed chip instance at one drift time.

    Attributes:
        task: name of the task, such as ``"glue/sst2"``.
        metric: name of the score; a fraction in [0, 1] for accuracy and F1.
        adapter: name of the adapter.
        placement: where the adapter's parameters live: digital, folded or programmed.
        device: name of the device card.
        time_s: seconds since programming finished.
        repeat: index of the chip instance within the run.
        seed: the integer that names the chip instance.
        value: the score.

    Example:
        >>> cell = Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 20.0, 0, 7, 0.81)
        >>> cell.key.device
        'pcm'
    """

    task: str
    metric: str
    adapter: str
    placement: str
    device: str
    time_s: float
    repeat: int
    seed: int
    value: float

    @property
    def key(self) -> CellKey:
        """Every column but the value."""
        return CellKey(*astuple(self)[:-1])


@dataclass(frozen=True)
class AdapterRecord:
    """The facts about one trained adapter that hold wherever it is deployed.

    Attributes:
        adapter: name of the adapter.
        task: the task it was trained on.
        trainable_parameters: learned numbers of the adapter itself, without the head.
        head_parameters: learned numbers of the task head.
        digital: score of the digital model, by metric.
        train_seconds: how long the training took.
        path: the adapter's folder, relative to the run's.
        fingerprint: names the settings and data the adapter came from.
    """

    adapter: str
    task: str
    trainable_parameters: int
    head_parameters: int
    digital: Mapping[str, float]
    train_seconds: float
    path: str
    fingerprint: str


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Measurement))


class Store:
    """The measurements and adapters of one run, in one SQLite file.

    Several processes may hold a store open; they take turns to write. An object is one thread's.

    Args:
        path: the file; made if it is not there. Its folder must exist.

    Raises:
        ValueError: the file is not such a store, or a newer version of this project wrote it.
        OSError: the file cannot be opened, read or written.

    Example:
        >>> import tempfile
        >>> cell = Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 20.0, 0, 7, 0.81)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Store(Path(folder) / "results.sqlite") as store:
        ...         store.add([cell])
        ...         store.has(cell.key)
        True
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with _plain_errors(self.path):
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None
            )
        try:
            with _plain_errors(self.path):
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was added is kept."""
        self._connection.close()

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Write measured cells; all of them are on the disk on return, or none.

        A cell that is already there keeps its first value: the same cell may be measured twice
        when an interrupted run goes on or two processes overlap, and a figure that somebody may
        have read must not change under them.

        Raises:
            ValueError: a value or time is not finite, a time negative, or a seed over 64 bits.
            OSError: the disk is full or the file cannot be written.
        """
        rows = [_measurement_row(measurement) for measurement in measurements]
        with self._transaction():
            self._connection.executemany(
                f"INSERT INTO measurements ({', '.join(COLUMNS)})"
                f" VALUES ({', '.join('?' * len(COLUMNS))})"
                f" ON CONFLICT ({', '.join(CellKey._fields)}) DO NOTHING",
                rows,
            )

    def has(self, key: CellKey) -> bool:
        """Whether this cell is measured."""
        where = " AND ".join(f"{name} = ?" for name in CellKey._fields)
        return bool(self._select(f"SELECT 1 FROM measurements WHERE {where}", key))

    def keys(self) -> set[CellKey]:
        """Every measured cell."""
        rows = self._select(f"SELECT {', '.join(CellKey._fields)} FROM measurements")
        return {CellKey(*row) for row in rows}

    def measurements(self) -> list[Measurement]:
        """Every measurement, sorted by its columns: the order of the work leaves no trace."""
        columns = ", ".join(COLUMNS)
        rows = self._select(f"SELECT {columns} FROM measurements ORDER BY {columns}")
        return [Measurement(*row) for row in rows]

    def add_adapter(self, record: AdapterRecord) -> None:
        """Write the facts about a trained adapter; the first record of an adapter stands.

        Raises:
            ValueError: the store holds this adapter with another fingerprint, to which what
                is measured belongs; or a figure is not finite.
            OSError: as for :meth:`add`.
        """
        row = _adapter_row(record)
        with self._transaction():
            known = self._connection.execute(
                "SELECT fingerprint FROM adapters WHERE adapter = ? AND task = ?",
                (record.adapter, record.task),
            ).fetchone()
            if known is None:
                self._connection.execute(
                    "INSERT INTO adapters (adapter, task, trainable_parameters, head_parameters,"
                    " digital, train_seconds, path, fingerprint) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
            elif known[0] != record.fingerprint:
                raise ValueError(
                    f"The store {self.path} holds the adapter {record.adapter!r} on"
                    f" {record.task!r} as trained from other settings or data; use another output"
                    " folder for these settings."
                )

    def adapters(self) -> list[AdapterRecord]:
        """Every adapter, in the order they were added."""
        rows = self._select(
            "SELECT adapter, task, trainable_parameters, head_parameters, digital, train_seconds,"
            " path, fingerprint FROM adapters ORDER BY position"
        )
        return [
            AdapterRecord(name, task, own, head, json.loads(digital), *rest)
            for name, task, own, head, digital, *rest in rows
        ]

    def _select(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple]:
        with _plain_errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, taking the writer's turn at the start so that no upgrade can fail."""
        with _plain_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, a full disk among them.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        """Make the tables in a new file, or check that an old one is ours."""
        with self._transaction():
            if self._pragma("schema_version") == 0:
                for statement in _SCHEMA:
                    self._connection.execute(statement)
        if self._pragma("application_id") != APPLICATION_ID:
            raise ValueError(_not_a_store(self.path))
        version = self._pragma("user_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"The store {self.path} has version {version}, and this analog-grasp reads version"
                f" {SCHEMA_VERSION}; use the release that wrote it, or a newer one."
            )
        self._use_write_ahead_log()
        # With a write-ahead log only FULL keeps the last commit through a loss of power.
        self._connection.execute("PRAGMA synchronous = FULL")

    def _use_write_ahead_log(self) -> None:
        """Switch the journal, waiting by hand: SQLite does not wait for others in this one."""
        give_up = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def _pragma(self, name: str) -> int:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]


def write_csv(measurements: Iterable[Measurement], path: Path | str) -> None:
    """Write measurements as comma-separated values, one row a cell, under a header.

    Floats are written in their shortest form that reads back to the same number.

    Raises:
        OSError: the file cannot be written; an older one is then left as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv([], Path(folder) / "results.csv")
        ...     (Path(folder) / "results.csv").read_text()
        'task,metric,adapter,placement,device,time_s,repeat,seed,value\\n'
    """
    write_atomically(path, csv_text(measurements).encode())


def csv_text(measurements: Iterable[Measurement]) -> str:
    """The text of results.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_measurement_row(measurement) for measurement in measurements)
    return text.getvalue()


def write_atomically(path: Path | str, content: bytes) -> None:
    """Write a whole file or leave the old one: a reader never meets half of it."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _measurement_row(cell: Measurement) -> tuple[str | float | int, ...]:
    """The columns as plain Python numbers (numpy's own would be stored as bytes)."""
    where = f"{cell.adapter!r} on device {cell.device!r} at {cell.time_s} s, repeat {cell.repeat}"
    if not math.isfinite(cell.value):
        raise ValueError(
            f"The {cell.metric} of {where} is {cell.value}; a measured value must be finite."
        )
    if not (math.isfinite(cell.time_s) and cell.time_s >= 0):
        raise ValueError(f"The time of {where} must be a finite number of seconds, 0 or more.")
    if not -(2**63) <= cell.seed < 2**63:
        raise ValueError(f"The seed {cell.seed} of {where} must fit into 64 bits with its sign.")
    names = (cell.task, cell.metric, cell.adapter, cell.placement, cell.device)
    return (*names, float(cell.time_s), int(cell.repeat), int(cell.seed), float(cell.value))


def _adapter_row(record: AdapterRecord) -> tuple[str | float | int, ...]:
    digital = {metric: float(score) for metric, score in record.digital.items()}
    for name, figure in {**digital, "training time": record.train_seconds}.items():
        if not math.isfinite(figure):
            raise ValueError(
                f"The {name} of adapter {record.adapter!r} is {figure}; it must be finite."
            )
    return (
        record.adapter,
        record.task,
        int(record.trainable_parameters),
        int(record.head_parameters),
        json.dumps(digital),
        float(record.train_seconds),
        record.path,
        record.fingerprint,
    )


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into one sentence."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", None):
            case sqlite3.SQLITE_NOTADB:
                raise ValueError(_not_a_store(path)) from error
            case sqlite3.SQLITE_FULL:
                raise OSError(
                    f"The disk is full, so {path} cannot grow; everything measured before is kept,"
                    " and once there is room the same command goes on where it stopped."
                ) from error
            case _:
                raise OSError(
                    f"The store {path} cannot be used ({error}); it must be an undamaged file that"
                    " may be written, in a folder that exists."
                ) from error


def _not_a_store(path: Path) -> str:
    return f"The file {path} is not a store of measurements; move it away or use another folder."
