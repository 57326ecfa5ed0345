"""Write tolerances of frozen weights: learned, selected, set on chips, exported; their pulses."""

import argparse
import copy
import math
import re

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

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


def test_without_programming_noise_a_tolerance_changes_no_relaxation(stochastic):
    def weights(tolerance):
        card = ag.DeviceCard.load("rram-wan2022").without("programming")
        deployment = ag.deploy(stochastic, card, drift_compensation="none")
        return set_write_tolerances(deployment, tolerance).program(3).drift_to("1d").weights()

    loose = weights(0.2)
    for name, weight in weights(0.01).items():
        assert torch.equal(loose[name], weight)


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
    # One part is in evaluation mode already.
    stochastic.train().base_model.model.bert.pooler.eval()
    modes = [module.training for module in stochastic.modules()]
    scores = sensitivities(deployment, stochastic, [batch, batch])
    assert [module.training for module in stochastic.modules()] == modes
    stochastic.eval()
    assert {n: p.requires_grad for n, p in stochastic.named_parameters()} == before
    name = "bert.encoder.layer.0.output.dense"
    weight = stochastic.base_model.model.get_submodule(name).get_base_layer().weight
    weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(stochastic(**batch).loss, weight)
    weight.requires_grad_(False)
    # A tile holds the whole layer, so that the scale is that of the row of the weight.
    scale = weight.detach().abs().amax(1, keepdim=True)
    torch.testing.assert_close(scores[name], 2 * (gradient * scale).square())


class Loss(torch.nn.Module):
    """A model whose loss has equal gradients in all weights of its layer."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2, bias=False)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        self.layer.weight.data[0, 0] = 10.0
        self.layer.weight.data[1, 1] = 0.0

    def forward(self, x):
        return argparse.Namespace(loss=self.layer(x).sum())


def test_the_sensitivity_of_a_clipped_weight_is_that_of_its_column():
    model, batch = Loss(), {"x": torch.ones(1, 8)}
    [scores] = sensitivities(ag.deploy(model, "rram-wan2022", clip=1.0), model, [batch]).values()
    scale = model.layer.weight.detach().std(1, correction=0, keepdim=True)
    torch.testing.assert_close(scores, scale.square().expand(2, 8))
    chip = ag.deploy(model, "rram-wan2022")
    chip.rescale(lambda each: each(torch.linspace(1, 8, 8)[None]))
    layer = chip.layers["layer"]
    # Of an error of the weight that is programmed, W diag(r).
    scale = (layer.frozen * layer.input_scale).abs().amax(1, keepdim=True) / layer.input_scale
    [scores] = sensitivities(chip, model, [batch]).values()
    torch.testing.assert_close(scores, scale.square())


def test_the_sensitivity_of_an_output_layer_is_without_its_tied_embedding():
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=20, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config).eval()
    deployment = ag.deploy(model, "rram-wan2022", layers=["all-linear", "lm_head"])
    ids = torch.tensor([[3, 4, 5]])
    scores = sensitivities(deployment, model, [{"input_ids": ids, "labels": ids}])
    assert scores.keys() == deployment.layers.keys()
    assert model.lm_head.weight is model.transformer.wte.weight
    hidden = model.transformer(ids).last_hidden_state.detach()
    weight = model.lm_head.weight.detach().clone().requires_grad_()
    logits = (hidden @ weight.T)[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    (gradient,) = torch.autograd.grad(loss, weight)
    scale = weight.detach().abs().amax(1, keepdim=True)
    torch.testing.assert_close(scores["lm_head"], (gradient * scale).square())


def test_fused_weights_have_no_sensitivity():
    model = torch.nn.TransformerEncoderLayer(8, 2, 8)
    with pytest.raises(ValueError, match=r"layer self_attn\.in_proj_weight\.q has no sensitivity"):
        sensitivities(ag.deploy(model, "rram-wan2022"), model, [])


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


def by_layer(deployment):
    """A number, a row and a matrix of tolerances, and layers with the card's own."""
    name = "bert.encoder.layer.0.attention.self"
    scores = magnitudes(deployment)[f"{name}.value"]
    return {
        f"{name}.query": 0.2,
        f"{name}.key": torch.linspace(0.02, 0.3, 16)[None],
        **selected_tolerances({f"{name}.value": scores}, 0.3, 0.05),
    }


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("of", [lambda _: 0.2, learned_tolerances, by_layer])
def test_a_saved_chip_has_the_same_bits_and_pulses(stochastic, tmp_path, of, seed):
    original = ag.deploy(stochastic, "rram-wan2022")
    set_write_tolerances(original, of(original))
    if seed is not None:
        original.program(seed).drift_to("1d")
    original.save(tmp_path)
    loaded = ag.Deployment.load(tmp_path)
    assert (loaded.seed, loaded.time_s) == (original.seed, original.time_s)
    for _ in range(2):
        assert mean_pulses(loaded) == mean_pulses(original) is not None
        for name, weight in original.weights().items():
            assert torch.equal(loaded.weights()[name], weight)
        for chip in (original, loaded):
            chip.program(5).drift_to("1h")


