"""Kernels on torch's threads."""

import runpy
import threading

import numpy as np
import pytest
import torch

from analog_grasp.kernels import compiled
from analog_grasp.kernels.compiled import _add_to, parallel_kernel

ROWS = 100_001


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compile_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.numba.config, "CACHE_DIR", str(tmp_path))
    return parallel_kernel


@pytest.fixture
def kernel(compile_kernel):
    return compile_kernel(_count)


def _count(first, end, counts):
    for row in range(first, end):
        counts[row] += row


def _fail_at_last_row(first, end, rows):
    if end == rows.size:
        raise RuntimeError("no such row")


def _meet(first, end, arrived, met):
    """Wait, for a while, until three threads have arrived."""
    count = _add_to(arrived, 0, 1)
    for _ in range(10**9):
        count = _add_to(arrived, 0, 0)
        if count >= 3:
            met[first] = True
            break


@pytest.mark.parametrize("rows", [0, 1, 7, ROWS])
def test_each_row_is_computed_once(three_threads, kernel, rows):
    counts = np.zeros(ROWS, np.int64)
    kernel(rows, counts)
    np.testing.assert_array_equal(counts[:rows], np.arange(rows))
    assert not counts[rows:].any()


def test_kernels_run_from_several_python_threads_at_once(three_threads, kernel):
    counts = [np.zeros(ROWS, np.int64) for _ in range(4)]
    callers = [threading.Thread(target=kernel, args=(ROWS, each)) for each in counts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for each in counts:
        np.testing.assert_array_equal(each, np.arange(ROWS))


def test_an_error_in_a_thread_is_raised(three_threads, compile_kernel):
    kernel = compile_kernel(_fail_at_last_row)
    with pytest.raises(RuntimeError, match="no such row"):
        kernel(ROWS, np.zeros(ROWS))


@pytest.mark.skipif(compiled._openmp() is None, reason="torch has no GNU OpenMP here")
def test_more_than_one_thread_works(three_threads, compile_kernel):
    arrived, met = np.zeros(ROWS, np.int64), np.zeros(3, np.bool_)
    compile_kernel(_meet)(3, arrived, met)
    assert met.all()


@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_of_one_name_in_two_files_are_distinguished(
    threads, three_threads, compile_kernel, tmp_path
):
    torch.set_num_threads(threads)
    for factor in (2, 3):
        path = tmp_path / f"kernels_{factor}.py"
        path.write_text(
            "def fill(first, end, out):\n"
            "    for row in range(first, end):\n"
            f"        out[row] = {factor} * row\n"
        )
        out = np.zeros(ROWS, np.int64)
        compile_kernel(runpy.run_path(str(path))["fill"])(ROWS, out)
        np.testing.assert_array_equal(out, factor * np.arange(ROWS))


def test_without_openmp_one_thread_computes(three_threads, kernel, monkeypatch):
    monkeypatch.setattr(compiled, "_openmp", lambda: None)
    counts = np.zeros(ROWS, np.int64)
    kernel(ROWS, counts)
    np.testing.assert_array_equal(counts, np.arange(ROWS))
