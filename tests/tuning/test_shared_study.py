"""Studies that are resumed after a kill, and shared by several processes."""

import json
import subprocess
import sys
import time

import pytest

from analog_grasp.study.config import StudyConfig, flat
from analog_grasp.tuning import tuner
from analog_grasp.tuning.optuna_study import quiet_optuna, share_heartbeats
from analog_grasp.tuning.tuner import prepare_tuning, tune

CHILD = """
import json, sys, time
from pathlib import Path
from analog_grasp.study.config import resolve
from analog_grasp.tuning import tuner

settings, folder, began, hangs = resolve(json.loads(sys.argv[1])), *sys.argv[2:]
measure = tuner.measure

def watched(trial, *others):
    if trial.number == int(hangs):
        Path(began).touch()
        time.sleep(600)
    measured = measure(trial, *others)
    if int(hangs) < 0:
        Path(began).touch()
    return measured

tuner.measure = watched
tuner.tune(tuner.prepare_tuning(settings, Path(folder), held_out=50), 3)
"""


@pytest.fixture
def in_another_process(quick, tmp_path):
    """Return a function that tunes in another process, which may hang at a trial."""

    def begin(folder, hangs=-1) -> subprocess.Popen:
        began = tmp_path / "began"
        arguments = [json.dumps(flat(quick)), str(folder), str(began), str(hangs)]
        process = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
        while not began.exists():
            assert process.poll() is None
            time.sleep(0.05)
        return process

    return begin


@pytest.fixture(scope="module")
def quick(bert_folder) -> StudyConfig:
    """Return settings of a trial of a second, on a task that every process knows."""
    return StudyConfig().replace(
        model=str(bert_folder), devices=("ideal",), times=("1d",), repeats=1, groups=4, epochs=0.05,
        then="none",
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tried, quick, tmp_path_factory) -> dict:
    """Return the results of one undisturbed process."""
    tuning = prepare_tuning(quick, tmp_path_factory.mktemp("alone") / "run", held_out=50)
    tune(tuning, 3)
    return tried(tuning)


def test_an_interrupted_trial_is_tried_again(tried, formula, settings, tmp_path, monkeypatch):
    whole = prepare_tuning(settings, tmp_path / "whole")
    tune(whole, 6)
    tuning = prepare_tuning(settings, tmp_path / "run")
    measure = tuner.measure

    def interrupted(trial, *others):
        if trial.number == 1:
            raise KeyboardInterrupt
        return measure(trial, *others)

    monkeypatch.setattr(tuner, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tuning, 6)
    assert len(tuning.trials()) == 1
    tune(prepare_tuning(settings, tmp_path / "run"), 6)
    assert tried(tuning) == tried(whole)


@pytest.mark.slow
def test_a_study_resumes_after_a_kill(tried, alone, in_another_process, impatient, quick, tmp_path):
    process = in_another_process(tmp_path / "run", hangs=1)
    process.kill()
    process.wait()
    tuning = prepare_tuning(quick, tmp_path / "run", held_out=50)
    assert len(tuning.trials()) == 1
    tune(tuning, 3)
    assert tried(tuning) == alone


def test_a_trial_killed_before_its_first_heartbeat_is_tried_again(
    formula, impatient, settings, tmp_path
):
    tuning = prepare_tuning(settings, tmp_path / "run")
    with pytest.warns(UserWarning, match="supposed to be used with Study.optimize"):
        tuning.study.ask()
    share_heartbeats(tuning.study, tuning.storage)
    tune(tuning, 2)
    assert {trial.values["noise_weight"] for trial in tuning.trials()} == {0.01, 0.0}


@pytest.mark.slow
def test_two_processes_share_one_study(
    tried, alone, in_another_process, quick, tmp_path, monkeypatch
):
    """Together they finish as many trials as were asked for, and not one more."""
    monkeypatch.setattr(tuner, "_POLL_SECONDS", 0.1)
    process = in_another_process(tmp_path / "run")
    tuning = prepare_tuning(quick, tmp_path / "run", held_out=50)
    tune(tuning, 3)
    assert process.wait() == 0
    assert len(tuning.trials()) == 3
    assert tried(tuning) == alone


def test_a_surplus_trial_is_put_back(formula, settings, tmp_path):
    """Two processes may start the last trial at the same moment."""
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 1)
    with quiet_optuna():
        tuning.study.optimize(
            lambda trial: tuner._run_trial(tuning, trial, 1), n_trials=1, catch=tuner._SurplusError
        )
    assert len(tuning.trials()) == 1
    tune(tuning, 2)
    assert [trial.values["noise_weight"] for trial in tuning.trials()] == [0.01, 0.0]


def test_two_processes_on_one_file_elsewhere(tried, formula, settings, tmp_path):
    """Two machines with one database each have an output folder of their own."""
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    one = prepare_tuning(settings, tmp_path / "here" / "run", storage=url)
    two = prepare_tuning(settings, tmp_path / "there" / "run", storage=url)
    tune(one, 3)
    tune(two, 6)
    assert tried(one) == tried(two)
    assert len(one.trials()) == 6
    assert not (tmp_path / "here" / "run" / "study.sqlite").exists()
