"""Tuning: what is tried and on which data, and a study that outlives its processes.

Where a trial is measured for real, it is on a tiny model and a task whose scores show every bit;
where the study itself is looked at, a formula takes the place of the measuring.
"""

import math
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from datasets import Dataset
from sqlalchemy import event

from analog_grasp.crossbar import deploy
from analog_grasp.devices import DeviceCard
from analog_grasp.experiments import Settings, new_adapter, resolve, train_adapter
from analog_grasp.experiments import search as search_module
from analog_grasp.experiments import study_storage as storage_module
from analog_grasp.experiments import trial as trial_module
from analog_grasp.experiments import tune as tune_module
from analog_grasp.experiments.bench import Cell
from analog_grasp.experiments.search import first_values, quiet_optuna, search_space
from analog_grasp.experiments.study_storage import share_heartbeats, shown_url
from analog_grasp.experiments.trial import tuning_rounds
from analog_grasp.experiments.tune import Tuning, prepare_tuning, tune, with_values
from analog_grasp.tasks import builtin, registry
from analog_grasp.tasks.division import tuning_task
from analog_grasp.tasks.sentences import SentenceTask
from analog_grasp.tuning import tune_noise_weight

DEVICES = ("pcm-hermes-2", "rram-wan2022")


def lengths(_data_dir=None) -> SentenceTask:
    """How long is the sentence?"""
    reviews = builtin.reviews(train=20, validation=6)

    def measured(rows: Dataset) -> Dataset:
        text = rows["text"][:]
        return Dataset.from_dict({"text": text, "label": [len(line) / 50 for line in text]})

    return SentenceTask(
        "lengths", measured(reviews.train), measured(reviews.validation), (), ("pearson",)
    )


