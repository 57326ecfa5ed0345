"""Real data: a few steps of training and a deployed measurement run through."""

import numpy as np
import pytest

from analog_grasp import DeviceCard, deploy, load_task, train
from analog_grasp.tasks.metrics import score


@pytest.mark.parametrize("name", ["glue/sst2", "glue/mrpc", "glue/stsb"])
def test_a_task_is_trained_and_measured_on_a_chip(adapted, glue_dir, name):
    task = load_task(name, glue_dir).subset(train=48, validation=24)
    model = adapted(task, "stochgrasp")
    before = task.predict(model)
    done = train(model, task, injection=0.04, epochs=1, batch_size=16)
    assert done.global_step == 3
    assert np.isfinite(done.training_loss)
    assert (task.predict(model) != before).any()

    deployment = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=0).drift_to("1d")
    logits = task.predict(deployment.model)
    assert logits.shape == (24, task.num_labels)
    assert score(task.metrics, logits, task.labels()).keys() == set(task.metrics)


@pytest.mark.slow
def test_real_sentences_are_learned_and_survive_the_chip(adapted, glue_dir):
    task = load_task("glue/sst2", glue_dir).subset(train=2000, validation=200)
    model = adapted(task)
    train(model, task, injection=0.04, epochs=2, batch_size=16)
    deployment = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=0).drift_to("1d")
    # Guessing gets 0.6 of 200 right once in 400 times.
    assert task.evaluate(model) > 0.65
    assert task.evaluate(deployment.model) > 0.6
