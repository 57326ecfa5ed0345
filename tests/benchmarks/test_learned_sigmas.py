"""The benchmark of learned standard deviations on a small model: sensitivity and permutations."""

import sys

import learned_sigmas
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import analog_grasp as ag
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.adapters.registry import adapt
from analog_grasp.study.trained_adapters import save_adapter
from analog_grasp.training.distillation import inputs_of
from analog_grasp.training.examples import draw_examples, pick


@pytest.fixture
def model(bert_folder):
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    # One group per feature, so that the gradient of a parameter is that of a feature.
    adapted = adapt(
        model, "stochgrasp", target_modules="all-linear", noise_weight=0.01,
        noise_target=0.1, sampling="feature",
    )  # fmt: skip
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        # Untrained shifts are 0, and so is their noise.
        if "stochgrasp_shift." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def test_squared_gradients_are_those_of_single_examples(model):
    rows = draw_examples(ag.load_task("reviews"), 3, model, 0)
    layers = [each for each in model.modules() if isinstance(each, StochGraspLinear)]
    found = learned_sigmas.squared_gradients(model, layers, rows)
    parameters = [
        getattr(layer, layer.adapter_layer_names[kind])["default"]
        for layer in layers
        for kind in (0, 1)
    ]
    expected = [torch.zeros_like(each) for each in parameters]
    for row in range(3):
        logits = model(**inputs_of(pick(rows, torch.tensor([row])))).logits[0]
        for log_probability in logits.log_softmax(-1):
            gradients = torch.autograd.grad(log_probability, parameters, retain_graph=True)
            for held, gradient in zip(expected, gradients, strict=True):
                held += log_probability.detach().exp() * gradient.square() / 3
    for layer, (by_layer, *_) in enumerate(zip(found, layers, strict=True)):
        pair = torch.stack(expected[2 * layer : 2 * layer + 2])
        torch.testing.assert_close(by_layer, pair, rtol=1e-3, atol=1e-9)


def test_meanings_and_scores_are_printed(model, bert_folder, tmp_path, monkeypatch, capsys):
    kinds = learned_sigmas.kinds_of(model, draw_examples(ag.load_task("reviews"), 8, model, 0))
    for kind in kinds.values():
        # Less noise where the loss is more sensitive, as the curvature would have it.
        kind.write(0.05 * (kind.rises / kind.rises.mean() + 0.1).rsqrt().clamp(max=4))
        _, *correlations, permuted = learned_sigmas.meaning(kind)
        assert all(float(correlation) < -0.9 for correlation in correlations)
        assert float(permuted) > 1
    save_adapter(model, tmp_path / "adapter")
    asked = ["--model", str(bert_folder), "--examples", "8", "--draws", "1", "--factors", "2"]
    monkeypatch.setattr(sys, "argv", ["learned_sigmas.py", str(tmp_path / "adapter"), *asked])
    learned_sigmas.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = [row.split(" | ")[1] for row in rows if ":--" not in row]
    assert found == ["of", "scales", "shifts", "noise", "x 2"]


def test_standard_deviations_are_put_back(model):
    task = ag.load_task("reviews").subset(validation=4)
    kinds = list(learned_sigmas.kinds_of(model, draw_examples(task, 4, model, 0)).values())
    before = [kind.sigmas for kind in kinds]
    ((factor, *scores),) = learned_sigmas.sampled(model, task, kinds, [3.0], draws=1)
    assert factor == "x 3"
    # Untrained ones are all equal.
    assert scores[0] == scores[2]
    for kind, sigmas in zip(kinds, before, strict=True):
        torch.testing.assert_close(kind.sigmas, sigmas)
