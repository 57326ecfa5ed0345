"""Tuner: invalid requests, folders and storages."""

import math
from dataclasses import replace

import pytest
from sqlalchemy import event

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.study.sections import TaskSettings
from analog_grasp.study.trained_adapters import new_adapter, save_adapter
from analog_grasp.tasks import load_task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.tasks.harness import HarnessTask
from analog_grasp.tuning import api, tuner
from analog_grasp.tuning.tuner import prepare_tuning, tune
from analog_grasp.utils import errors


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
        ({"ranges": {"noise_weight": (1, 2, 3)}}, r"is \(1, 2, 3\): a pair of numbers"),
        ({"ranges": {"noise_weight": ("4", "32")}}, "is '4, 32': a pair of numbers"),
        ({"ranges": {"noise_weight": 5}}, "is 5: a pair of numbers"),
        ({"search": ["groups"]}, "groups is"),
        ({"adapter": "grasp"}, "grasp has no noise_weight"),
        ({"adapter": "head", "search": ["groups"]}, "head has no groups"),
        ({"adapter": "grisp"}, "'grasp'"),
        ({"held_out": 11}, "from 1 to 10"),
        ({"storage": "trials"}, "not the URL of a database"),
        ({"storage": "sqlite:////no/such/folder/x.db"}, "unable to open database file"),
        (
            {"storage": "nonesuch://me:secret@host/x"},
            r"me:\*\*\*@host/x is a database of an unknown",
        ),
        (
            {"storage": "postgresql+psycopg2://me:secret@host/x"},
            r"me:\*\*\*@host/x requires the Python module psycopg2.*pip install 'psycopg2-binary'",
        ),
    ],
)
def test_an_invalid_request_creates_no_folder(settings, tmp_path, asked, named):
    with pytest.raises((ValueError, OSError), match=named):
        prepare_tuning(settings, tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_a_tuning_from_a_file_with_recalibration_raises(settings, tmp_path):
    changed = settings.replace(recalibrate=(8,))
    with pytest.raises(ValueError, match=r"recalibrate is \(8,\), .*: its trials are measured as"):
        prepare_tuning(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"adapter": "lora", "search": ["learning_rate"], "groups": 8}, "no effect on lora"),
        ({"adapters": ("lora",)}, "adapters is 'lora', which a tuning does not have"),
        ({"trials": 0}, "trials is 0: a whole number of at least 1"),
        ({"trials": "3"}, "trials is '3': a whole number of at least 1"),
        ({"trainings": 3}, "trainings is 3, which a tuning does not have"),
        ({"recalibrate": (8,)}, r"recalibrate is \(8,\), which a tuning does not have"),
        ({"schedule": "simulated"}, "schedule is 'simulated', which a tuning does not have"),
    ],
)
def test_a_setting_that_a_tuning_does_not_use_raises(settings, tmp_path, asked, sentence):
    given = {name: settings.value(name) for name in ("model", "task")}
    with pytest.raises(ValueError, match=sentence):
        api.tune_noise_weight(tmp_path / "run", **given | asked)
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
        prepare_tuning(settings.replace(**changed), tmp_path / "run", **own)


def test_folder_of_a_study_with_another_teacher(settings, tmp_path):
    teacher = tmp_path / "teacher"
    save_adapter(new_adapter(settings, load_task("lengths"), "grasp"), teacher)
    taught = settings.replace(teacher=str(teacher))
    for _ in range(2):
        prepare_tuning(taught, tmp_path / "run")
    save_adapter(new_adapter(settings.replace(seed=4), load_task("lengths"), "grasp"), teacher)
    with pytest.raises(ValueError, match="another study, with other content of the teacher"):
        prepare_tuning(taught, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda task: replace(task, metrics=("spearman", "pearson")),
            r"whose metrics is .*\(--metric\)",
        ),
        (
            lambda task: replace(task, train=task.train.select([*range(19), 0])),
            "with other content of the training rows",
        ),
    ],
)
def test_folder_of_a_study_with_other_metrics_or_rows(
    settings, tmp_path, monkeypatch, change, named
):
    for _ in range(2):
        prepare_tuning(settings, tmp_path / "run")
    task = change(load_task("lengths"))
    monkeypatch.setattr(TaskSettings, "load", lambda _: task)
    with pytest.raises(ValueError, match=f"another study, {named}"):
        prepare_tuning(settings, tmp_path / "run")


