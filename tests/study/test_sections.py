"""Settings of text generation, and of frozen weights that stay exact."""

import pytest
import torch
from datasets import Dataset

import analog_grasp as ag
from analog_grasp.adapters.registry import adapt
from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.provenance import data_hash
from analog_grasp.tasks import GenerationTask


@pytest.fixture
def generation(monkeypatch):
    """Return a task that generates text, loaded in place of every other."""
    rows = Dataset.from_dict({"text": ["name : Zizzi"], "references": [["Eat at Zizzi."]]})
    task = GenerationTask("mine", rows, rows, metrics=("bleu",))
    monkeypatch.setattr("analog_grasp.tasks.load_task", lambda name, folder: task)
    return task


def test_generation_settings_default_to_those_of_the_task(generation):
    assert StudyConfig().task.load() is generation
    asked = resolve({"beams": 2, "length_penalty": 1.5, "no_repeat_ngram": 0}).task.load()
    assert (asked.beams, asked.length_penalty, asked.no_repeat_ngram) == (2, 1.5, 0)
    assert (generation.beams, generation.length_penalty, generation.no_repeat_ngram) == (10, 0.9, 4)


def test_each_generation_setting_changes_the_data_hash(generation, monkeypatch):
    monkeypatch.setattr(GenerationTask, "encode", lambda *_: generation.validation)
    settings = [{}, {"beams": 4}, {"length_penalty": 1.0}, {"no_repeat_ngram": 3}]
    hashes = {data_hash(resolve(each).task.load(), None) for each in settings}
    assert len(hashes) == len(settings)


def test_generation_settings_without_generation_raise():
    with pytest.raises(ValueError, match="beams is 4, but the task 'reviews' generates no text"):
        resolve({"beams": 4}).task.load()
    with pytest.raises(ValueError, match=r"length_penalty is 0\.9, which has no effect"):
        resolve({"beams": 1, "length_penalty": 0.9})


@pytest.mark.parametrize(("name", "value"), [("beams", 0), ("no_repeat_ngram", -1)])
def test_generation_settings_out_of_range_raise(generation, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}: it should be greater than"):
        resolve({name: value})
    with pytest.raises(ValueError, match=f"has {name} = {value}; it should be"):
        GenerationTask("bad", generation.train, generation.validation, **{name: value})


def test_exact_weights_leave_the_noise_of_the_adapter(bert, batch):
    model = adapt(bert, "grasp", groups=4, target_modules="all-linear").eval()
    config = resolve({"placement": "programmed", "weights": "digital"})
    assert config.hardware.changes() == {"weights": "digital"}
    digital = model(**batch).logits
    for device, exact in (("gaussian:0", True), ("gaussian:0.1", False)):
        deployed = ag.deploy(
            model, ag.DeviceCard.load(device), **config.hardware.deploy_arguments()
        )
        deployed.program(seed=0)
        assert deployed.report() == []
        assert torch.allclose(deployed.model(**batch).logits, digital) is exact


def test_exact_weights_and_an_exact_adapter_raise():
    with pytest.raises(ValueError, match="weights is 'digital', which has no effect without the p"):
        resolve({"weights": "digital"})
