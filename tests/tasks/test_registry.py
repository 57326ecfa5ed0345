import doctest
import importlib

import pytest

from analog_grasp.tasks import load_task, register_task, registry, task_names
from analog_grasp.tasks.reviews import reviews as generate_reviews


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))


def test_the_names():
    assert task_names() == [
        "reviews",
        "glue/cola",
        "glue/sst2",
        "glue/mrpc",
        "glue/qqp",
        "glue/mnli",
        "glue/qnli",
        "glue/rte",
        "glue/stsb",
        "glue/wnli",
        "e2e",
        "e2e/dev",
    ]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no task 'glue/sst-2'; did you mean 'glue/sst2'\?"):
        load_task("glue/sst-2")
    with pytest.raises(ValueError, match=r"no task 'zzz'; the tasks are e2e, .*reviews\.$"):
        load_task("zzz")


def test_reviews_takes_no_data_folder(tmp_path):
    with pytest.raises(ValueError, match="'reviews' is built in and reads no files"):
        load_task("reviews", data_dir=tmp_path)


def test_a_task_of_ones_own(tmp_path):
    register_task("mine", lambda data_dir: generate_reviews(8, 4, seed=len(data_dir.name)))
    assert "mine" in task_names()
    assert len(load_task("mine", tmp_path).validation) == 4
    with pytest.raises(ValueError, match="There is a task 'mine' already"):
        register_task("mine", lambda data_dir: generate_reviews())


@pytest.mark.parametrize(
    "name",
    [
        "reviews",
        "e2e.data",
        "generation",
        "metrics",
        "models",
        "e2e.mteval",
        "registry",
        "classification",
        "splits",
        "base",
    ],
)
def test_the_examples_in_the_docstrings(name):
    module = importlib.import_module(f"analog_grasp.tasks.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
