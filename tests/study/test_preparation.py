"""Preparation: several processes train the adapters of a study and fit them to ages."""

import multiprocessing
import os
import time
import warnings
from functools import partial

import pytest
import torch

from analog_grasp.study.config import resolve
from analog_grasp.study.engines import helped


def leave_file(folder, then):
    """Warn, leave a file named after this process and its threads, then fail or wait."""
    # As the package would: warnings of others are dropped.
    exec("warn('a collapsed training')", {"__name__": "analog_grasp.here", "warn": warnings.warn})
    (folder / f"{os.getpid()}-{torch.get_num_threads()}").touch()
    if then == "fail":
        raise ValueError("a diverged training")
    time.sleep(600)


def files_of(folder, count):
    """Return the files in a folder as soon as there are so many."""
    deadline = time.monotonic() + 60
    while len(found := list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_helpers_train_beside_the_first_process_to_the_same_bits(
    settings, finished_run, tmp_path, run_study, read_values
):
    out, own = tmp_path / "run", []
    log = out / "run.log"

    def begin(description, _total):
        if description.startswith("training"):
            own.append(description)
            # The other adapter is trained by the other process meanwhile.
            deadline = time.monotonic() + 60
            while not log.exists() or "training" not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        return lambda latest="": None

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        run_study(resolve(settings | {"workers": 2}), out, begin)
    # That of the other process too.
    constant = [str(note.message) for note in notes if "predicts the same" in str(note.message)]
    assert sorted(text.split()[2] for text in constant) == ["grasp", "stochgrasp"]
    assert len(own) == 1
    assert log.read_text().count("training") == 2
    assert read_values(out) == read_values(finished_run)
    assert multiprocessing.active_children() == []


def test_helpers_fit_the_ages_of_devices(settings, tmp_path, run_study, read_values):
    ages = settings | {"schedule": "simulated", "adapters": "grasp", "repeats": 1}
    one = run_study(resolve(ages), tmp_path / "one")
    two = run_study(resolve(ages | {"workers": 2}), tmp_path / "two")
    assert read_values(one) == read_values(two)
    assert (two / "run.log").read_text().count("ages of") == 2


def test_a_helper_that_fails_leaves_its_work_to_this_process(tmp_path):
    with (
        pytest.warns(UserWarning, match="a collapsed training"),
        helped(partial(leave_file, tmp_path, "fail"), 2),
    ):
        files_of(tmp_path, 1)
    assert multiprocessing.active_children() == []


def test_helpers_share_the_threads_and_end_with_the_block(tmp_path):
    before = torch.get_num_threads()

    def interrupted():
        with helped(partial(leave_file, tmp_path, "wait"), 2):
            assert torch.get_num_threads() == 2
            [found] = files_of(tmp_path, 1)
            assert found.name.endswith("-2")
            raise KeyboardInterrupt

    try:
        torch.set_num_threads(4)
        # Its warnings are known also then.
        with (
            pytest.warns(UserWarning, match="a collapsed training"),
            pytest.raises(KeyboardInterrupt),
        ):
            interrupted()
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert multiprocessing.active_children() == []
