"""Tasks by name, and metrics of evaluate from local scripts."""

import doctest
import importlib
import os
import pickle
import pkgutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import evaluate
import numpy as np
import pytest
from datasets import Dataset

from analog_grasp import tasks
from analog_grasp.study.config import flat, resolve
from analog_grasp.study.sections import TaskSettings
from analog_grasp.tasks import SentenceTask, load_task, register_task, registry, task_names
from analog_grasp.tasks.custom_metrics import EvaluateMetric
from analog_grasp.tasks.registry import with_metric
from analog_grasp.tasks.reviews import reviews
from analog_grasp.utils.types import TASK_NAMES


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))


def test_the_names_are_those_listed_without_torch():
    assert tuple(task_names()) == TASK_NAMES


def test_an_unknown_name_raises_with_a_suggestion():
    with pytest.raises(ValueError, match=r"task 'glue/sst-2'\. Did you mean 'glue/sst2'\?"):
        load_task("glue/sst-2")
    with pytest.raises(ValueError, match=r"task 'zzz'\. Available: reviews, .*, lm\.$"):
        load_task("zzz")


def test_max_length_is_a_setting_of_every_task():
    assert load_task("reviews").max_length == 128
    assert load_task("reviews", max_length=40).subset(train=3).max_length == 40
    with pytest.raises(ValueError, match="max_length 1; it should be 2 or more"):
        load_task("reviews", max_length=1)


def test_columns_are_settings_of_the_task_csv_alone():
    with pytest.raises(ValueError, match="text_column is 'body', which has no effect"):
        load_task("reviews", text_column="body")


def test_reviews_takes_no_data_folder(tmp_path):
    with pytest.raises(ValueError, match="'reviews' is built in and reads no files"):
        load_task("reviews", data_dir=tmp_path)


def test_a_registered_task(tmp_path):
    register_task("mine", lambda data_dir: reviews(8, 4, seed=len(data_dir.name)))
    assert "mine" in task_names()
    assert len(load_task("mine", tmp_path).validation) == 4
    with pytest.raises(ValueError, match="The task 'mine' exists"):
        register_task("mine", lambda data_dir: reviews())


@pytest.mark.parametrize("name", [each.name for each in pkgutil.iter_modules(tasks.__path__)])
def test_docstring_examples(name):
    module = importlib.import_module(f"analog_grasp.tasks.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted or ">>> " not in Path(module.__file__).read_text(encoding="utf-8")


SCRIPT = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("{kind}")
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": kind, "references": {references}}}),
        )

    def _compute(self, predictions, references):
        return {result}
"""


@pytest.fixture
def script(tmp_path):
    """Function that writes a metric's script and returns its path."""

    def write(name, result, kind="int64", references="kind"):
        path = tmp_path / f"{name}.py"
        path.write_text(SCRIPT.format(result=result, kind=kind, references=references))
        return str(path)

    return write


def test_a_script_is_the_primary_metric_of_a_task(script):
    path = script("share", "{'share': sum(p == r for p, r in zip(predictions, references)) / 50}")
    task = with_metric(reviews(validation=200), path)
    assert task.metrics == ("share", "accuracy")
    logits = np.eye(2)[[0, 1] * 75 + [0] * 50]
    scores = task._score(logits, "validation")
    assert scores == {"share": 3.5, "accuracy": 0.875}
    again = pickle.loads(pickle.dumps(task))
    assert again._score(logits, "validation") == scores
    assert TaskSettings(metric=path).load().metrics == ("share", "accuracy")


def test_a_key_chooses_among_several_values(script):
    path = script("several", "{'first': 0.25, 'second': [1, 2]}")
    logits, labels = np.eye(2), np.array([0, 1])
    assert EvaluateMetric(path, "first")(logits, labels) == 0.25
    assert with_metric(load_task("reviews"), f"{path}:first").metrics[0] == "several_first"
    with pytest.raises(ValueError, match=r"returns first, second; name one .*several\.py:first"):
        EvaluateMetric(path)(logits, labels)
    # Two examples show the keys before anything is trained.
    for metric, message in ((path, "returns first, second; name"), (f"{path}:third", "no third")):
        with pytest.raises(ValueError, match=message):
            with_metric(load_task("reviews"), metric)
    with pytest.raises(ValueError, match=r"returns \[1, 2\] as second; it should be a finite"):
        EvaluateMetric(path, "second")(logits, labels)


