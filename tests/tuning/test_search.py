"""Search: which values are tried, in which order, and which are best."""

from dataclasses import replace

import pytest

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.sections import TaskSettings
from analog_grasp.tasks import load_task
from analog_grasp.tuning import optuna_study, tuner
from analog_grasp.tuning.optuna_study import first_values
from analog_grasp.tuning.search_space import search_space
from analog_grasp.tuning.tuner import prepare_tuning, tune


def test_the_given_settings_come_first_then_those_without_the_loss(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 6)
    found = [trial.values["noise_weight"] for trial in tuning.trials()]
    assert found[:2] == [0.01, 0.0]
    assert all(1e-3 <= value <= 1e2 for value in found[2:])
    assert len(set(found)) == 6


def test_a_given_zero_is_not_tried_twice():
    space = search_space(["noise_weight", "groups"])
    assert first_values(StudyConfig().replace(noise_weight=0), space) == [
        {"noise_weight": 0.0, "groups": StudyConfig().training.groups}
    ]


@pytest.mark.slow
def test_the_search_comes_near_the_best(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 20)
    best = tuning.front()[0]
    assert 0.05 < best.values["noise_weight"] < 0.2
    assert best.score == max(trial.score for trial in tuning.trials())


def test_the_same_study_again_tries_the_same(tried, formula, settings, tmp_path, monkeypatch):
    # So that earlier results influence later values.
    monkeypatch.setattr(optuna_study, "_RANDOM_TRIALS", 3)
    studies = [prepare_tuning(settings, tmp_path / name) for name in ("a", "b")]
    tune(studies[0], 6)
    for trials in (4, 6):
        tune(studies[1], trials)
    assert tried(studies[0]) == tried(studies[1])
    other = prepare_tuning(settings.replace(seed=4), tmp_path / "c")
    tune(other, 3)
    assert tried(other).keys() - tried(studies[0]).keys()


def test_several_settings_are_searched_in_their_ranges(formula, settings, tmp_path):
    search = ("noise_weight", "noise_target", "groups", "learning_rate", "injection")
    ranges = {"groups": (2, 8), "noise_target": (0.05, 0.2)}
    tuning = prepare_tuning(settings, tmp_path / "run", search=search, ranges=ranges)
    tune(tuning, 12)
    first, without, *others = tuning.trials()
    # The learning rate is the adapter's own where none is given.
    given = {"noise_weight": 0.01, "noise_target": 0.1, "groups": 4, "injection": 0.04}
    assert first.values == given | {"learning_rate": ADAPTERS["stochgrasp"].learning_rate}
    assert without.values == first.values | {"noise_weight": 0.0}
    for trial in others:
        assert trial.values["groups"] in range(2, 9)
        assert 0.05 <= trial.values["noise_target"] <= 0.2
        assert 1e-4 <= trial.values["learning_rate"] <= 1e-1
        assert 0 <= trial.values["injection"] <= 0.1
    # Only the loss weight is in the formula.
    shares = tuning.importance()["score"]
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_requires_enough_trials(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 4)
    assert tuning.importance() == {}
    tune(tuning, 10)
    assert tuning.importance() == {"score": {"noise_weight": 1.0}}


def test_the_front_holds_the_trials_that_none_dominates(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run", multi=True)
    tune(tuning, 12)
    trials = tuning.trials()

    def dominated(trial):
        return any(
            o.score >= trial.score and o.digital >= trial.digital and o.values != trial.values
            for o in trials
        )

    assert {t.number for t in tuning.front()} == {t.number for t in trials if not dominated(t)}
    assert tuning.front()[0].score == max(trial.score for trial in trials)
    assert set(tuning.importance()) == {"score", "digital"}


@pytest.mark.parametrize("multi", [False, True])
def test_a_metric_that_is_better_the_lower_is_minimised(
    formula, settings, tmp_path, monkeypatch, multi
):
    higher = prepare_tuning(settings, tmp_path / "higher", multi=multi)
    tune(higher, 12)
    measure = tuner.measure

    def negative(trial, *asked):
        score, digital = measure(trial, *asked)
        trial.set_user_attr("digital", -trial.user_attrs["digital"])
        return -score, -digital

    errors = replace(load_task("lengths"), metrics=("mse",))
    monkeypatch.setattr(TaskSettings, "load", lambda _: errors)
    monkeypatch.setattr(tuner, "measure", negative)
    lower = prepare_tuning(settings, tmp_path / "lower", multi=multi)
    tune(lower, 12)
    assert [t.values for t in lower.trials()] == [t.values for t in higher.trials()]
    assert [t.score for t in lower.trials()] == [-t.score for t in higher.trials()]
    assert [t.number for t in lower.front()] == [t.number for t in higher.front()]
    assert lower.importance() == higher.importance()


def test_a_default_out_of_the_given_range_is_not_tried(settings, tmp_path):
    search, ranges = ["noise_weight", "groups"], {"noise_weight": (0.1, 10), "groups": (1, 3)}
    tuning = prepare_tuning(settings, tmp_path / "run", search=search, ranges=ranges)
    first, without = first_values(tuning.config, tuning.space)
    # The fixture gives 4 groups.
    assert first == {"noise_weight": 0.1, "groups": 4}
    assert without == first | {"noise_weight": 0.0}
