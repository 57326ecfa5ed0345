"""The search for text that a request asks for, and frozen weights that stay exact."""

import pytest
import torch
from datasets import Dataset

import analog_grasp as ag
from analog_grasp import tasks
from analog_grasp.adapters.registry import adapt
from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.provenance import data_hash
from analog_grasp.tasks import GenerationTask


@pytest.fixture
def written(monkeypatch):
    """A task that writes text, in the place of all that can be loaded."""
    rows = Dataset.from_dict({"text": ["name : Zizzi"], "references": [["Eat at Zizzi."]]})
    task = GenerationTask("mine", rows, rows, metrics=("bleu",))
    monkeypatch.setattr("analog_grasp.tasks.load_task", lambda name, folder: task)
    return task


def test_a_search_is_the_tasks_own_unless_asked(written):
    assert StudyConfig().task.load() is written
    asked = resolve({"beams": 2, "length_penalty": 1.5, "no_repeat_ngram": 0}).task.load()
    assert (asked.beams, asked.length_penalty, asked.no_repeat_ngram) == (2, 1.5, 0)
    assert (written.beams, written.length_penalty, written.no_repeat_ngram) == (10, 0.9, 4)


def test_another_search_is_another_cell(written, monkeypatch):
    monkeypatch.setattr(GenerationTask, "encode", lambda *_: written.validation)
    searches = [{}, {"beams": 4}, {"length_penalty": 1.0}, {"no_repeat_ngram": 3}]
    hashes = {data_hash(resolve(search).task.load(), None) for search in searches}
    assert len(hashes) == len(searches)


def test_a_search_without_a_text_is_refused():
    with pytest.raises(ValueError, match="beams is 4, but the task 'reviews' generates no text"):
        resolve({"beams": 4}).task.load()
    with pytest.raises(ValueError, match=r"length_penalty is 0\.9, which has no effect"):
        resolve({"beams": 1, "length_penalty": 0.9})


@pytest.mark.parametrize(("name", "value"), [("beams", 0), ("no_repeat_ngram", -1)])
def test_a_search_below_its_least_is_refused(written, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}: it should be greater than"):
        resolve({name: value})
    with pytest.raises(ValueError, match=f"has {name} = {value}; it should be"):
        GenerationTask("bad", written.train, written.validation, **{name: value})


def test_noise_of_the_adapter_alone(bert, batch):
    model = adapt(bert, "grasp", groups=4, target_modules="all-linear").eval()
    settings = resolve({"placement": "programmed", "weights": "digital"})
    assert settings.hardware.changes() == {"weights": "digital"}
    digital = model(**batch).logits
    for device, exact in (("gaussian:0", True), ("gaussian:0.1", False)):
        deployed = ag.deploy(
            model, ag.DeviceCard.load(device), **settings.hardware.deploy_arguments()
        )
        deployed.program(seed=0)
        assert deployed.report() == []
        assert torch.allclose(deployed.model(**batch).logits, digital) is exact


def test_exact_weights_and_an_exact_adapter_are_refused():
    with pytest.raises(ValueError, match="weights is 'digital', which has no effect without the p"):
        resolve({"weights": "digital"})


def test_tasks_are_loaded_by_their_names():
    assert StudyConfig().task.load().name == tasks.load_task("reviews").name