class Sealed:
    """Rows that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"The validation rows were asked for {name}.")

    def __len__(self):
        raise AssertionError("The validation rows were counted.")

    def __getitem__(self, key):
        raise AssertionError("The validation rows were read.")


def sealed(_data_dir=None) -> SentenceTask:
    """The same task, before its validation rows may be looked at."""
    task = lengths()
    task.validation = Sealed()
    return task


@pytest.fixture(autouse=True, scope="module")
def known_tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._LOADERS, "lengths", lengths)
        patch.setitem(registry._LOADERS, "sealed", sealed)
        yield


@pytest.fixture
def settings(bert_folder) -> Settings:
    return Settings(
        model=str(bert_folder), task="sealed", devices=DEVICES, times=("0s", "1d"), repeats=2,
        groups=4, epochs=1, batch_size=8, seed=3,
    )  # fmt: skip


@pytest.fixture
def formula(monkeypatch):
    """Puts a formula of the settings in the place of the measuring; 0.9 at most, at lambda 0.1."""

    def measure(trial, settings, *_):
        distance = abs(math.log10(settings.noise_weight + 1e-6) + 1)
        trial.set_user_attr("digital", 0.9 - 0.01 * distance)
        trial.set_user_attr("cells", [["ideal", 0.0, [0.9 - 0.1 * distance]]])
        return 0.9 - 0.1 * distance, 0.9 + 0.01 * distance

    monkeypatch.setattr(tune_module, "measure", measure)


@pytest.fixture
def impatient(monkeypatch):
    """A process that does not answer is given up for dead at once."""
    monkeypatch.setattr(storage_module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storage_module, "GRACE_SECONDS", 1)
    monkeypatch.setattr(tune_module, "_POLL_SECONDS", 0.1)


def tried(tuning: Tuning) -> dict:
    """The scores by what was tried."""
    return {tuple(sorted(t.values.items())): t.score for t in tuning.trials()}


# --- what is measured -----------------------------------------------------------------------


def test_a_trial_is_the_mean_over_chips_of_its_own_on_held_out_training_rows(settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 1)
    (trial,) = tuning.trials()

    task = tuning_task(lengths(), settings.seed)
    model = new_adapter(settings, task, "stochgrasp")
    train_adapter(model, settings, task, "", lambda *_: lambda *_: None)
    assert trial.digital == task.evaluate(model)
    cells = {}
    for chips in tuning_rounds(settings, DEVICES):
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
    rounds = tuning_rounds(settings, DEVICES)
    assert [[chip.device for chip in chips] for chips in rounds] == [list(DEVICES)] * 2
    seeds = {chip.seed for chips in rounds for chip in chips}
    assert len(seeds) == 2
    assert not seeds & set(range(settings.seed, settings.seed + 1000))


def test_training_rows_are_divided_and_validation_rows_left_alone():
    task, divided = lengths(), tuning_task(sealed(), seed=1)
    train, held = divided.train["text"][:], divided.validation["text"][:]
    assert (len(train), len(held)) == (16, 4)
    assert sorted([*train, *held]) == sorted(task.train["text"][:])
    assert tuning_task(sealed(), seed=1).validation["text"][:] == held
    assert tuning_task(sealed(), seed=2).validation["text"][:] != held


@pytest.mark.parametrize("held_out", [0, 11])
def test_neither_nothing_nor_most_is_held_out(held_out):
    with pytest.raises(ValueError, match="from 1 to 10"):
        tuning_task(lengths(), 0, held_out)


def test_a_training_split_too_small_to_divide():
    with pytest.raises(ValueError, match="has 9 training rows"):
        tuning_task(lengths().subset(train=9), 0)


def test_the_best_setting_is_judged_on_the_validation_rows_and_other_chips(settings, tmp_path):
    asked = settings.model_dump() | {"task": "lengths", "times": ("1d",)}
    tuned = tune_noise_weight(tmp_path / "run", trials=2, **asked)
    best = resolve({}, tmp_path / "run" / "best.toml")
    assert best == tuned.settings == with_values(Settings(**asked), tuned.best.values)
    assert {cell.seed for cell in tuned.results.measurements} == {3, 4}
    folder = tmp_path / "run" / f"trial-{tuned.best.number}"
    assert resolve({}, folder / "run.toml") == best.model_copy(update={"adapters": ("stochgrasp",)})
    for file in tuned.files:
        assert file.stat().st_size > 0
    names = {"trials.csv", "best.toml", "summary.md", "report.html"}
    drawn = {f"pearson_vs_noise_weight.{kind}" for kind in ("png", "svg", "pdf")}
    assert {file.name for file in tuned.files} == names | drawn


# --- what is tried --------------------------------------------------------------------------


def test_the_given_settings_come_first_then_those_without_the_loss(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 6)
    found = [trial.values["noise_weight"] for trial in tuning.trials()]
    assert found[:2] == [1.0, 0.0]
    assert all(1e-3 <= value <= 1e2 for value in found[2:])
    assert len(set(found)) == 6


def test_a_zero_that_is_given_is_not_tried_twice():
    space = search_space(["noise_weight", "groups"])
    assert first_values(Settings(noise_weight=0), space) == [{"noise_weight": 0.0, "groups": 16}]


@pytest.mark.slow
def test_the_search_comes_near_the_best(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 20)
    best = tuning.front()[0]
    assert 0.05 < best.values["noise_weight"] < 0.2
    assert best.score == max(trial.score for trial in tuning.trials())


def test_the_same_study_again_tries_the_same(formula, settings, tmp_path, monkeypatch):
    # So that what is seen has a say in what comes next.
    monkeypatch.setattr(search_module, "_RANDOM_TRIALS", 3)
    studies = [prepare_tuning(settings, tmp_path / name) for name in ("a", "b")]
    tune(studies[0], 6)
    for trials in (4, 6):
        tune(studies[1], trials)
    assert tried(studies[0]) == tried(studies[1])
    other = prepare_tuning(settings.model_copy(update={"seed": 4}), tmp_path / "c")
    tune(other, 3)
    assert tried(other).keys() - tried(studies[0]).keys()


def test_several_settings_are_searched_in_their_ranges(formula, settings, tmp_path):
    search = ("noise_weight", "noise_target", "groups", "learning_rate", "injection")
    ranges = {"groups": (2, 8), "noise_target": (0.05, 0.2)}
    tuning = prepare_tuning(settings, tmp_path / "run", search=search, ranges=ranges)
    tune(tuning, 12)
    first, without, *others = tuning.trials()
    # The learning rate is the adapter's own where none is given.
    given = {"noise_weight": 1.0, "noise_target": 0.1, "groups": 4, "injection": 0.04}
    assert first.values == given | {"learning_rate": 0.01}
    assert without.values == first.values | {"noise_weight": 0.0}
    for trial in others:
        assert trial.values["groups"] in range(2, 9)
        assert 0.05 <= trial.values["noise_target"] <= 0.2
        assert 1e-4 <= trial.values["learning_rate"] <= 1e-1
        assert 0 <= trial.values["injection"] <= 0.1
    # Only the loss weight is in the formula.
    shares = tuning.importance()["score"]
    assert sum(shares.values()) == pytest.approx(1)
    assert tuning.settings_of(others[0]).groups == others[0].values["groups"]


def test_importance_waits_for_enough_trials(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 4)
    assert tuning.importance() == {}
    tune(tuning, 10)
    assert tuning.importance() == {"score": {"noise_weight": 1.0}}


def test_the_front_holds_what_nothing_beats(formula, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run", multi=True)
    tune(tuning, 12)
    trials = tuning.trials()

    def beaten(trial):
        return any(
            o.score >= trial.score and o.digital >= trial.digital and o.values != trial.values
            for o in trials
        )

    assert {t.number for t in tuning.front()} == {t.number for t in trials if not beaten(t)}
    assert tuning.front()[0].score == max(trial.score for trial in trials)
    assert set(tuning.importance()) == {"score", "digital"}


# --- what is given up -----------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch):
    """Measures by a formula, cell by cell: the smaller lambda, the better; NaN at lambda 0."""

    class Formula:
        def __init__(self, task, models, *_):
            (self.model,) = models.values()

        def measure(self, job):
            for adapter, time_s in sorted(job.cells):
                score = 0.8 - 0.01 * self.model - time_s / 1e6 + job.chip.seed % 7 / 100
                yield Cell(job.chip, adapter, time_s, {"pearson": score}, "")

    def made(settings, task, adapter):
        if settings.noise_weight == 0:
            raise ValueError("A logit is NaN.")
        return settings.noise_weight

    monkeypatch.setattr(trial_module, "Bench", Formula)
    monkeypatch.setattr(trial_module, "new_adapter", made)
    monkeypatch.setattr(trial_module, "train_adapter", lambda *_: 0.0)
    monkeypatch.setattr(SentenceTask, "evaluate", lambda *_: 0.9)


def test_a_trial_worse_on_the_same_chips_is_given_up_after_a_round(bench, settings, tmp_path):
    asked = settings.model_copy(update={"repeats": 3, "times": ("0s", "1h", "1d")})
    tuning = prepare_tuning(asked, tmp_path / "run")
    tune(tuning, 10)
    best, failed, *others = tuning.trials()
    assert best.given_up == ""
    assert [len(scores) for scores in best.cells.values()] == [3] * 6
    assert (failed.score, failed.given_up) == (None, "A logit is NaN.")
    worse = [trial for trial in others if trial.values["noise_weight"] > 1]
    assert worse
    for trial in worse:
        assert trial.score is None
        assert trial.given_up == "worse than the best trial on the same chips"
        assert [len(scores) for scores in trial.cells.values()] == [1] * 6


def test_with_two_goals_nothing_is_given_up_early(bench, settings, tmp_path):
    tuning = prepare_tuning(settings, tmp_path / "run", multi=True)
    tune(tuning, 6)
    assert [t.number for t in tuning.trials() if t.given_up] == [1]


def test_a_study_of_failures_says_so(monkeypatch, settings, tmp_path):
    def measure(*_):
        raise ValueError("A logit is NaN.")

    monkeypatch.setattr(tune_module, "measure", measure)
    with pytest.raises(ValueError, match=r"No trial .* could be measured whole: .* trials\.csv"):
        tune_noise_weight(tmp_path / "run", trials=2, **settings.model_dump())
    assert "A logit is NaN." in (tmp_path / "run" / "trials.csv").read_text()


# --- a study that outlives its processes -----------------------------------------------------


CHILD = """
import sys, time
from pathlib import Path
from analog_grasp.experiments import Settings, tune