SHARE = "{'share': sum(p == r for p, r in zip(predictions, references)) / len(references)}"


def test_strings_among_the_metrics_are_metrics_of_evaluate(script):
    path = script("share", SHARE)
    rows = Dataset.from_dict({"text": ["Awful.", "Superb."] * 2, "label": [0, 1, 0, 1]})
    make = partial(SentenceTask, "mine", rows, rows, ("negative", "positive"))
    logits = np.eye(2)[[0, 1, 1, 1]]
    for arguments, names in (
        ({"metrics": (path,)}, ("share",)),
        ({"metrics": path}, ("share",)),
        ({"metrics": ["f1", f"{path}:share"]}, ("f1", "share_share")),
        ({"metric": path}, ("share", "accuracy")),
        ({"metric": "f1"}, ("f1", "accuracy")),
        ({"metric": "f1", "metrics": ("accuracy", "f1", path)}, ("f1", "accuracy", "share")),
        ({"metrics": "f1"}, ("f1",)),
        ({"metric": EvaluateMetric(path)}, ("share", "accuracy")),
    ):
        task = make(**arguments)
        assert task.metrics == names
        scores = task._score(logits, "validation")
        assert tuple(scores) == names
        assert all(scores[name] == 0.75 for name in names if "share" in name)
        # Also as the same metric again.
        assert replace(task, metric=path).metrics[0] == "share"


def test_a_metric_whose_name_begins_like_a_built_in_one(script):
    path = Path(script("share", SHARE))
    path = path.rename(path.with_name("accuracy_of-mine.py"))
    relative = os.path.relpath(path)
    assert with_metric(load_task("reviews"), relative).metrics == ("accuracy_of_mine", "accuracy")


def test_a_metric_of_a_regression_and_of_texts(script, restaurants):
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0.5, 2.0]})
    assert SentenceTask("mine", rows, rows, metric="mse").metrics == ("mse",)
    path = script("gap", "{'gap': max(p - r for p, r in zip(predictions, references))}", "float64")
    task = SentenceTask("mine", rows, rows, metrics=("pearson",), metric=path)
    assert task._score(np.array([[1.0], [2.0]]), "validation")["gap"] == 0.5
    assert replace(restaurants, metric="nist").metrics == ("nist", "bleu")
    assert replace(restaurants, metrics="nist").metrics == ("nist",)


def test_two_metrics_of_one_name_raise(script, tmp_path):
    paths = script("share", SHARE), tmp_path / "other" / "share.py"
    paths[1].parent.mkdir()
    paths[1].write_text(Path(paths[0]).read_text())
    with pytest.raises(ValueError, match="Two metrics of the task 'reviews' have the name 'share'"):
        replace(load_task("reviews"), metrics=tuple(map(str, paths)))


def named(name):
    def function(outputs, references):
        return 0.0

    function.__name__ = name
    return function


@pytest.mark.parametrize("name", ["accuracy", "mse", "bleu"])
def test_no_function_replaces_a_built_in_metric(name, restaurants):
    for task in (load_task("reviews"), restaurants):
        with pytest.raises(ValueError, match=f"the name '{name}' of a built-in one"):
            replace(task, metrics=(named(name),))


@pytest.mark.parametrize("name", ["perplexity", "mae", "mse_weighted"])
def test_no_function_has_the_name_of_an_error(name, script):
    with pytest.raises(ValueError, match=f"'{name}' of an error, but .* as negative_{name}"):
        replace(load_task("reviews"), metric=named(name))
    negative = replace(load_task("reviews"), metric=named(f"negative_{name}"))
    assert negative.greater_is_better
    # A metric of evaluate returns what its name says.
    path = script("mae", "{'mae': 1.0}")
    assert not replace(load_task("reviews"), metric=path).greater_is_better


