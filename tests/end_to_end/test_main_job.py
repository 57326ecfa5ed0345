"""The main job on the built-in model: adapters trained, deployed on two devices, and aged."""

from dataclasses import replace

import pytest
from datasets import Dataset

from analog_grasp import DeviceCard, deploy, load_task, train

DEVICES = ("pcm-hermes-2", "rram-cmo-falcone")
# Of 100 sentences, half of them positive, guessing gets 0.65 right once in 600 times.
ABOVE_CHANCE = 0.65
# What two scores of 100 sentences may differ by without a cause (two standard errors).
NOISE = 0.1


def shortest(rows: Dataset, count: int) -> Dataset:
    """Short sentences are learned soon, and quickly measured."""
    lengths = [len(text.split()) for text in rows["text"][:]]
    return rows.select(sorted(range(len(rows)), key=lengths.__getitem__)[:count])


@pytest.fixture(scope="module")
def reviews():
    task = load_task("reviews")
    return replace(task, train=shortest(task.train, 256), validation=shortest(task.validation, 100))


@pytest.fixture(scope="module", params=["grasp", "stochgrasp"])
def trained(request, adapted, reviews):
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