def test_a_folder_without_tolerances_loads(bert, tmp_path):
    chip = set_write_tolerances(ag.deploy(bert, "rram-wan2022"), 0.2).program(0)
    chip.save(tmp_path)
    set_write_tolerances(chip, {}).save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["deployment.json", "model.safetensors"]
    loaded = ag.Deployment.load(tmp_path)
    assert mean_pulses(loaded) is None
    for name, weight in chip.weights().items():
        assert torch.equal(loaded.weights()[name], weight)


POOLER = "bert.pooler.dense"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a tensor", ""),
        ({}, "its layers are not those of deployment.json"),
        ({POOLER: torch.tensor(-1.0)}, f"A write tolerance of the layer {POOLER} is -1"),
        ({POOLER: torch.ones(3)}, f"The write tolerances of the layer {POOLER} have the shape"),
        ({"dense": torch.tensor(0.1)}, "Unknown layer 'dense'"),
    ],
)
def test_a_damaged_file_of_tolerances_is_an_error(bert, tmp_path, content, reason):
    set_write_tolerances(ag.deploy(bert, "rram-wan2022"), {POOLER: 0.2}).save(tmp_path)
    file = tmp_path / "write_tolerances.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    expected = rf"{file.name} is damaged \({re.escape(reason)}.*\): save the deployment again\."
    with pytest.raises(ValueError, match=expected):
        ag.Deployment.load(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file.name} is missing: save the deployment"):
        ag.Deployment.load(tmp_path)


@pytest.mark.parametrize(
    ("tolerances", "sentence"),
    [
        ({"dense": torch.tensor(0.1)}, "Unknown layer 'dense'"),
        ({POOLER: torch.ones(3)}, r"shape \(3,\), which does not fit its weight of \(16, 16\)"),
        ({POOLER: torch.tensor([0.1] * 15 + [-0.5])}, r"is -0\.5, which is not above 0"),
        ({POOLER: math.nan}, "is nan, which is not above 0"),
        ({POOLER: "tight"}, r"pooler\.dense is 'tight': a number or a tensor is accepted"),
    ],
)
def test_tolerances_of_layers_that_do_not_fit_raise(bert, tmp_path, tolerances, sentence):
    with pytest.raises(ValueError, match=sentence):
        set_write_tolerances(ag.deploy(bert, "rram-wan2022"), tolerances)
    with pytest.raises(ValueError, match=sentence):
        export_chip(bert, "rram-wan2022", tmp_path / "chip", write_tolerances=tolerances)
    assert not (tmp_path / "chip").exists()


@pytest.mark.parametrize(
    ("device", "tolerance", "sentence"),
    [
        ("pcm-hermes-2", 0.1, "states no program-and-verify"),
        ("rram-wan2022", 0.0, "is 0, which is not above 0"),
        ("rram-wan2022", None, "is None: a number or a tensor"),
    ],
)
def test_a_tolerance_that_cannot_be_set_raises(bert, device, tolerance, sentence):
    with pytest.raises(ValueError, match=sentence):
        set_write_tolerances(ag.deploy(bert, device), tolerance)


def test_an_export_takes_a_number_per_layer(bert, tmp_path):
    export_chip(bert, "rram-wan2022", tmp_path / "chip", write_tolerances={POOLER: 0.1})
    written = load_file(tmp_path / "chip")[f"{POOLER}.tolerance.weight"]
    assert torch.equal(written, torch.tensor(0.1))


@pytest.mark.parametrize("placement", ["folded", "programmed"])
def test_tolerances_are_learned_by_digital_adapters(bert, placement):
    config = ag.StochGraspConfig(task_type="SEQ_CLS", groups=GROUPS, sampling="feature")
    model = get_peft_model(copy.deepcopy(bert), config)
    deployment = ag.deploy(model, "rram-wan2022", placement=placement)
    with pytest.raises(ValueError, match=rf"placement is '{placement}'.*placement='digital'"):
        learned_tolerances(deployment)


def test_models_and_shares_that_do_not_fit_raise(bert):
    deployment = ag.deploy(bert, "rram-wan2022")
    with pytest.raises(ValueError, match="has no StochGRASP layer on tiles"):
        learned_tolerances(deployment)
    with pytest.raises(ValueError, match=r"share is 1\.5: a share from 0 to 1"):
        selected_tolerances(magnitudes(deployment), 1.5, 0.1)
    with pytest.raises(ValueError, match="scores is empty: give the scores of at least one"):
        selected_tolerances({}, 0.5, 0.1)
