"""The store keeps what is measured, whatever happens to the process."""

import multiprocessing
import os
import sqlite3
from dataclasses import asdict, replace

import numpy as np
import pytest

from analog_grasp.study import schema
from analog_grasp.study.records import (
    COLUMNS,
    UNKNOWN,
    AdapterRecord,
    Measurement,
    Origin,
)
from analog_grasp.study.schema import SCHEMA_VERSION
from analog_grasp.study.store import Store

CELL = Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 20.0, 0, 7, 0.8125)
RECORD = AdapterRecord(
    "grasp", "reviews", 1152, 770, {"accuracy": 0.87}, 12.5, "grasp", "a1", "m1", "d1"
)
ORIGIN = Origin("m1", "d1", "a1", "c1", "")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.sqlite"


@pytest.fixture
def old(path, version_1):
    """A store of version 1 with two cells of one adapter."""
    with sqlite3.connect(path) as connection:
        connection.executescript(version_1)
        for cell in (CELL, replace(CELL, device="my/card.toml", value=0.5)):
            connection.execute(
                f"INSERT INTO measurements VALUES ({', '.join('?' * 9)})",
                tuple(asdict(cell).values()),
            )
        connection.execute(
            "INSERT INTO adapters VALUES (1, 'grasp', 'reviews', 1152, 770,"
            " '{\"accuracy\": 0.87}', 12.5, 'grasp', 'a1')"
        )
    connection.close()
    return path


