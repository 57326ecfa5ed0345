"""Store: measurements survive every interruption, and processes that share it do no work twice."""

import multiprocessing
import os
import platform
import sqlite3
import time
from dataclasses import replace

import numpy as np
import pytest

from analog_grasp.study import store as module
from analog_grasp.study.records import AdapterRecord, Measurement, Origin
from analog_grasp.study.store import SCHEMA_VERSION, Leases, Store

CELL = Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 20.0, 0, 7, 0.8125)
RECORD = AdapterRecord(
    "grasp", "reviews", 1152, 770, {"accuracy": 0.87}, 12.5, "grasp", "a1", "m1", "d1"
)
ORIGIN = Origin("m1", "d1", "a1", "c1", "")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.sqlite"


@pytest.fixture
def store(path):
    with Store(path) as store:
        yield store


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
        store.add(cells, ORIGIN)
    with Store(path) as store:
        assert store.measurements() == cells
        assert store.cells() == {(cell.key, ORIGIN) for cell in cells}


def test_order_of_measurements_does_not_depend_on_the_order_of_work(store):
    cells = [replace(CELL, time_s=time, repeat=r) for time in (0.0, 20.0, 3600.0) for r in (0, 1)]
    for cell in reversed(cells):
        store.add([cell], ORIGIN)
    assert store.measurements() == cells


def test_a_measured_cell_is_never_overwritten(store):
    store.add([CELL], ORIGIN)
    store.add([replace(CELL, value=0.1), replace(CELL, repeat=1)], ORIGIN)
    assert store.measurements() == [CELL, replace(CELL, repeat=1)]


def test_numpy_numbers_are_kept_as_numbers(store):
    cell = replace(CELL, time_s=np.float32(20), seed=np.int64(7), value=np.float32(0.8125))
    store.add([cell], ORIGIN)
    assert store.measurements() == [CELL]


def add_and_die(path):
    Store(path).add([CELL], ORIGIN)
    os._exit(9)


def test_a_row_is_kept_when_the_process_is_killed_after_add(path):
    assert ended(start(add_and_die, path)) == 9
    with Store(path) as store:
        assert store.measurements() == [CELL]


def add_forty(path, seed):
    with Store(path) as store:
        for repeat in range(40):
            store.add([replace(CELL, repeat=repeat, seed=seed)], ORIGIN)


def test_two_processes_write_different_cells(path):
    processes = [start(add_forty, path, seed) for seed in (1, 2)]
    assert [ended(process) for process in processes] == [0, 0]
    with Store(path) as store:
        keys = {key for key, _ in store.cells()}
        assert store._pragma("integrity_check") == "ok"
    assert keys == {replace(CELL, repeat=r, seed=s).key for r in range(40) for s in (1, 2)}


def test_the_file_is_durable_and_works_on_network_file_systems(store):
    # A write-ahead log needs shared memory, which NFS does not have.
    assert store._pragma("journal_mode") == "delete"
    assert store._pragma("synchronous") == 3
    store.add([CELL], ORIGIN)
    assert list(store.path.parent.iterdir()) == [store.path]


def test_a_store_in_a_read_only_folder_is_read(path):
    with Store(path) as store:
        store.add([CELL], ORIGIN)
    content = path.read_bytes()
    with Store(path, readonly=True) as store:
        assert store.measurements() == [CELL]
        with pytest.raises(OSError, match="readonly database"):
            store.add([replace(CELL, repeat=1)], ORIGIN)
    assert path.read_bytes() == content
    with pytest.raises(OSError, match="in a folder that exists"):
        Store(path.with_name("none.sqlite"), readonly=True)


def test_a_full_disk_raises_and_keeps_what_was_there(store):
    store.add([CELL], ORIGIN)
    store._pragma(f"max_page_count = {store._pragma('page_count')}")
    with pytest.raises(OSError, match=r"disk is full.*is kept.*same command resumes"):
        store.add([replace(CELL, repeat=repeat) for repeat in range(1, 1000)], ORIGIN)
    store._pragma(f"max_page_count = {1 << 20}")
    store.add([replace(CELL, repeat=1)], ORIGIN)
    assert store.measurements() == [CELL, replace(CELL, repeat=1)]


def test_cells_of_another_origin_are_other_cells(store):
    origins = [ORIGIN, *(ORIGIN._replace(**{name: "other"}) for name in Origin._fields)]
    for number, origin in enumerate(origins):
        store.add([replace(CELL, value=number / 10)], origin)
    assert store.cells() == {(CELL.key, origin) for origin in origins}


