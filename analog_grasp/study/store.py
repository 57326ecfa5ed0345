"""What a run has measured, kept in one SQLite file that survives interruption.

A measured cell is one row: on the disk when :meth:`Store.add` returns, never overwritten, its
value always finite. So a run that stops goes on where it stopped, and a report can be made at
any moment. Several processes share the work on a store by claims, see `analog_grasp.study.
claims`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from analog_grasp.study.records import (
    ADAPTER_COLUMNS,
    COLUMNS,
    UNKNOWN,
    AdapterRecord,
    CellKey,
    Measurement,
    Origin,
    adapter_record,
    adapter_row,
    measurement_row,
)
from analog_grasp.study.schema import SCHEMA_VERSION, bring_up_to_date

# How long a process waits for another one that is writing, in seconds.
BUSY_SECONDS = 30.0


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
        ...         store.measurements() == [cell]
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

    def add(self, measurements: Iterable[Measurement], origin: Origin = UNKNOWN) -> None:
        """Write measured cells; all of them are on the disk on return, or none.

        A cell that is already there keeps its first value: the same cell may be measured twice
        when an interrupted run goes on or two processes overlap, and a figure that somebody may
        have read must not change under them.

        Args:
            measurements: the cells.
            origin: what all of them came from.

        Raises:
            ValueError: a value or time is not finite, a time negative, or a seed over 64 bits.
            OSError: the disk is full or the file cannot be written.
        """
        rows = [(*measurement_row(measurement), *origin) for measurement in measurements]
        with self._transaction():
            self._connection.executemany(
                f"INSERT INTO measurements ({_listed(COLUMNS + Origin._fields)})"
                f" VALUES ({_listed('?' for _ in COLUMNS + Origin._fields)})"
                f" ON CONFLICT ({_listed(CellKey._fields + Origin._fields)}) DO NOTHING",
                rows,
            )

    def cells(
        self, device: str | None = None, seed: int | None = None
    ) -> set[tuple[CellKey, Origin]]:
        """Every measured cell, or those of one device or chip, with what it came from."""
        columns = _listed(CellKey._fields + Origin._fields)
        size = len(CellKey._fields)
        rows = self._select(
            f"SELECT {columns} FROM measurements"
            " WHERE device = ifnull(?, device) AND seed = ifnull(?, seed)",
            (device, seed),
        )
        return {(CellKey(*row[:size]), Origin(*row[size:])) for row in rows}

    def measurements(self) -> list[Measurement]:
        """Every measurement, sorted by its columns: the order of the work leaves no trace.

        Those on a card that has been edited since, see :meth:`set_card`, are kept but not given.
        """
        columns = _listed(COLUMNS)
        rows = self._select(
            f"SELECT {columns} FROM measurements LEFT JOIN cards AS present USING (device)"
            " WHERE present.card_hash IS NULL OR present.card_hash = measurements.card_hash"
            f" ORDER BY {columns}"
        )
        return [Measurement(*row) for row in rows]

    def set_card(self, device: str, card_hash: str, asked: str | None = None) -> None:
        """Say which card a device's name stands for from now on.

        Cells of version 1, which kept no hash of the card, are taken to be of this one.

        Args:
            device: the card's name.
            card_hash: as in `Origin`.
            asked: the path of its file, by which version 1 called the device.

        Raises:
            OSError: as for :meth:`add`.
        """
        with self._transaction():
            self._connection.execute(
                "UPDATE OR IGNORE measurements SET device = ?, card_hash = ?"
                " WHERE device IN (?, ?) AND card_hash = ''",
                (device, card_hash, device, asked or device),
            )
            self._connection.execute(
                "INSERT OR REPLACE INTO cards (device, card_hash) VALUES (?, ?)",
                (device, card_hash),
            )

    def add_adapter(self, record: AdapterRecord) -> None:
        """Write the facts about a trained adapter; the first record of an adapter stands.

        A record of version 1, which knew a hash of the weights alone, is completed.

        Raises:
            ValueError: the store holds this adapter with other hashes, to which what is measured
                belongs; or a figure is not finite.
            OSError: as for :meth:`add`.
        """
        row = adapter_row(record)
        found = (record.fingerprint, record.model_hash, record.data_hash)
        with self._transaction():
            known = self._connection.execute(
                "SELECT fingerprint, model_hash, data_hash FROM adapters"
                " WHERE adapter = ? AND task = ?",
                (record.adapter, record.task),
            ).fetchone()
            if known is None:
                self._connection.execute(
                    f"INSERT INTO adapters ({_listed(ADAPTER_COLUMNS)})"
                    f" VALUES ({_listed('?' for _ in row)})",
                    row,
                )
            elif known[1:] == ("", "") and record.fingerprint.startswith(known[0]):
                self._complete(record)
            elif known != found:
                raise ValueError(
                    f"The store {self.path} holds the adapter {record.adapter!r} on"
                    f" {record.task!r} as trained from other settings or data; use another output"
                    " folder for these settings."
                )

    def adapters(self) -> list[AdapterRecord]:
        """Every adapter, in the order they were added."""
        rows = self._select(f"SELECT {_listed(ADAPTER_COLUMNS)} FROM adapters ORDER BY position")
        return [adapter_record(row) for row in rows]

    def claim(
        self, work: str, owner: str, expires: float, lapsed: Callable[[str, float], bool]
    ) -> bool:
        """Take a piece of work, unless another holds it whose claim has not lapsed.

        Args:
            work: what names it.
            owner: who takes it.
            expires: until when, in seconds since the epoch.
            lapsed: given another's owner and expiry, whether that claim is void.

        Raises:
            OSError: as for :meth:`add`.
        """
        with self._transaction():
            held = self._connection.execute(
                "SELECT owner, expires FROM claims WHERE work = ?", (work,)
            ).fetchone()
            if held and held[0] != owner and not lapsed(*held):
                return False
            self._connection.execute(
                "INSERT OR REPLACE INTO claims (work, owner, expires) VALUES (?, ?, ?)",
                (work, owner, expires),
            )
            return True

    def renew(self, owner: str, expires: float) -> None:
        """Let all claims of an owner hold for longer.

        Raises:
            OSError: as for :meth:`add`.
        """
        with self._transaction():
            self._connection.execute(
                "UPDATE claims SET expires = ? WHERE owner = ?", (expires, owner)
            )

    def release(self, owner: str, work: str | None = None) -> None:
        """Give up a claim, or all of an owner's.

        Raises:
            OSError: as for :meth:`add`.
        """
        with self._transaction():
            self._connection.execute(
                "DELETE FROM claims WHERE owner = ? AND work = ifnull(?, work)", (owner, work)
            )

    def _complete(self, record: AdapterRecord) -> None:
        """Give the hashes to an adapter's record of version 1, and to the cells measured of it."""
        hashes = (record.fingerprint, record.model_hash, record.data_hash)
        where = (record.adapter, record.task)
        self._connection.execute(
            "UPDATE adapters SET fingerprint = ?, model_hash = ?, data_hash = ?"
            " WHERE adapter = ? AND task = ?",
            (*hashes, *where),
        )
        self._connection.execute(
            "UPDATE measurements SET adapter_hash = ?, model_hash = ?, data_hash = ?"
            " WHERE adapter = ? AND task = ? AND adapter_hash = ''",
            (*hashes, *where),
        )

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
        """Make the tables in a new file, or bring those of an older version up to date."""
        with self._transaction():
            found = bring_up_to_date(self._connection)
        if found is None:
            raise ValueError(_not_a_store(self.path))
        if found != SCHEMA_VERSION:
            raise ValueError(
                f"The store {self.path} has version {found}, and this analog-grasp reads versions"
                f" up to {SCHEMA_VERSION}; use the release that wrote it, or a newer one."
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
                    " and once there is room the same command goes on where it stopped."
                ) from error
            case _:
                raise OSError(
                    f"The store {path} cannot be used ({error}); it must be an undamaged file that"
                    " may be written, in a folder that exists."
                ) from error


def _not_a_store(path: Path) -> str:
    return f"The file {path} is not a store of measurements; move it away or use another folder."
