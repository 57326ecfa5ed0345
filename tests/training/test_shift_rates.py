"""Learning rates of shifts: the size of a layer's inputs, measured on a tiny language model."""

import pytest
from datasets import Dataset

from analog_grasp import deploy
from analog_grasp.adapters.registry import adapt
from analog_grasp.tasks import LanguageModelingTask, load_base_model
from analog_grasp.training import train
from analog_grasp.training.distillation import Teacher
from analog_grasp.training.examples import draw_examples
from analog_grasp.training.shift_rates import input_sizes


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
    assert teacher.shift_rates(deployment.model, batch)
    assert widths == [1]


def test_an_error_leaves_no_hook(make_model):
    model = adapt(make_model("bert"), "grasp", task_type="SEQ_CLS")

    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        input_sizes(model, fails)
    assert not any(module._forward_pre_hooks for module in model.modules())
