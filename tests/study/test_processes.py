"""Killed runs, and processes that share a run: nothing is lost, nothing is done twice."""

import multiprocessing
import random
import re
import sqlite3
import time
from pathlib import Path

import psutil
import pytest

from analog_grasp.cli import main
from analog_grasp.study.api import compare

# Forks from a process that has imported everything and done nothing.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["analog_grasp.cli", "analog_grasp.study.api"])


@pytest.fixture(scope="module")
def command(settings) -> list[str]:
    """Return the study as a command of 32 cells."""
    config = settings | {"repeats": 4}
    given = ["compare"]
    for name, value in config.items():
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        given += [f"--{name.replace('_', '-')}", text]
    return given


def start(command: list[str], out: Path):
    process = FORKS.Process(target=main, args=([*command, "--out", str(out)],))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory) -> tuple[bytes, float]:
    """Return the results of an undisturbed run, and its duration, s."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    start(command, out).join()  # the first one also waits for the imports
    again = out.with_name("again")
    began = time.monotonic()
    start(command, again).join()
    assert (again / "results.csv").read_bytes() == (out / "results.csv").read_bytes()
    return (out / "results.csv").read_bytes(), time.monotonic() - began


def cells(out: Path) -> set:
    """Return the rows of the store, which must be intact."""
    if not (out / "results.sqlite").exists():
        return set()
    with sqlite3.connect(out / "results.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        made = connection.execute("SELECT name FROM sqlite_master").fetchall()
        return set(connection.execute("SELECT * FROM measurements")) if made else set()


def wait_for_cells(process, out: Path, count: int) -> None:
    """Wait until a run that must not have ended has measured so many cells, by its log.

    The store is not asked: a reader waits for its lock while others write, here for most of a run.
    """
    log = out / "run.log"
    while not log.exists() or len(re.findall(" left: .* at ", log.read_text())) < count:
        assert process.is_alive()
        time.sleep(0.02)
    assert process.is_alive()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    command, undisturbed, tmp_path, kills
):
    expected, duration = undisturbed
    chance, done, rounds = random.Random(kills), 0, 0
    while done < kills:
        out, kept = tmp_path / str(rounds), set()
        while True:
            process = start(command, out)
            process.join(chance.uniform(0, duration) if done < kills else None)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            done += 1
            found = cells(out)
            assert found >= kept
            kept = found
        assert process.exitcode == 0
        assert (out / "results.csv").read_bytes() == expected
        rounds += 1


@pytest.mark.slow
def test_a_killed_run_with_workers_resumes_to_the_same_bits(command, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start([*command, "--workers", "2"], out)
    wait_for_cells(process, out, 8)
    process.kill()
    process.join(120)
    assert 8 <= len(cells(out)) < len(undisturbed[0].splitlines()) - 1
    start([*command, "--workers", "4"], out).join()
    assert (out / "results.csv").read_bytes() == undisturbed[0]


def api_compare(settings: dict, out: Path) -> None:
    compare(out, **settings)


@pytest.mark.parametrize("interface", ["command", pytest.param("Python", marks=pytest.mark.slow)])
def test_workers_end_with_a_parent_that_is_terminated(command, settings, tmp_path, interface):
    out = tmp_path / "run"
    # Of 400 cells, so that it does not end before its workers are counted.
    if interface == "command":
        process = start([*command, "--repeats", "50", "--workers", "2"], out)
    else:
        many = settings | {"repeats": 50, "workers": 2}
        process = FORKS.Process(target=api_compare, args=(many, out))
        process.start()
    wait_for_cells(process, out, 4)
    family = psutil.Process(process.pid).children(recursive=True)
    # The server that forks workers, their resource tracker, and two workers.
    assert len(family) >= 3
    process.terminate()
    process.join(60)
    assert not process.is_alive()
    deadline = time.monotonic() + 30
    while running := [each for each in family if not has_ended(each)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.1)


def has_ended(process: psutil.Process) -> bool:
    # A container may lack a process that collects orphans.
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_two_processes_share_a_run(command, undisturbed, tmp_path):
    out = tmp_path / "run"
    processes = [start(command, out) for _ in range(2)]
    for process in processes:
        process.join()
    assert (out / "results.csv").read_bytes() == undisturbed[0]
    lines = [line[20:] for line in (out / "run.log").read_text().splitlines()]
    measured = sorted(
        re.sub(".* left: ", "", line) for line in lines if ", chip" in line and " at " in line
    )
    # Each cell was measured by one of them, and each adapter trained by one of them.
    assert len(measured) == len(set(measured)) == 32
    trained = [line for line in lines if line.startswith("training")]
    assert sorted(trained) == ["training grasp", "training stochgrasp"]


def test_the_other_process_does_the_work_of_a_killed_one(command, undisturbed, tmp_path):
    out = tmp_path / "run"
    first, second = start(command, out), start(command, out)
    wait_for_cells(first, out, 8)
    first.kill()
    second.join()
    first.join()
    assert (out / "results.csv").read_bytes() == undisturbed[0]
