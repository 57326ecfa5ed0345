"""Learning rates of single parameters: of shifts, and of modules that are trained whole."""

from copy import deepcopy

import pytest
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from analog_grasp import GraspConfig, deploy, recalibrate
from analog_grasp.adapters.registry import adapt
from analog_grasp.tasks import LanguageModelingTask, load_base_model
from analog_grasp.training import distil, train
from analog_grasp.training.adapter_parameters import adapter_parameters
from analog_grasp.training.distillation import Teacher
from analog_grasp.training.examples import draw_examples
from analog_grasp.training.learning_rates import WHOLE_RATE, input_sizes, rate_factors


def test_the_size_of_inputs_needs_the_logits_of_no_text(llama_folder):
    """The logits of several long texts would take more memory than a step."""
    rows = Dataset.from_dict({"text": ["the cat sat on a mat", "a dog ran on the hill"] * 8})
    task = LanguageModelingTask("words", rows, rows, max_length=8)
    model = adapt(load_base_model(task, str(llama_folder)), "grasp", task_type="CAUSAL_LM")
    widths = []

    def keep(_, inputs, outputs):
        widths.append(outputs.shape[1])

    model.get_base_model().lm_head.register_forward_hook(keep)
    train(model, task, epochs=0.5)
    assert widths[0] == 1
    assert widths[1] > 1
    deployment = deploy(model.eval(), "ideal").program(0)
    batch = draw_examples(task, 4, deployment.model, seed=0)
    teacher = Teacher.of_chip(deployment, deployment.model, 1.0)
    widths.clear()
    assert teacher.rate_factors(deployment.model, batch, 0.01)
    assert widths == [1]


def test_an_error_leaves_no_hook(make_model):
    model = adapt(make_model("bert"), "grasp", task_type="SEQ_CLS")

    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        input_sizes(model, fails)
    assert not any(module._forward_pre_hooks for module in model.modules())


def factors(model, learning_rate):
    """Return the factors on the learning rate by the last parts of the parameters' names."""
    found = rate_factors(model, {}, learning_rate)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p].partition(".modules_to_save.")[2]: factor for p, factor in found.items()}


@pytest.mark.parametrize("adapter", ["grasp", "lora", "bitfit", "head"])
def test_hidden_layers_of_the_head_have_a_limited_rate(make_model, adapter):
    model = adapt(make_model("roberta"), adapter, task_type="SEQ_CLS")
    assert factors(model, 0.02) == {"default.dense.weight": 0.05, "default.dense.bias": 0.05}
    assert factors(model, WHOLE_RATE) == {}


def test_a_head_of_one_layer_learns_at_the_rate_of_the_adapter(make_model):
    assert factors(adapt(make_model("bert"), "grasp", task_type="SEQ_CLS"), 0.02) == {}


def test_the_output_layer_is_that_of_the_active_adapter(make_model):
    model = adapt(make_model("roberta"), "grasp", task_type="SEQ_CLS")
    model.add_adapter("other", model.peft_config["default"])
    assert set(factors(model, 0.02)) == {"default.dense.weight", "default.dense.bias"}
    model.set_adapter("other")
    assert set(factors(model, 0.02)) == {"other.dense.weight", "other.dense.bias"}


def test_other_modules_saved_with_the_adapter_have_a_limited_rate(llama_folder):
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    config = GraspConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    assert factors(get_peft_model(model, config), 0.01) == {"default.weight": 0.1}


@pytest.mark.parametrize("fit", ["train", "distil", "recalibrate"])
def test_fits_use_the_limited_rate(reader, task, fit):
    """At the rate of the output layer, the hidden layer would move as far; here it has 1/300."""
    before = adapt(reader("roberta"), "grasp", task_type="SEQ_CLS")
    if fit == "train":
        after = deepcopy(before)
        train(after, task, epochs=1, learning_rate=0.3, batch_size=16)
    elif fit == "distil":
        after = deepcopy(before).eval()
        distil(after, task, "gaussian:0.1@0s", steps=3, learning_rate=0.3)
    else:
        deployment = deploy(before.eval(), "gaussian:0.1").program(0)
        after = recalibrate(deployment, task, steps=10, learning_rate=0.3).model
    own = dict(adapter_parameters(before))
    changes = {
        name: (values - own[name]).abs().max().item() for name, values in adapter_parameters(after)
    }
    head = "base_model.model.classifier.modules_to_save.default."
    assert 0 < changes[head + "dense.weight"] < changes[head + "out_proj.weight"] / 50
