"""Fits of adapters whose layers, prompts or models are of a special kind, and those that cannot."""

import dataclasses

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification

from analog_grasp import GraspConfig, deploy, recalibrate
from analog_grasp.training import distil, train
from analog_grasp.training.adapter_parameters import adapter_parameters

BY_LAYER = ("least-squares", "statistics")


def grasp(**settings):
    return GraspConfig(task_type="SEQ_CLS", groups=4, **settings)


def on_chip(model, **settings):
    return deploy(model, "gaussian:0.1", **settings).program(0)


def test_a_merged_adapter_is_not_trained(reader, task):
    model = get_peft_model(reader("bert"), grasp())
    model.merge_adapter()
    for fit in (
        lambda: train(model, task, epochs=1),
        lambda: distil(model, task, "ideal@0s", steps=1),
    ):
        with pytest.raises(ValueError, match="merged or disabled: only one that is unmerged"):
            fit()


@pytest.mark.parametrize("method", BY_LAYER)
def test_layers_without_the_active_adapter_stay_as_they_are(reader, task, method):
    model = get_peft_model(reader("bert"), grasp(), adapter_name="other")
    model.add_adapter("mine", grasp(target_modules=["query"]))
    model.set_adapter("mine")
    assert recalibrate(on_chip(model), task, examples=16, method=method).examples_read > 16


def test_least_squares_leave_layers_that_are_not_on_tiles(reader, task):
    model = get_peft_model(reader("bert"), grasp())
    deployment = on_chip(model, layers=["query", "key"])
    assert recalibrate(deployment, task, examples=16, method="least-squares").examples_read > 16


@pytest.mark.parametrize("method", BY_LAYER)
def test_a_layer_that_is_called_several_times_is_for_gradients(reader, task, method):
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=50, embedding_size=16, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=20, _name_or_path=reader("bert").name_or_path,
    )  # fmt: skip
    deployment = on_chip(get_peft_model(AlbertForSequenceClassification(config), grasp()))
    with pytest.raises(ValueError, match="is called several times in a forward pass, for which"):
        recalibrate(deployment, task, examples=16, method=method)
    assert recalibrate(deployment, task, examples=16, steps=2).examples_read > 16


def test_prompts_are_fitted_and_not_folded(reader, task):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = get_peft_model(reader("bert", dropout=False), config)
    result = recalibrate(on_chip(model), task, examples=16, steps=10, learning_rate=1e-2)
    assert result.improved
    before, after = (dict(adapter_parameters(each)) for each in (model, result.model))
    prompt = "prompt_encoder.default.embedding.weight"
    assert not torch.equal(before[prompt], after[prompt])
    with pytest.raises(
        ValueError, match="PROMPT_TUNING adapts no layers, so that it cannot be fol"
    ):
        deploy(model, "ideal", placement="folded")


@pytest.mark.parametrize("groups", ["64", 8.0, True])
def test_groups_are_a_whole_number(reader, task, groups):
    deployment = on_chip(get_peft_model(reader("bert"), grasp()))
    with pytest.raises(ValueError, match=r"groups is .*: a whole number of at least 1 is accepted"):
        recalibrate(deployment, task, examples=16, groups=groups)


def test_labels_that_do_not_exclude_each_other_are_learned_from_a_teacher(reader, task):
    """Softmax does not see an offset that all labels share."""
    labels = [[float(label), 1.0] for label in task.train["label"]]
    rows = Dataset.from_dict({"text": task.train["text"][:], "label": labels})
    several = dataclasses.replace(task, train=rows, validation=rows, multi_label=True)
    teacher, base = reader("bert", dropout=False), reader("bert", dropout=False)
    with torch.no_grad():
        teacher.classifier.bias += 3.0
    before = several.predict(base)
    for model in (teacher, base):
        model.config.problem_type = None
    model = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    )
    train(model, several, teacher=teacher, epochs=4, batch_size=16, learning_rate=2e-2)
    assert np.mean(several.predict(model) - before) > 1.0


def test_a_layer_of_zeros_is_trained_under_the_noise_of_a_device(reader, task):
    model = get_peft_model(reader("bert", dropout=False), grasp())
    layer = model.get_base_model().bert.encoder.layer[0].output.dense
    nn.init.zeros_(layer.get_base_layer().weight)
    done = train(model, task, injection="sonos-agrawal2022@0s", epochs=1)
    assert done.training_loss > 0
    assert all(parameter.isfinite().all() for _, parameter in adapter_parameters(model))