def test_the_cells_of_one_chip(store):
    store.add([CELL, replace(CELL, seed=8), replace(CELL, device="rram")], ORIGIN)
    assert store.cells("pcm", 8) == {(replace(CELL, seed=8).key, ORIGIN)}


def test_an_edited_card_is_another_card_and_the_old_cells_are_kept(store):
    store.set_card("pcm", "c1")
    store.add([CELL], ORIGIN)
    store.set_card("pcm", "c2")
    assert store.measurements() == []
    store.add([replace(CELL, value=0.5)], ORIGIN._replace(card_hash="c2"))
    assert [cell.value for cell in store.measurements()] == [0.5]
    store.set_card("pcm", "c1")
    assert store.measurements() == [CELL]


def make_later_version(path):
    with Store(path) as store:
        store._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def make_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (make_later_version, f"has version {SCHEMA_VERSION + 1}, and this"),
        (make_database, "is not a store of measurements"),
        (lambda path: path.write_text("no store, " * 200), "is not a store of measurements"),
    ],
)
def test_another_file_raises_and_is_unchanged(path, make, sentence):
    make(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=sentence):
        Store(path)
    assert path.read_bytes() == before


def test_a_damaged_store_raises(path):
    with Store(path) as store:
        store.add([CELL], ORIGIN)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(OSError, match="must be an undamaged file"), Store(path) as store:
        store.measurements()


def test_adapters_come_back_in_the_order_they_were_added(path):
    records = [replace(RECORD, adapter=name) for name in ("stochgrasp", "grasp")]
    with Store(path) as store:
        for record in records:
            store.add_adapter(record)
    with Store(path) as store:
        assert store.adapters() == records


def test_the_first_record_of_an_adapter_is_kept(store):
    store.add_adapter(RECORD)
    store.add_adapter(replace(RECORD, train_seconds=99.0))
    assert store.adapters() == [RECORD]
    other = replace(RECORD, task="glue/sst2", digital={"accuracy": np.float32(0.5)})
    store.add_adapter(other)
    assert store.adapters() == [RECORD, other]


def owners(store):
    return dict(store._select("SELECT work, owner FROM leases"))


@pytest.mark.parametrize(
    ("machine", "pid", "seconds", "free"),
    [
        (platform.node(), os.getppid(), 60, False),
        (platform.node(), os.getppid(), -1, True),
        ("another", 999_999_999, 60, False),
    ],
)
def test_leased_work_cannot_be_acquired_until_the_lease_expires(store, machine, pid, seconds, free):
    lease = ("chip 0", f"{machine}/{pid}/1", time.time() + seconds)
    store._connection.execute("INSERT INTO leases VALUES (?, ?, ?)", lease)
    with Leases(store) as leases:
        assert leases.acquire("chip 0") is free
        assert leases.acquire("chip 1")
        assert leases.acquire("chip 1")  # its own


def test_released_work_is_free_again(store):
    with Leases(store) as leases:
        leases.acquire("chip 0")
        leases.acquire("chip 1")
        leases.release("chip 0")
        assert owners(store).keys() == {"chip 1"}
    assert owners(store) == {}


def acquire_and_die(path):
    with Store(path) as store, Leases(store) as leases:
        assert leases.acquire("chip 0")
        os._exit(9)


def test_the_work_of_a_killed_process_is_taken_over_at_once(store):
    assert ended(start(acquire_and_die, store.path)) == 9
    assert owners(store).keys() == {"chip 0"}
    with Leases(store) as leases:
        assert leases.acquire("chip 0")


def test_leases_are_renewed_during_the_work(store, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.2)
    with Leases(store) as leases:
        leases.acquire("chip 0")
        deadline = time.time() + 0.5
        while time.time() < deadline:
            time.sleep(0.05)
        ((expires,),) = store._select("SELECT expires FROM leases")
        assert expires > deadline


def race(path, works, taken, end):
    with Store(path) as store, Leases(store) as leases:
        for work in works:
            if leases.acquire(work):
                taken.put(work)
        # The leases of a process that ends are free again.
        end.wait(60)


def test_each_piece_of_work_goes_to_one_of_several_processes(store):
    works = [f"chip {number}" for number in range(40)]
    fork = multiprocessing.get_context("fork")
    taken, end = fork.Queue(), fork.Barrier(3)
    processes = [start(race, store.path, works, taken, end) for _ in range(3)]
    got = sorted(taken.get(timeout=60) for _ in works)
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert got == sorted(works)
    assert taken.empty()
