"""The built-in model trained, deployed and aged, on little data: generated reviews and GLUE."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from peft import PeftModel, get_peft_model

from analog_grasp import DeviceCard, GraspConfig, StochGraspConfig, deploy, load_task, train
from analog_grasp.tasks import Task, load_base_model

CONFIGS = {"grasp": GraspConfig, "stochgrasp": StochGraspConfig}
DEVICES = ("pcm-hermes-2", "rram-cmo-falcone")
# Of 100 sentences, half of them positive, guessing gets 0.65 right once in 600 times.
ABOVE_CHANCE = 0.65
# What two scores of 100 sentences may differ by without a cause (two standard errors).
NOISE = 0.1


def adapted(task: Task, adapter: str) -> PeftModel:
    """Put a new adapter on the built-in model."""
    config = CONFIGS[adapter](task_type="SEQ_CLS", groups=16)
    return get_peft_model(load_base_model(task), config)


def shortest(rows: Dataset, count: int) -> Dataset:
    """Short sentences are learned soon, and quickly measured."""
    lengths = [len(text.split()) for text in rows["text"][:]]
    return rows.select(sorted(range(len(rows)), key=lengths.__getitem__)[:count])


@pytest.fixture(scope="module")
def reviews():
    task = load_task("reviews")
    return replace(task, train=shortest(task.train, 256), validation=shortest(task.validation, 100))


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request, reviews):
    model = adapted(reviews, request.param)
    train(model, reviews, injection=0.04, epochs=3, batch_size=16)
    return model


@pytest.fixture(scope="module")
def digital(trained, reviews):
    return reviews.evaluate(trained)


def test_a_short_training_lifts_the_built_in_model_above_chance(digital):
    assert digital > ABOVE_CHANCE


@pytest.mark.parametrize("device", DEVICES)
def test_the_deployed_model_scores_above_chance_and_drift_does_not_help(
    trained, digital, reviews, device
):
    deployment = deploy(trained, DeviceCard.load(device)).program(seed=0)
    fresh = reviews.evaluate(deployment.model)
    error = {layer.name: layer.weight_error for layer in deployment.report()}
    aged = reviews.evaluate(deployment.drift_to("10y").model)
    assert fresh > ABOVE_CHANCE
    assert fresh <= digital + NOISE
    assert aged <= fresh + NOISE
    assert all(layer.weight_error > error[layer.name] for layer in deployment.report())


@pytest.fixture(scope="module")
def glue_dir() -> Path:
    """The official GLUE files, which are not ours to hand on."""
    beside = Path(__file__).parents[3] / "shared" / "glue"
    folder = Path(os.environ.get("ANALOG_GRASP_GLUE", beside))
    if not folder.is_dir():
        pytest.skip(f"no GLUE files in {folder}; set ANALOG_GRASP_GLUE to their folder")
    return folder


@pytest.mark.parametrize("name", ["glue/sst2", "glue/mrpc", "glue/stsb"])
def test_a_task_is_trained_and_measured_on_a_chip(glue_dir, name):
    task = load_task(name, glue_dir).subset(train=48, validation=24)
    model = adapted(task, "stochgrasp")
    before = task.predict(model)
    done = train(model, task, injection=0.04, epochs=1, batch_size=16)
    assert done.global_step == 3
    assert np.isfinite(done.training_loss)
    assert (task.predict(model) != before).any()

    deployment = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=0).drift_to("1d")
    assert task.predict(deployment.model).shape == (24, task.num_labels)
    assert task.scores(deployment.model).keys() == set(task.metrics)


@pytest.mark.slow
def test_real_sentences_are_learned_and_survive_the_chip(glue_dir):
    task = load_task("glue/sst2", glue_dir).subset(train=2000, validation=200)
    model = adapted(task, "grasp")
    train(model, task, injection=0.04, epochs=2, batch_size=16)
    deployment = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=0).drift_to("1d")
    # Guessing gets 0.6 of 200 right once in 400 times.
    assert task.evaluate(model) > 0.65
    assert task.evaluate(deployment.model) > 0.6
