"""Trials: what they measure, on which data and chips, and when they are pruned."""

import statistics

import pytest

from analog_grasp import StochGraspConfig
from analog_grasp.crossbar import deploy
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import flat, resolve
from analog_grasp.study.evaluator import Cell
from analog_grasp.study.trained_adapters import new_adapter, train_adapter
from analog_grasp.tasks import load_task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tuning import tuner
from analog_grasp.tuning.api import NOT_TUNED, tune_noise_weight
from analog_grasp.tuning.tuner import prepare_tuning, tune, tuning_rounds


def test_a_trial_is_the_mean_over_chips_of_its_own_on_held_out_training_rows(settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 1)
    (trial,) = tuning.trials()

    task = tuning_task(load_task("lengths"), settings.run.seed)
    model = new_adapter(settings, task, "stochgrasp")
    train_adapter(model, settings, task, "", lambda *_: lambda *_: None)
    assert trial.digital == task.evaluate(model)
    cells = {}
    for chips in tuning_rounds(settings, settings.hardware.devices):
        for chip in chips:
            deployment = deploy(model, DeviceCard.load(chip.device)).program(chip.seed)
            for time_s in (0.0, 86_400.0):
                score = task.evaluate(deployment.drift_to(time_s).model)
                cells.setdefault((chip.device, time_s), []).append(score)
    assert trial.cells == cells
    assert trial.score == pytest.approx(
        statistics.mean(s for found in cells.values() for s in found), abs=1e-15
    )


def test_no_chip_of_a_comparison_is_tuned_on(settings):
    rounds = tuning_rounds(settings, settings.hardware.devices)
    assert [[chip.device for chip in chips] for chips in rounds] == [
        list(settings.hardware.devices)
    ] * 2
    seeds = {chip.seed for chips in rounds for chip in chips}
    assert len(seeds) == 2
    assert not seeds & set(range(settings.run.seed, settings.run.seed + 1000))


def test_training_rows_are_divided_and_validation_rows_left_alone():
    task, divided = load_task("lengths"), tuning_task(load_task("sealed"), seed=1)
    train, held = divided.train["text"][:], divided.validation["text"][:]
    assert (len(train), len(held)) == (16, 4)
    assert sorted([*train, *held]) == sorted(task.train["text"][:])
    assert tuning_task(load_task("sealed"), seed=1).validation["text"][:] == held
    assert tuning_task(load_task("sealed"), seed=2).validation["text"][:] != held


@pytest.mark.parametrize("held_out", [0, 11])
def test_neither_nothing_nor_most_is_held_out(held_out):
    with pytest.raises(ValueError, match="from 1 to 10"):
        tuning_task(load_task("lengths"), 0, held_out)


def test_a_training_split_too_small_to_divide():
    with pytest.raises(ValueError, match="has 9 training rows"):
        tuning_task(load_task("lengths").subset(train=9), 0)


def test_the_best_setting_is_judged_on_the_validation_rows_and_other_chips(settings, tmp_path):
    asked = flat(settings, NOT_TUNED) | {"task": "lengths", "times": ("1d",)}
    tuned = tune_noise_weight(tmp_path / "run", trials=2, **asked)
    best = resolve({}, tmp_path / "run" / "best.toml")
    tuned_alone = resolve(asked).replace(adapters=("stochgrasp",), **tuned.best.values)
    assert best == tuned.settings == tuned_alone
    assert {cell.seed for cell in tuned.results.measurements} == {3, 4}
    # One goal has no Pareto front.
    assert tuned.trials.front == [tuned.best]
    folder = tmp_path / "run" / f"trial-{tuned.best.number}"
    assert resolve({}, folder / "run.toml") == best
    for file in tuned.files:
        assert file.stat().st_size > 0
    names = {"trials.csv", "best.toml", "summary.md", "report.html"}
    stems = ("pearson_vs_noise_weight", "front")
    drawn = {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg", "pdf")}
    assert {file.name for file in tuned.files} == names | drawn


@pytest.fixture
def formula_by_cell(monkeypatch):
    """Replace measurements by a formula: better at a smaller noise weight, NaN at 0."""

    class Formula:
        def __init__(self, task, models, *_):
            (self.model,) = models.values()

        def measure(self, job):
            for subject in sorted(job.cells):
                aged = 0.8 - 0.01 * self.model - subject.time_s / 1e6
                yield Cell(job.chip, subject, {"pearson": aged + job.chip.seed % 7 / 100}, "")

    class Weight(float):
        active_peft_config = StochGraspConfig()

    def made(settings, task, adapter):
        if settings.training.noise_weight == 0:
            raise ValueError("A logit is NaN.")
        return Weight(settings.training.noise_weight)

    monkeypatch.setattr(tuner, "Evaluator", Formula)
    monkeypatch.setattr(tuner, "new_adapter", made)
    monkeypatch.setattr(tuner, "train_adapter", lambda *_: 0.0)
    monkeypatch.setattr(SentenceTask, "evaluate", lambda *_: 0.9)


def test_a_trial_worse_on_the_same_chips_is_pruned_after_a_round(
    formula_by_cell, settings, tmp_path
):
    asked = settings.replace(repeats=3, times=("0s", "1h", "1d"))
    tuning = prepare_tuning(asked, tmp_path / "run")
    tune(tuning, 10)
    best, failed, *others = tuning.trials()
    assert best.pruned == ""
    assert [len(scores) for scores in best.cells.values()] == [3] * 6
    assert (failed.score, failed.pruned) == (None, "A logit is NaN.")
    worse = [trial for trial in others if trial.values["noise_weight"] > 1]
    assert worse
    for trial in worse:
        assert trial.score is None
        assert trial.pruned == "worse than the best trial on the same chips"
        assert [len(scores) for scores in trial.cells.values()] == [1] * 6


def test_with_two_goals_nothing_is_pruned_early(formula_by_cell, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run", multi=True)
    tune(tuning, 6)
    assert [t.number for t in tuning.trials() if t.pruned] == [1]


def test_a_study_of_failures_raises(monkeypatch, settings, tmp_path):
    def measure(*_):
        raise ValueError("A logit is NaN.")

    monkeypatch.setattr(tuner, "measure", measure)
    with pytest.raises(
        ValueError, match=r"No trial .* could be measured completely: .* trials\.csv"
    ):
        tune_noise_weight(tmp_path / "run", trials=2, **flat(settings, NOT_TUNED))
    assert "A logit is NaN." in (tmp_path / "run" / "trials.csv").read_text()
