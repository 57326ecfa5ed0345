"""SQLite store of a run: measurements and adapters, and leases by which processes share the work.

A measured cell is one row: on the disk when :meth:`Store.add` returns, never overwritten. An
interrupted run therefore resumes where it stopped, and a report can be made at any time.

The store uses SQLite's rollback journal. A write-ahead log would need memory that all processes
share, which network file systems (NFS) do not provide; a commit per cell takes milliseconds.
"""

import json
import os
import platform
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import psutil

from analog_grasp.study.records import (
    ADAPTER_COLUMNS,
    COLUMNS,
    AdapterRecord,
    CellKey,
    Measurement,
    Origin,
)

# How long a lease is valid without being renewed, and how often it is renewed, in seconds.
LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 10.0
# How often to look whether another process has finished the work that it holds, in seconds.
POLL_SECONDS = 0.5
# How long a process waits for another one that is writing, in seconds.
BUSY_SECONDS = 30.0
SCHEMA_VERSION = 4
# Marks the file as ours, so that another program's database is never written to ("agsp").
APPLICATION_ID = 0x61677370

_TABLES = (
    f"""CREATE TABLE measurements (
        task TEXT NOT NULL, metric TEXT NOT NULL, adapter TEXT NOT NULL, training INTEGER NOT NULL,
        placement TEXT NOT NULL, device TEXT NOT NULL, time_s REAL NOT NULL,
        repeat INTEGER NOT NULL, seed INTEGER NOT NULL, model_hash TEXT NOT NULL,
        data_hash TEXT NOT NULL, adapter_hash TEXT NOT NULL, card_hash TEXT NOT NULL,
        settings TEXT NOT NULL, value REAL NOT NULL,
        PRIMARY KEY ({", ".join(CellKey._fields + Origin._fields)})
    ) WITHOUT ROWID""",
    """CREATE TABLE adapters (
        position INTEGER PRIMARY KEY, adapter TEXT NOT NULL, task TEXT NOT NULL,
        trainable_parameters INTEGER NOT NULL, head_parameters INTEGER NOT NULL,
        digital TEXT NOT NULL, train_seconds REAL NOT NULL, path TEXT NOT NULL,
        fingerprint TEXT NOT NULL, model_hash TEXT NOT NULL, data_hash TEXT NOT NULL,
        training INTEGER NOT NULL, UNIQUE (adapter, task, training)
    )""",
    # The card that each device name refers to at present.
    "CREATE TABLE cards (device TEXT PRIMARY KEY, card_hash TEXT NOT NULL) WITHOUT ROWID",
    # Which process holds which piece of work, and until when unless it renews the lease.
    """CREATE TABLE leases (
        work TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class Store:
    """The measurements and adapters of one run, in one SQLite file.

    Several processes may have a store open; they take turns to write. An object belongs to one
    thread.

    Args:
        path: The file; created if it does not exist. Its folder must exist.
        readonly: Open the file for reading alone, so that its folder need not be writable.

    Raises:
        ValueError: The file is not such a store, or another version of this package wrote it.
        OSError: The file cannot be opened, read or written.

    Example:
        >>> import tempfile
        >>> cell = Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 0.0, 0, 7, 0.8)
        >>> origin = Origin("model", "data", "adapter", "card", "")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Store(Path(folder) / "results.sqlite") as store:
        ...         store.add([cell], origin)
        ...         store.measurements() == [cell]
        True
    """

    def __init__(self, path: Path | str, *, readonly: bool = False) -> None:
        self.path = Path(path)
        # A path as a URI, in which "?" and "#" have a meaning of their own.
        uri = f"{self.path.absolute().as_uri()}?mode={'ro' if readonly else 'rwc'}"
        with _plain_errors(self.path):
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
        try:
            with _plain_errors(self.path):
                self._prepare(readonly)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, measurements: Iterable[Measurement], origin: Origin) -> None:
        """Write measured cells; all of them are on the disk on return, or none.

        A cell that is already there keeps its first value: the same cell may be measured twice
        when an interrupted run resumes or two processes overlap, and a published figure must not
        change.

        Raises:
            OSError: The disk is full or the file cannot be written.
        """
        # As plain Python numbers: SQLite would store numpy's own as bytes.
        kinds = Measurement.__annotations__.items()
        rows = [(*(kind(getattr(m, name)) for name, kind in kinds), *origin) for m in measurements]
        self._insert("measurements", COLUMNS + Origin._fields, rows)

    def cells(
        self, device: str | None = None, seed: int | None = None
    ) -> set[tuple[CellKey, Origin]]:
        """Return every measured cell, or those of one device or chip, with their origins."""
        size = len(CellKey._fields)
        rows = self._select(
            f"SELECT {_listed(CellKey._fields + Origin._fields)} FROM measurements"
            " WHERE device = ifnull(?, device) AND seed = ifnull(?, seed)",
            (device, seed),
        )
        return {(CellKey(*row[:size]), Origin(*row[size:])) for row in rows}

    def measurements(self) -> list[Measurement]:
        """Return every measurement, sorted by its columns and so independent of execution order.

        Those on a card that has been edited since, see :meth:`set_card`, are kept but not returned.
        """
        columns = _listed(COLUMNS)
        rows = self._select(
            f"SELECT {columns} FROM measurements LEFT JOIN cards AS present USING (device)"
            " WHERE present.card_hash IS NULL OR present.card_hash = measurements.card_hash"
            f" ORDER BY {columns}"
        )
        return [Measurement(*row) for row in rows]

    def card_hash(self, device: str) -> str | None:
        """Return the hash of the card that a device's name refers to; None if it is new."""
        rows = self._select("SELECT card_hash FROM cards WHERE device = ?", (device,))
        return rows[0][0] if rows else None

    def set_card(self, device: str, card_hash: str) -> None:
        """Set the card that a device's name refers to from now on."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO cards (device, card_hash) VALUES (?, ?)",
                (device, card_hash),
            )

    def add_adapter(self, record: AdapterRecord) -> None:
        """Write the record of a training; an existing record of the same training is kept.

        Raises:
            OSError: As for :meth:`add`.
        """
        digital = {metric: float(score) for metric, score in record.digital.items()}
        row = tuple((vars(record) | {"digital": json.dumps(digital)}).values())
        self._insert("adapters", ADAPTER_COLUMNS, [row])

    def adapters(self) -> list[AdapterRecord]:
        """Return every adapter, in the order in which they were added."""
        rows = self._select(f"SELECT {_listed(ADAPTER_COLUMNS)} FROM adapters ORDER BY position")
        records = [AdapterRecord(*row) for row in rows]
        return [replace(record, digital=json.loads(str(record.digital))) for record in records]

    def _insert(self, table: str, columns: tuple[str, ...], rows: Iterable[tuple]) -> None:
        """Add rows to a table; one whose key is there already is dropped."""
        with self._transaction():
            self._connection.executemany(
                f"INSERT INTO {table} ({_listed(columns)})"
                f" VALUES ({_listed('?' for _ in columns)}) ON CONFLICT DO NOTHING",
                rows,
            )

    def _select(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple]:
        with _plain_errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything or nothing; the write lock is taken first, so that no upgrade fails."""
        with _plain_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, a full disk among them.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self, readonly: bool) -> None:
        """Create the tables in a new file, or check that the file is a store of this version."""
        if not readonly:
            # Durable through a loss of power; EXTRA includes the removal of the journal.
            self._connection.execute("PRAGMA synchronous = EXTRA")
            with self._transaction():
                if self._pragma("schema_version") == 0:
                    for statement in _TABLES:
                        self._connection.execute(statement)
        if self._pragma("application_id") != APPLICATION_ID:
            raise ValueError(_not_a_store(self.path))
        if (found := self._pragma("user_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"The store {self.path} has version {found}, and this analog-grasp reads version"
                f" {SCHEMA_VERSION}; use the release that wrote it."
            )

    def _pragma(self, name: str) -> int:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]


