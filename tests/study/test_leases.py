"""Leases: processes that share a store do no work twice, and take over that of a dead process."""

import multiprocessing
import os
import platform
import time

import pytest

from analog_grasp.study import store as module
from analog_grasp.study.store import Store, open_leases


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "results.sqlite") as store:
        yield store


def owners(store):
    return dict(store._select("SELECT work, owner FROM leases"))


def elsewhere(store, work, pid, expires, machine=None):
    """Acquire a lease in the name of another process, of this machine or another one."""
    lease = (work, f"{machine or platform.node()}/{pid}/1", expires)
    store._connection.execute("INSERT INTO leases VALUES (?, ?, ?)", lease)


def test_leased_work_cannot_be_acquired(store):
    elsewhere(store, "chip 0", os.getppid(), time.time() + 60)
    with open_leases(store) as leases:
        assert not leases.acquire("chip 0")
        assert leases.acquire("chip 1")
        assert leases.acquire("chip 1")  # its own


def test_released_work_is_free_again(store):
    with open_leases(store) as leases:
        leases.acquire("chip 0")
        leases.acquire("chip 1")
        leases.release("chip 0")
        assert owners(store).keys() == {"chip 1"}
    assert owners(store) == {}


def test_a_lease_that_is_not_renewed_lapses(store):
    elsewhere(store, "chip 0", os.getppid(), time.time() - 1)
    with open_leases(store) as leases:
        assert leases.acquire("chip 0")


def acquire_and_die(path):
    with Store(path) as store, open_leases(store) as leases:
        assert leases.acquire("chip 0")
        os._exit(9)


def test_the_work_of_a_killed_process_is_taken_over_at_once(store):
    process = multiprocessing.get_context("fork").Process(
        target=acquire_and_die, args=(store.path,)
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert owners(store).keys() == {"chip 0"}
    with open_leases(store) as leases:
        assert leases.acquire("chip 0")


def test_a_lease_of_another_machine_is_valid_until_it_expires(store):
    elsewhere(store, "chip 0", 999_999_999, time.time() + 60, machine="another")
    with open_leases(store) as leases:
        assert not leases.acquire("chip 0")


def test_leases_are_renewed_during_the_work(store, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.2)
    with open_leases(store) as leases:
        leases.acquire("chip 0")
        deadline = time.time() + 0.5
        while time.time() < deadline:
            time.sleep(0.05)
        ((expires,),) = store._select("SELECT expires FROM leases")
        assert expires > deadline


def race(path, works, taken, end):
    with Store(path) as store, open_leases(store) as leases:
        for work in works:
            if leases.acquire(work):
                taken.put(work)
        # The leases of a process that ends are free again.
        end.wait(60)


def test_each_piece_of_work_goes_to_one_of_several_processes(store):
    works = [f"chip {number}" for number in range(40)]
    fork = multiprocessing.get_context("fork")
    taken, end = fork.Queue(), fork.Barrier(3)
    processes = [fork.Process(target=race, args=(store.path, works, taken, end)) for _ in range(3)]
    for process in processes:
        process.start()
    got = sorted(taken.get(timeout=60) for _ in works)
    for process in processes:
        process.join(60)
    assert got == sorted(works)
    assert taken.empty()