def test_a_model_that_is_trained_whole_can_be_tuned_but_not_its_groups(settings, tmp_path):
    whole = settings.replace(placement="folded", groups=None)
    tuning = prepare_tuning(whole, tmp_path / "run", adapter="full", search=["learning_rate"])
    assert tuning.config.training.learning_rate == ADAPTERS["full"].learning_rate
    with pytest.raises(ValueError, match="full has no groups to search"):
        prepare_tuning(whole, tmp_path / "other", adapter="full", search=["groups"])
    with pytest.raises(ValueError, match="grasp has no init_sigma to search"):
        prepare_tuning(settings, tmp_path / "other", adapter="grasp", search=["init_sigma"])


def test_storage_of_another_study(settings, tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    prepare_tuning(settings, tmp_path / "here" / "run", storage=url)
    other = settings.replace(repeats=3)
    with pytest.raises(ValueError, match=r"The storage .*trials\.db holds another study"):
        prepare_tuning(other, tmp_path / "there" / "run", storage=url)
    # Another name is another study.
    prepare_tuning(other, tmp_path / "there" / "run2", storage=url)


def test_folder_of_other_files(settings, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="do not belong to a tuning"):
        prepare_tuning(settings, tmp_path)


def test_storage_that_is_not_a_database(settings, tmp_path):
    prepare_tuning(settings, tmp_path / "run")
    (tmp_path / "run" / "study.sqlite").write_text("nothing of the kind" * 100)
    with pytest.raises(OSError, match="file is not a database"):
        prepare_tuning(settings, tmp_path / "run")


def test_a_full_disk_raises_and_the_study_resumes(formula, settings, tmp_path, monkeypatch):
    tuning = prepare_tuning(settings, tmp_path / "run")
    tune(tuning, 2)
    with tuning.storage.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    tuning.storage.engine.dispose()

    def keep_small(connection, _):
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(tuning.storage.engine, "connect", keep_small)
    measure = tuner.measure

    def verbose(trial, *others):
        trial.set_user_attr("notes", "x" * 50_000)
        return measure(trial, *others)

    monkeypatch.setattr(tuner, "measure", verbose)
    with pytest.raises(OSError, match=r"study\.sqlite cannot be used .*full.*same command resumes"):
        tune(tuning, 3)
    monkeypatch.setattr(tuner, "measure", measure)
    again = prepare_tuning(settings, tmp_path / "run")
    tune(again, 3)
    assert len(again.trials()) == 3


def test_a_task_of_lm_eval_holds_no_rows_out(settings, tmp_path, monkeypatch):
    rows = load_task("reviews").train
    task = HarnessTask("lm-eval/arc_easy", rows, rows, ("arc_easy/acc",), names=("arc_easy",))
    monkeypatch.setattr(TaskSettings, "load", lambda _: task)
    with pytest.raises(ValueError, match="rows of lm-eval, none of which can be held out"):
        prepare_tuning(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a b?x=1", "a%20b#1"])
def test_any_name_of_a_folder_holds_its_study(settings, tmp_path, name):
    prepare_tuning(settings, tmp_path / name, storage="")
    assert (tmp_path / name / tuner.STUDY_FILE).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    prepare_tuning(settings, tmp_path / name)


def test_settings_of_the_task_are_kept(settings):
    task = replace(load_task("lengths"), metrics=("spearman",))
    assert tuning_task(task, 0).metrics == ("spearman",)


def test_a_missing_optuna_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "optuna" else name)
    with pytest.raises(ValueError, match=r"package optuna.*pip install 'analog-grasp\[tune\]'"):
        api.tune_noise_weight(tmp_path / "run")
    assert not (tmp_path / "run").exists()
