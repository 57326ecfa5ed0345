"""Processes that share a store do no work twice, and take over what a dead one has left."""

import multiprocessing
import os
import platform
import time

import pytest

from analog_grasp.study import leases as module
from analog_grasp.study.leases import claiming
from analog_grasp.study.store import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "results.sqlite") as store:
        yield store


def claims_of(store):
    return dict(store._select("SELECT work, owner FROM claims"))


def elsewhere(store, work, pid, expires):
    """A claim of another process on this machine."""
    owner = f"{platform.node()}/{pid}/1"
    assert store.claim(work, owner, expires, lambda *_: False)
    return owner


def test_work_that_is_claimed_cannot_be_taken(store):
    elsewhere(store, "chip 0", os.getppid(), time.time() + 60)
    with claiming(store) as claims:
        assert not claims.take("chip 0")
        assert claims.take("chip 1")
        assert claims.take("chip 1")  # its own


def test_work_is_free_again_when_it_is_released(store):
    with claiming(store) as claims:
        claims.take("chip 0")
        claims.take("chip 1")
        claims.release("chip 0")
        assert claims_of(store).keys() == {"chip 1"}
    assert claims_of(store) == {}


def test_a_claim_lapses_that_nobody_renews(store):
    elsewhere(store, "chip 0", os.getppid(), time.time() - 1)
    with claiming(store) as claims:
        assert claims.take("chip 0")


def take_and_die(path):
    with Store(path) as store, claiming(store) as claims:
        assert claims.take("chip 0")
        os._exit(9)


def test_the_work_of_a_process_that_was_killed_is_taken_over_at_once(store):
    process = multiprocessing.get_context("fork").Process(target=take_and_die, args=(store.path,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert claims_of(store).keys() == {"chip 0"}
    with claiming(store) as claims:
        assert claims.take("chip 0")


def test_a_claim_of_another_machine_lasts_as_long_as_its_lease(store):
    store.claim("chip 0", "another/999999999/1", time.time() + 60, lambda *_: False)
    with claiming(store) as claims:
        assert not claims.take("chip 0")


def test_claims_are_renewed_while_the_work_goes_on(store, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    monkeypatch.setattr(module, "LEASE", 0.2)
    with claiming(store) as claims:
        claims.take("chip 0")
        deadline = time.time() + 0.5
        while time.time() < deadline:
            time.sleep(0.05)
        ((expires,),) = store._select("SELECT expires FROM claims")
        assert expires > deadline


def race(path, works, taken, end):
    with Store(path) as store, claiming(store) as claims:
        for work in works:
            if claims.take(work):
                taken.put(work)
        # The claims of one that leaves are free again.
        end.wait(60)


def test_of_processes_that_race_one_gets_each_piece_of_work(store):
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