class Leases:
    """Leases on the work of a store, renewed while the block runs and released at its end.

    A lease is void once it has expired, or once its process no longer exists on this machine;
    any other process can then acquire the work. An object belongs to one thread.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Store(Path(folder) / "results.sqlite") as store, Leases(store) as leases:
        ...         leases.acquire("chip 0 of pcm")
        True
    """

    def __init__(self, store: Store) -> None:
        self._store, self._ended = store, threading.Event()
        # The thread distinguishes two blocks of one process.
        self._owner = f"{platform.node()}/{os.getpid()}/{threading.get_ident()}"
        self._heart = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        # What cannot be released, since the disk is full, expires.
        with suppress(OSError):
            self.release()

    def acquire(self, work: str) -> bool:
        """Acquire a piece of work; return False if another process holds it."""
        with self._store._transaction() as connection:
            held = connection.execute(
                "SELECT owner, expires FROM leases WHERE work = ?", (work,)
            ).fetchone()
            if held and held[0] != self._owner and not _lapsed(*held):
                return False
            connection.execute(
                "INSERT OR REPLACE INTO leases (work, owner, expires) VALUES (?, ?, ?)",
                (work, self._owner, time.time() + LEASE_SECONDS),
            )
            return True

    def release(self, work: str | None = None) -> None:
        """Release a piece of work, which is done or abandoned, or all of it."""
        with self._store._transaction() as connection:
            connection.execute(
                "DELETE FROM leases WHERE owner = ? AND work = ifnull(?, work)", (self._owner, work)
            )

    def _renew(self) -> None:
        """Renew the leases periodically; they expire if the store cannot be written."""
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with (
                suppress(OSError),
                Store(self._store.path) as store,
                store._transaction() as connection,
            ):
                connection.execute(
                    "UPDATE leases SET expires = ? WHERE owner = ?",
                    (time.time() + LEASE_SECONDS, self._owner),
                )


def _lapsed(owner: str, expires: float) -> bool:
    node, pid, _ = owner.rsplit("/", 2)
    return time.time() > expires or (node == platform.node() and not psutil.pid_exists(int(pid)))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


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
                    " and the same command resumes once there is room."
                ) from error
            case _:
                raise OSError(
                    f"The store {path} cannot be used ({error}); it must be an undamaged file that"
                    " may be written, in a folder that exists."
                ) from error


def _not_a_store(path: Path) -> str:
    return f"The file {path} is not a store of measurements; move it away or use another folder."
