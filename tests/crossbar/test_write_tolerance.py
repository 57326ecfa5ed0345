"""Write tolerances of frozen weights: learned, selected, set on chips, exported; their pulses."""

import copy
import math

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

import analog_grasp as ag
from analog_grasp.crossbar.export import export_chip, read_chip
from analog_grasp.crossbar.write_tolerance import (
    learned_tolerances,
    magnitudes,
    mean_pulses,
    selected_tolerances,
    sensitivities,
    set_write_tolerances,
)

GROUPS = 4


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=30, max_position_embeddings=32,
    )  # fmt: skip
    return BertForSequenceClassification(config)


@pytest.fixture
def stochastic(bert):
    config = ag.StochGraspConfig(task_type="SEQ_CLS", groups=GROUPS, sampling="weight")
    return get_peft_model(copy.deepcopy(bert), config)


def test_the_published_tolerance_changes_nothing(stochastic):
    plain = ag.deploy(stochastic, "rram-wan2022").program(3).drift_to("1d")
    same = ag.deploy(stochastic, "rram-wan2022")
    set_write_tolerances(same, 1 / 40).program(3).drift_to("1d")
    for name, weight in plain.weights().items():
        torch.testing.assert_close(same.weights()[name], weight, rtol=1e-4, atol=1e-5)


def test_a_programmed_chip_is_programmed_again(stochastic):
    deployment = ag.deploy(stochastic, "rram-wan2022").program(3).drift_to("1h")
    before = [layer.weight_error for layer in deployment.report()]
    set_write_tolerances(deployment, 0.2)
    assert (deployment.seed, deployment.time_s) == (3, 3600.0)
    after = [layer.weight_error for layer in deployment.report()]
    assert all(new > old for new, old in zip(after, before, strict=True))


def test_learned_tolerances_by_hand(stochastic):
    deployment = ag.deploy(stochastic, "rram-wan2022")
    name = "bert.encoder.layer.0.attention.self.query"
    module = next(m for path, m in deployment.model.named_modules() if path.endswith("self.query"))
    with torch.no_grad():
        module.stochgrasp_scale["default"].copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    found = learned_tolerances(deployment, factor=2.0)[name]
    assert found.shape == (1, 16)
    targets = deployment.layers[name].targets()
    sigma = module.sigmas("default")[0]
    for group in range(GROUPS):
        part = slice(4 * group, 4 * group + 4)
        size = targets[:, part].square().mean().sqrt()
        expected = 2 * math.sqrt(3) * sigma[group] / (1.0, 2.0, 0.5, 1.0)[group] * size
        torch.testing.assert_close(found[0, part], expected.detach().expand(4))


def test_the_largest_weights_are_verified(stochastic):
    deployment = ag.deploy(stochastic, "rram-wan2022")
    scores = magnitudes(deployment)
    chosen = selected_tolerances(scores, 0.25, 0.025)
    cells = sum(score.numel() for score in scores.values())
    verified = sum(int(t.isfinite().sum()) for t in chosen.values())
    assert verified == pytest.approx(0.25 * cells, abs=20)
    smallest = min(float(scores[n][t.isfinite()].min()) for n, t in chosen.items())
    largest = max(float(scores[n][t.isinf()].max()) for n, t in chosen.items())
    assert smallest >= largest
    set_write_tolerances(deployment, chosen)
    share = verified / cells
    assert mean_pulses(deployment) == pytest.approx(share * 8.52 + 1 - share)
    for share, kept in ((0.0, False), (1.0, True)):
        whole = selected_tolerances(scores, share, 0.1).values()
        assert all(bool(t.isfinite().all()) is kept for t in whole)


def test_sensitivity_is_the_squared_gradient(stochastic):
    deployment = ag.deploy(stochastic, "rram-wan2022")
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
    before = {n: p.requires_grad for n, p in stochastic.named_parameters()}
    scores = sensitivities(deployment, stochastic, [batch, batch])
    assert {n: p.requires_grad for n, p in stochastic.named_parameters()} == before
    name = "bert.encoder.layer.0.output.dense"
    weight = stochastic.base_model.model.get_submodule(name).get_base_layer().weight
    weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(stochastic(**batch).loss, weight)
    weight.requires_grad_(False)
    # A tile holds the whole layer, so that the scale is that of the row of the weight.
    scale = weight.detach().abs().amax(1, keepdim=True)
    torch.testing.assert_close(scores[name], 2 * (gradient * scale).square())


def test_pulses_reach_the_costs(stochastic):
    deployment = ag.deploy(stochastic, "rram-wan2022")
    assert mean_pulses(deployment) is None
    stated = ag.costs(deployment, "neurram", sequence=4).programming
    set_write_tolerances(deployment, 0.1)
    loose = ag.costs(deployment, "neurram", sequence=4).programming
    assert loose.pulses[1] == pytest.approx(mean_pulses(deployment))
    ratio = mean_pulses(deployment) / 8.52
    assert loose.energy[1] == pytest.approx(ratio * stated.energy[1])
    assert loose.time[1] == pytest.approx(ratio * stated.time[1])


def test_an_export_carries_them(stochastic, tmp_path):
    tolerances = learned_tolerances(ag.deploy(stochastic, "rram-wan2022"))
    file = tmp_path / "chip.safetensors"
    export_chip(stochastic, "rram-wan2022", file, write_tolerances=tolerances)
    written = load_file(file)
    for name, tolerance in tolerances.items():
        assert torch.equal(written[f"{name}.tolerance.weight"], tolerance)
    batch = {"input_ids": torch.tensor([[1, 2, 3]])}
    expected = stochastic.eval()(**batch).logits
    torch.testing.assert_close(read_chip(file)(**batch).logits, expected)


@pytest.mark.parametrize(
    ("device", "tolerances", "sentence"),
    [
        ("pcm-hermes-2", 0.1, "states no program-and-verify"),
        ("rram-wan2022", 0.0, "is not above 0"),
        ("rram-wan2022", {"dense": torch.tensor(0.1)}, "Unknown layer 'dense'"),
        ("rram-wan2022", {"bert.pooler.dense": torch.ones(3)}, r"shape \(3,\), which does not fit"),
    ],
)
def test_tolerances_that_cannot_be_set_raise(bert, device, tolerances, sentence):
    with pytest.raises(ValueError, match=sentence):
        set_write_tolerances(ag.deploy(bert, device), tolerances)


def test_models_and_shares_that_do_not_fit_raise(bert):
    deployment = ag.deploy(bert, "rram-wan2022")
    with pytest.raises(ValueError, match="has no StochGRASP layer on tiles"):
        learned_tolerances(deployment)
    with pytest.raises(ValueError, match=r"share is 1\.5: a share from 0 to 1"):
        selected_tolerances(magnitudes(deployment), 1.5, 0.1)
