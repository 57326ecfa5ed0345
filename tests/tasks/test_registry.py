import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

from analog_grasp import tasks
from analog_grasp.tasks import load_task, register_task, registry, task_names
from analog_grasp.tasks.reviews import reviews as generate_reviews
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
    register_task("mine", lambda data_dir: generate_reviews(8, 4, seed=len(data_dir.name)))
    assert "mine" in task_names()
    assert len(load_task("mine", tmp_path).validation) == 4
    with pytest.raises(ValueError, match="The task 'mine' exists"):
        register_task("mine", lambda data_dir: generate_reviews())


@pytest.mark.parametrize("name", [each.name for each in pkgutil.iter_modules(tasks.__path__)])
def test_docstring_examples(name):
    module = importlib.import_module(f"analog_grasp.tasks.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted or ">>> " not in Path(module.__file__).read_text(encoding="utf-8")
