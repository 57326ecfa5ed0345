"""The store keeps what is measured, whatever happens to the process."""

import csv
import runpy
import sqlite3
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from analog_grasp.experiments import store as store_module
from analog_grasp.experiments.store import (
    COLUMNS,
    SCHEMA_VERSION,
    AdapterRecord,
    Measurement,
    Store,
    write_csv,
)

CELL = Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 20.0, 0, 7, 0.8125)
RECORD = AdapterRecord("grasp", "reviews", 1152, 770, {"accuracy": 0.87}, 12.5, "grasp", "a1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.sqlite"


def start(code, *arguments):
    """Run code in another process, with the names of the store's module and nothing else."""
    lines = (
        f"import runpy, sys\nglobals().update(runpy.run_path({store_module.__file__!r}))\n{code}"
    )
    return subprocess.Popen([sys.executable, "-c", lines, *map(str, arguments)])


def test_module_runs_alone():
    # The processes of these tests rest on it.
    assert "Store" in runpy.run_path(store_module.__file__)


def test_measurements_survive_closing(path):
    cells = [replace(CELL, repeat=repeat, value=0.1 + repeat / 3) for repeat in range(3)]
    with Store(path) as store:
        store.add(cells)
    with Store(path) as store:
        assert store.measurements() == cells
        assert store.keys() == {cell.key for cell in cells}
        assert store.has(cells[1].key)
        assert not store.has(replace(CELL, seed=8).key)


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


def test_a_row_is_kept_when_the_process_is_killed_after_add(path):
    code = f"import os\nStore(sys.argv[1]).add([Measurement(*{tuple(asdict(CELL).values())})])\n"
    process = start(code + "os._exit(9)", path)
    assert process.wait(30) == 9
    with Store(path) as store:
        assert store.measurements() == [CELL]


def test_two_processes_write_different_cells(path):
    code = f"""
with Store(sys.argv[1]) as store:
    for repeat in range(40):
        columns = {asdict(CELL)} | dict(repeat=repeat, seed=int(sys.argv[2]))
        store.add([Measurement(**columns)])
"""
    processes = [start(code, path, seed) for seed in (1, 2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    with Store(path) as store:
        keys = store.keys()
    assert keys == {replace(CELL, repeat=r, seed=s).key for r in range(40) for s in (1, 2)}
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_file_is_durable_through_a_loss_of_power(path):
    with Store(path) as store:
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_full_disk_is_told_and_leaves_what_was_there(path):
    with Store(path) as store:
        store.add([CELL])
        pages = store._pragma("page_count")
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
    with pytest.raises(ValueError, match=f"has version {SCHEMA_VERSION + 1}, and this"):
        Store(path)


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
        store.add_adapter(replace(RECORD, task="glue/sst2", fingerprint="b2"))


def test_an_adapter_whose_digital_score_is_nan_is_refused(path):
    with Store(path) as store, pytest.raises(ValueError, match="accuracy of adapter 'grasp'"):
        store.add_adapter(replace(RECORD, digital={"accuracy": float("nan")}))


def test_csv_reads_back_to_the_same_measurements(tmp_path):
    cells = [replace(CELL, adapter='a "quoted", name', value=0.1 + 0.2), CELL]
    write_csv(cells, tmp_path / "results.csv")
    text = (tmp_path / "results.csv").read_text()
    assert text.startswith("task,metric,adapter,placement,device,time_s,repeat,seed,value\n")
    kinds = Measurement.__annotations__
    number = {"float": float, "int": int, "str": str}
    rows = csv.DictReader(text.splitlines())
    read = [Measurement(**{k: number[kinds[k]](v) for k, v in row.items()}) for row in rows]
    assert read == cells


def test_csv_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = tmp_path / "results.csv"
    write_csv([CELL], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        write_csv([replace(CELL, value=float("nan"))], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