settings, folder, began, hangs = Settings.model_validate_json(sys.argv[1]), *sys.argv[2:]
measure = tune.measure

def watched(trial, *others):
    if trial.number == int(hangs):
        Path(began).touch()
        time.sleep(600)
    measured = measure(trial, *others)
    if int(hangs) < 0:
        Path(began).touch()
    return measured

tune.measure = watched
tune.tune(tune.prepare_tuning(settings, Path(folder), held_out=50), 3)
"""


@pytest.fixture
def in_another_process(quick, tmp_path):
    """Lets another process tune, until its first trial is measured, or hangs at a number."""

    def begin(folder, hangs=-1) -> subprocess.Popen:
        began = tmp_path / "began"
        arguments = [quick.model_dump_json(exclude_none=True), str(folder), str(began), str(hangs)]
        process = subprocess.Popen([sys.executable, "-c", CHILD, *arguments])
        while not began.exists():
            assert process.poll() is None
            time.sleep(0.05)
        return process

    return begin


@pytest.fixture(scope="module")
def quick(bert_folder) -> Settings:
    """A trial of a second, of a task that every process knows."""
    return Settings(
        model=str(bert_folder), devices=("ideal",), times=("1d",), repeats=1, groups=4, epochs=0.05
    )


@pytest.fixture(scope="module")
def alone(quick, tmp_path_factory) -> dict:
    """What one undisturbed process finds."""
    tuning = prepare_tuning(quick, tmp_path_factory.mktemp("alone") / "run", held_out=50)
    tune(tuning, 3)
    return tried(tuning)


def test_an_interrupted_trial_is_tried_again(formula, settings, tmp_path, monkeypatch):
    whole = prepare_tuning(settings, tmp_path / "whole")
    tune(whole, 6)
    tuning = prepare_tuning(settings, tmp_path / "run")
    measure = tune_module.measure

    def interrupted(trial, *others):
        if trial.number == 1:
            raise KeyboardInterrupt
        return measure(trial, *others)

    monkeypatch.setattr(tune_module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tuning, 6)
    assert len(tuning.trials()) == 1
    tune(prepare_tuning(settings, tmp_path / "run"), 6)
    assert tried(tuning) == tried(whole)


@pytest.mark.slow
def test_a_study_goes_on_after_a_kill(alone, in_another_process, impatient, quick, tmp_path):
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
    assert {trial.values["noise_weight"] for trial in tuning.trials()} == {1.0, 0.0}


@pytest.mark.slow
def test_two_processes_share_one_study(alone, in_another_process, quick, tmp_path, monkeypatch):
    """Together they finish as many trials as were asked for, and not one more."""
    monkeypatch.setattr(tune_module, "_POLL_SECONDS", 0.1)
    process = in_another_process(tmp_path / "run")
    tuning = prepare_tuning(quick, tmp_path / "run", held_out=50)
    tune(tuning, 3)
    assert process.wait() == 0
    assert len(tuning.trials()) == 3
    assert tried(tuning) == alone


def test_a_trial_too_many_is_left_for_later(formula, settings, tmp_path):
    """As where two processes begin the last trial at the same moment."""
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 1)
    with quiet_optuna():
        tuning.study.optimize(
            lambda trial: tune_module._attempt(tuning, trial, 1),
            n_trials=1,
            catch=tune_module._SurplusError,
        )
    assert len(tuning.trials()) == 1
    tune(tuning, 2)
    assert [trial.values["noise_weight"] for trial in tuning.trials()] == [1.0, 0.0]


def test_two_processes_on_one_file_elsewhere(formula, settings, tmp_path):
    """As two machines with a database: each has an output folder of its own."""
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    one = prepare_tuning(settings, tmp_path / "here" / "run", storage=url)
    two = prepare_tuning(settings, tmp_path / "there" / "run", storage=url)
    tune(one, 3)
    tune(two, 6)
    assert tried(one) == tried(two)
    assert len(one.trials()) == 6
    assert not (tmp_path / "here" / "run" / "study.sqlite").exists()


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"search": ["lambda"]}, "'lambda' cannot be searched: .* noise_weight"),
        ({"search": []}, "search is empty"),
        ({"search": ["groups", "groups"]}, "each once"),
        ({"ranges": {"groups": (1, 2)}}, "groups, which is not searched"),
        ({"ranges": {"noise_weight": (0, 2)}}, "numbers above 0"),
        ({"ranges": {"noise_weight": (3, 2)}}, "the lower first"),
        ({"ranges": {"noise_weight": (1, math.inf)}}, "1 to inf"),
        ({"search": ["groups"], "ranges": {"groups": (1.5, 4)}}, "whole numbers from 1"),
        ({"search": ["injection"], "ranges": {"injection": (-1, 4)}}, "numbers from 0"),
        ({"search": ["groups"]}, "groups is"),
        ({"adapter": "grasp"}, "grasp has no noise_weight"),
        ({"adapter": "head", "search": ["groups"]}, "head has no groups"),
        ({"adapter": "grisp"}, "'grasp'"),
        ({"held_out": 11}, "from 1 to 10"),
        ({"storage": "trials"}, "no URL of a database"),
        ({"storage": "sqlite:////no/such/folder/x.db"}, "unable to open database file"),
        ({"storage": "nonesuch://me:secret@host/x"}, r"me:\*\*\*@host"),
    ],
)
def test_what_cannot_be_tuned_leaves_no_folder(settings, tmp_path, asked, named):
    with pytest.raises((ValueError, OSError), match=named):
        prepare_tuning(settings, tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"repeats": 3}, "whose repeats is 2 and not 3"),
        ({"devices": ("ideal",)}, "whose devices is"),
        ({"multi": True}, "whose multi is False and not True"),
        ({"ranges": {"noise_weight": (0.1, 10)}}, "whose search is"),
    ],
)
def test_folder_of_another_study(settings, tmp_path, changed, named):
    prepare_tuning(settings, tmp_path / "run")
    own = {name: changed.pop(name) for name in ("multi", "ranges") if name in changed}
    with pytest.raises(ValueError, match=named):
        prepare_tuning(settings.model_copy(update=changed), tmp_path / "run", **own)


def test_storage_of_another_study(settings, tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    prepare_tuning(settings, tmp_path / "here" / "run", storage=url)
    other = settings.model_copy(update={"repeats": 3})
    with pytest.raises(ValueError, match=r"The storage .*trials\.db holds another study"):
        prepare_tuning(other, tmp_path / "there" / "run", storage=url)
    # Another name is another study.
    prepare_tuning(other, tmp_path / "there" / "run2", storage=url)


def test_folder_of_other_files(settings, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not of a tuning"):
        prepare_tuning(settings, tmp_path)


def test_storage_that_is_no_database(settings, tmp_path):
    prepare_tuning(settings, tmp_path / "run")
    (tmp_path / "run" / "study.sqlite").write_text("nothing of the kind" * 100)
    with pytest.raises(OSError, match="file is not a database"):
        prepare_tuning(settings, tmp_path / "run")


def test_a_full_disk_is_told_and_the_study_goes_on(formula, settings, tmp_path, monkeypatch):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 2)
    with tuning.storage.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    tuning.storage.engine.dispose()

    def keep_small(connection, _):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(tuning.storage.engine, "connect", keep_small)
    measure = tune_module.measure

    def verbose(trial, *others):
        trial.set_user_attr("notes", "x" * 50_000)
        return measure(trial, *others)

    monkeypatch.setattr(tune_module, "measure", verbose)
    with pytest.raises(OSError, match=r"study\.sqlite cannot be used .*full.*same command goes on"):
        tune(tuning, 3)
    monkeypatch.setattr(tune_module, "measure", measure)
    again = prepare_tuning(settings, tmp_path / "run")
    tune(again, 3)
    assert len(again.trials()) == 3


def test_passwords_are_not_shown():
    assert "secret" not in shown_url("mysql://me:secret@host/trials")


def test_settings_of_the_task_are_kept(settings):
    task = replace(lengths(), metrics=("spearman",))
    assert tuning_task(task, 0).metrics == ("spearman",)
