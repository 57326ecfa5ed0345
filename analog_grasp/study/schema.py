"""The tables of a store, and how those of an older version become them."""

import itertools
import sqlite3

from analog_grasp.study.records import CellKey, Origin

SCHEMA_VERSION = 2
# Marks the file as ours, so that another program's database is never written to ("agsp").
APPLICATION_ID = 0x61677370

_MEASUREMENTS = f"""CREATE TABLE measurements (
    task TEXT NOT NULL, metric TEXT NOT NULL, adapter TEXT NOT NULL, placement TEXT NOT NULL,
    device TEXT NOT NULL, time_s REAL NOT NULL, repeat INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    model_hash TEXT NOT NULL DEFAULT '', data_hash TEXT NOT NULL DEFAULT '',
    adapter_hash TEXT NOT NULL DEFAULT '', card_hash TEXT NOT NULL DEFAULT '',
    settings TEXT NOT NULL DEFAULT '', value REAL NOT NULL,
    PRIMARY KEY ({", ".join(CellKey._fields + Origin._fields)})
) WITHOUT ROWID"""
_ADAPTERS = """CREATE TABLE adapters (
    position INTEGER PRIMARY KEY, adapter TEXT NOT NULL, task TEXT NOT NULL,
    trainable_parameters INTEGER NOT NULL, head_parameters INTEGER NOT NULL,
    digital TEXT NOT NULL, train_seconds REAL NOT NULL, path TEXT NOT NULL,
    fingerprint TEXT NOT NULL, model_hash TEXT NOT NULL DEFAULT '',
    data_hash TEXT NOT NULL DEFAULT '', UNIQUE (adapter, task)
)"""
# The card that each device's name stands for at present.
_CARDS = "CREATE TABLE cards (device TEXT PRIMARY KEY, card_hash TEXT NOT NULL) WITHOUT ROWID"
# Who is at which piece of work, and until when that holds unless it is renewed.
_CLAIMS = """CREATE TABLE claims (
    work TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL
) WITHOUT ROWID"""

_NEW = (_MEASUREMENTS, _ADAPTERS, _CARDS, _CLAIMS, f"PRAGMA application_id = {APPLICATION_ID}")
_COLUMNS_1 = "task, metric, adapter, placement, device, time_s, repeat, seed, value"
# The statements that lead from each version to the next.
_MIGRATIONS = {
    1: (
        "ALTER TABLE measurements RENAME TO measurements_1",
        _MEASUREMENTS,
        f"INSERT INTO measurements ({_COLUMNS_1}) SELECT {_COLUMNS_1} FROM measurements_1",
        "DROP TABLE measurements_1",
        "ALTER TABLE adapters ADD COLUMN model_hash TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE adapters ADD COLUMN data_hash TEXT NOT NULL DEFAULT ''",
        _CARDS,
        _CLAIMS,
    ),
}


def bring_up_to_date(connection: sqlite3.Connection) -> int | None:
    """Make the tables in a new file, or turn those of an older version into the present ones.

    Must run within a transaction, so that a process that dies here leaves the file as it was.

    Returns:
        The version that the file has now: another than `SCHEMA_VERSION` where that is not known
        here, or None where the file is another program's; both are left alone.
    """
    new = _pragma(connection, "schema_version") == 0
    if not new and _pragma(connection, "application_id") != APPLICATION_ID:
        return None
    found = _pragma(connection, "user_version")
    if not new and found not in _MIGRATIONS:
        return found
    steps = [_NEW] if new else [_MIGRATIONS[v] for v in range(found, SCHEMA_VERSION)]
    for statement in itertools.chain(*steps, [f"PRAGMA user_version = {SCHEMA_VERSION}"]):
        connection.execute(statement)
    return SCHEMA_VERSION


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