def test_an_error_of_a_metric_names_it(script):
    metric = EvaluateMetric(script("broken", "1 / 0"))
    logits, labels = np.eye(2), np.array([0, 1])
    message = r"metric .*broken\.py raised ZeroDivisionError \(division by zero\); it should return"
    with pytest.raises(ValueError, match=message):
        metric(logits, labels)
    for result, message in (
        ("0.5", "returns 0.5; it should return a dictionary"),
        ("{'name': 'x'}", "returns x as name; it should be a finite"),
        ("{}", "returns nothing; name one"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluateMetric(script(f"wrong{len(result)}", result))(logits, labels)
    # Two examples can be too few for a metric that is right.
    path = script("many", "{'many': 1 / (len(references) - 2)}")
    assert with_metric(reviews(validation=4), path)._score(np.eye(2)[[0] * 4], "validation")


def test_a_failed_call_does_not_change_the_next_one(script):
    path = script("count", "{'count': len(references) / (len(references) - 3)}")
    metric = EvaluateMetric(path)
    with pytest.raises(ValueError, match="raised ZeroDivisionError"):
        metric(np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match="raised ValueError"):
        metric(np.eye(2), np.arange(3))
    assert metric(np.eye(4), np.arange(4)) == 4.0


@pytest.mark.parametrize("metric", ["", " ", ":key"])
def test_an_empty_name_raises(metric):
    with pytest.raises(ValueError, match="which is empty; give a name such as f1, or the path"):
        with_metric(load_task("reviews"), metric)


def test_an_unknown_name_lists_the_metrics_of_the_task(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(evaluate, "load", offline)
    with pytest.raises(
        FileNotFoundError, match=r"acuracy could .* one of accuracy, f1, "
    ) as caught:
        replace(load_task("reviews"), metrics=("acuracy", "accuracy"))
    assert str(caught.value).count(" accuracy") == 1
    with pytest.raises(ValueError, match="should be one or more of accuracy, f1"):
        with_metric(load_task("reviews"), "bleu")


def test_texts_are_compared_with_their_references(script, restaurants):
    path = script(
        "hits", "{'hits': sum(p in r for p, r in zip(predictions, references))}",
        "string", 'datasets.Sequence(datasets.Value("string"))',
    )  # fmt: skip
    task = with_metric(restaurants, path)
    texts = [references[-1] for references in task.references()]
    assert task._score([*texts[:4], "none", "none"], "validation")["hits"] == 4.0


def test_a_metric_that_the_task_has_needs_no_package():
    task = with_metric(load_task("reviews"), "macro_f1")
    assert task.metrics == ("macro_f1", "accuracy")
    assert with_metric(replace(task, metrics=("accuracy", "f1")), "f1").metrics == (
        "f1",
        "accuracy",
    )


def test_a_missing_script_raises_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metric script .*none\.py does not exist"):
        with_metric(load_task("reviews"), str(tmp_path / "none.py"))


def test_an_unreachable_hub_and_a_broken_script_raise_one_sentence(monkeypatch, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import evaluate\nraise RuntimeError('no')\n")
    with pytest.raises(ValueError, match=r"broken\.py cannot be loaded"):
        EvaluateMetric(str(path))

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(evaluate, "load", offline)
    with pytest.raises(FileNotFoundError, match="metric no-such could not be loaded from the Hub"):
        EvaluateMetric("no-such")


def test_no_file_may_name_a_metric_as_its_code_runs(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('metric = "metrics/mine.py"')
    with pytest.raises(ValueError, match=r"sets metric, which no file may: .* --metric if you"):
        resolve({}, path)
    assert "metric" not in flat(resolve({"metric": "f1"}))
    assert resolve({"metric": "f1"}).task.load().metrics == ("f1", "accuracy")
