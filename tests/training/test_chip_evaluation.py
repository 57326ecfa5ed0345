"""Scores of a model in training on a chip, and the epoch that they select."""

import dataclasses

import pytest
from datasets import Dataset
from peft import get_peft_model
from small_models import same_bits
from transformers import EarlyStoppingCallback, TrainerCallback

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.registry import adapt
from analog_grasp.crossbar import deploy
from analog_grasp.training import train, trainer
from tests.training.test_trainer import adapter_bits


@pytest.mark.parametrize("layers", ["all-linear", ["query"]])
def test_evaluation_is_on_a_chip_with_the_layers(adapted, task, layers, monkeypatch):
    chips = []

    def recorded(*args, **kwargs):
        chips.append(deploy(*args, **kwargs))
        return chips[-1]

    monkeypatch.setattr(trainer, "deploy", recorded)
    train(adapted(), task, evaluate_on="gaussian:0.1@0s", layers=layers, epochs=1)
    assert [len(chip.layers) for chip in chips] == [2 if layers == ["query"] else 13]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_chip_in_training_can_be_calibrated(adapted, task, bf16):
    """Mixed precision wraps the model's forward pass, which a copy would share with the model."""
    found = []

    def put_on_chip(model, card, **given):
        chip = deploy(model, card, **given)
        found.append(chip.calibrate(lambda each: task.subset(train=4).scores(each, "train")))
        return chip

    where = {"evaluate_on": "pcm-hermes-2@1d", "put_on_chip": put_on_chip}
    train(adapted(), task, epochs=2, bf16=bf16, learning_rate=0.1, **where)
    assert [len(ranges) for ranges in found] == [13, 13]
    # That of the adapter as it is then.
    assert found[0] != found[1]


class Watched(TrainerCallback):
    """A callback that records the score and the adapter of each evaluation."""

    def __init__(self, model):
        self.model, self.found = model, []

    def on_evaluate(self, args, state, control, metrics, **_):
        self.found.append((metrics["eval_accuracy"], clone(adapter_bits(self.model))))


def clone(bits):
    return {name: value.clone() for name, value in bits.items()}


@pytest.mark.parametrize("adapter", ["stochgrasp", "full", "named", "second"])
def test_best_adapter_on_the_chip_is_kept(reader, adapted, task, adapter):
    """PEFT saves an adapter of another name than "default" in a folder below."""
    config = GraspConfig(task_type="SEQ_CLS", groups=4)
    if adapter == "full":
        model = adapt(reader(), "full")
    elif adapter == "named":
        model = get_peft_model(reader(), config, adapter_name="named")
    else:
        model = adapted("grasp" if adapter == "second" else adapter)
    if adapter == "second":
        model.add_adapter("second", config)
        model.set_adapter("second")
    watched = Watched(model)
    # A learning rate at which the score fluctuates.
    settings = {"evaluate_on": "pcm-hermes-2@1d", "epochs": 5, "batch_size": 16}
    train(model, task, learning_rate=0.3, callbacks=[watched], **settings)
    scores = [score for score, _ in watched.found]
    assert len(scores) == 5
    assert len(set(scores)) > 1
    assert same_bits(adapter_bits(model), watched.found[scores.index(max(scores))][1])


def test_early_stopping_uses_the_chip_score(adapted, task):
    done = train(
        adapted(),
        task,
        evaluate_on="gaussian:0.1@0s",
        epochs=9,
        learning_rate=1e-9,
        callbacks=[EarlyStoppingCallback(2)],
    )
    assert done.global_step == 3 * 2


def test_validation_split_is_not_used_for_selection(adapted, task):
    """The scores do not depend on the labels of the validation split."""

    def score(labels):
        rows = Dataset.from_dict({"text": task.validation["text"][:], "label": labels})
        model = adapted()
        watched = Watched(model)
        settings = {"evaluate_on": "ideal@0s", "epochs": 1, "callbacks": [watched]}
        train(model, dataclasses.replace(task, validation=rows), **settings)
        return watched.found[0][0]

    labels = task.validation["label"][:]
    assert score(labels) == score([1 - label for label in labels])