def start(work, *arguments):
    """Run a function in another process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def ended(process):
    process.join(60)
    return process.exitcode


def test_measurements_survive_closing(path):
    cells = [replace(CELL, repeat=repeat, value=0.1 + repeat / 3) for repeat in range(3)]
    with Store(path) as store:
        store.add(cells)
    with Store(path) as store:
        assert store.measurements() == cells
        assert store.cells() == {(cell.key, UNKNOWN) for cell in cells}


def test_key_is_every_column_but_the_value():
    assert (*CELL.key, CELL.value) == tuple(asdict(CELL).values())
    assert (*CELL.key._fields, "value") == COLUMNS


def test_order_of_measurements_does_not_depend_on_the_order_of_work(tmp_path):
    cells = [replace(CELL, time_s=time, repeat=r) for time in (0.0, 20.0, 3600.0) for r in (0, 1)]
    with Store(tmp_path / "a") as first, Store(tmp_path / "b") as second:
        first.add(cells)
        for cell in reversed(cells):
            second.add([cell])
        assert first.measurements() == second.measurements() == cells


def test_a_measured_cell_is_never_overwritten(path):
    with Store(path) as store:
        store.add([CELL])
        store.add([replace(CELL, value=0.1), replace(CELL, repeat=1)])
        assert store.measurements() == [CELL, replace(CELL, repeat=1)]


def test_numpy_numbers_are_kept_as_numbers(path):
    cell = replace(CELL, time_s=np.float32(20), seed=np.int64(7), value=np.float32(0.8125))
    with Store(path) as store:
        store.add([cell])
        assert store.measurements() == [CELL]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_finite_number_is_refused_with_its_batch(path, value):
    with Store(path) as store:
        with pytest.raises(ValueError, match=r"accuracy of 'grasp' on device 'pcm' .* finite"):
            store.add([CELL, replace(CELL, repeat=1, value=value)])
        assert store.measurements() == []


@pytest.mark.parametrize("time", [float("nan"), -1.0])
def test_a_time_that_is_no_drift_time_is_refused(path, time):
    with Store(path) as store, pytest.raises(ValueError, match="finite number of seconds"):
        store.add([replace(CELL, time_s=time)])


def test_a_seed_beyond_64_bits_is_refused(path):
    with Store(path) as store, pytest.raises(ValueError, match="64 bits"):
        store.add([replace(CELL, seed=2**63)])


def add_and_die(path):
    Store(path).add([CELL])
    os._exit(9)


def test_a_row_is_kept_when_the_process_is_killed_after_add(path):
    assert ended(start(add_and_die, path)) == 9
    with Store(path) as store:
        assert store.measurements() == [CELL]


def add_forty(path, seed):
    with Store(path) as store:
        for repeat in range(40):
            store.add([replace(CELL, repeat=repeat, seed=seed)])


def test_two_processes_write_different_cells(path):
    processes = [start(add_forty, path, seed) for seed in (1, 2)]
    assert [ended(process) for process in processes] == [0, 0]
    with Store(path) as store:
        keys = {key for key, _ in store.cells()}
    assert keys == {replace(CELL, repeat=r, seed=s).key for r in range(40) for s in (1, 2)}
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_file_is_durable_through_a_loss_of_power(path):
    with Store(path) as store:
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_full_disk_is_told_and_leaves_what_was_there(path):
    with Store(path) as store:
        store.add([CELL])
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match=r"disk is full.*is kept.*same command goes on"):
            store.add([replace(CELL, repeat=repeat) for repeat in range(1, 1000)])
        store._connection.execute(f"PRAGMA max_page_count = {1 << 20}")
        store.add([replace(CELL, repeat=1)])
        assert store.measurements() == [CELL, replace(CELL, repeat=1)]


def test_a_newer_schema_is_refused(path):
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"has version {SCHEMA_VERSION + 1}, and this"):
        Store(path)
    assert path.read_bytes() == before


def test_a_store_of_version_1_keeps_its_cells(old):
    for _ in range(2):
        with Store(old) as store:
            assert [cell.value for cell in store.measurements()] == [0.5, 0.8125]
            assert store.adapters() == [replace(RECORD, model_hash="", data_hash="")]
            assert {origin for _, origin in store.cells()} == {UNKNOWN}
    (version,) = sqlite3.connect(old).execute("PRAGMA user_version").fetchone()
    assert version == SCHEMA_VERSION


def test_cells_of_version_1_become_those_of_the_run_that_goes_on(old):
    found = replace(RECORD, fingerprint="a1" + "ff")
    with Store(old) as store:
        store.set_card("pcm", "c1")
        store.set_card("mine", "c2", "my/card.toml")
        store.add_adapter(found)
        assert store.adapters() == [found]
        origin = Origin("m1", "d1", "a1ff")
        assert store.cells() == {
            (CELL.key, origin._replace(card_hash="c1")),
            (replace(CELL, device="mine").key, origin._replace(card_hash="c2")),
        }


def test_a_migration_that_is_interrupted_leaves_version_1(old, monkeypatch):
    with monkeypatch.context() as patch:
        broken = (*schema._MIGRATIONS[1][:-1], "CREATE TABLE claims (")
        patch.setitem(schema._MIGRATIONS, 1, broken)
        with pytest.raises(OSError, match="incomplete input"):
            Store(old)
    (version,) = sqlite3.connect(old).execute("PRAGMA user_version").fetchone()
    assert version == 1
    with Store(old) as store:
        assert len(store.measurements()) == 2


def test_cells_that_came_from_another_thing_are_other_cells(path):
    with Store(path) as store:
        origins = [ORIGIN, *(ORIGIN._replace(**{name: "other"}) for name in Origin._fields)]
        for number, origin in enumerate(origins):
            store.add([replace(CELL, value=number / 10)], origin)
        assert store.cells() == {(CELL.key, origin) for origin in origins}


def test_the_cells_of_one_chip(path):
    with Store(path) as store:
        store.add([CELL, replace(CELL, seed=8), replace(CELL, device="rram")], ORIGIN)
        assert store.cells("pcm", 8) == {(replace(CELL, seed=8).key, ORIGIN)}


def test_an_edited_card_is_another_card_and_the_old_cells_are_kept(path):
    with Store(path) as store:
        store.set_card("pcm", "c1")
        store.add([CELL], ORIGIN)
        store.set_card("pcm", "c2")
        assert store.measurements() == []
        store.add([replace(CELL, value=0.5)], ORIGIN._replace(card_hash="c2"))
        assert [cell.value for cell in store.measurements()] == [0.5]
        store.set_card("pcm", "c1")
        assert store.measurements() == [CELL]


def test_a_file_that_is_no_database_is_refused_and_left_alone(path):
    text = b"no database at all, " * 100
    path.write_bytes(text)
    with pytest.raises(ValueError, match="is not a store of measurements"):
        Store(path)
    assert path.read_bytes() == text


def test_the_database_of_another_program_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is not a store of measurements"):
        Store(path)
    assert path.read_bytes() == before


def test_a_damaged_store_is_told(path):
    with Store(path) as store:
        store.add([CELL])
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(OSError, match="must be an undamaged file"), Store(path) as store:
        store.measurements()


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(OSError, match="in a folder that exists"):
        Store(tmp_path / "none" / "results.sqlite")


def test_adapters_come_back_in_the_order_they_were_added(path):
    records = [replace(RECORD, adapter=name) for name in ("stochgrasp", "grasp")]
    with Store(path) as store:
        for record in records:
            store.add_adapter(record)
    with Store(path) as store:
        assert store.adapters() == records


def test_the_first_record_of_an_adapter_stands(path):
    with Store(path) as store:
        store.add_adapter(RECORD)
        store.add_adapter(replace(RECORD, train_seconds=99.0))
        assert store.adapters() == [RECORD]


def test_another_adapter_under_the_same_name_is_refused(path):
    with Store(path) as store:
        store.add_adapter(RECORD)
        with pytest.raises(ValueError, match="trained from other settings"):
            store.add_adapter(replace(RECORD, fingerprint="b2"))
        with pytest.raises(ValueError, match="trained from other settings"):
            store.add_adapter(replace(RECORD, model_hash="m2"))
        store.add_adapter(replace(RECORD, task="glue/sst2", fingerprint="b2"))


def test_an_adapter_whose_digital_score_is_nan_is_refused(path):
    with Store(path) as store, pytest.raises(ValueError, match="accuracy of adapter 'grasp'"):
        store.add_adapter(replace(RECORD, digital={"accuracy": float("nan")}))
