"""Injected weight noise: its standard deviation, and restored weights."""

import re
from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.registry import adapt
from analog_grasp.crossbar import deploy
from analog_grasp.crossbar.tile_sets import selected
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.profile import profile as device_profile
from analog_grasp.training import WeightNoise, weight_noise

INPUTS, COLUMNS = 4000, 5


@pytest.fixture(params=[nn.Linear, Conv1D])
def layer(request):
    """A layer whose columns differ in size by factors of ten."""
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, COLUMNS) if request.param is nn.Linear else Conv1D(COLUMNS, INPUTS)
    with torch.no_grad():
        columns(layer).copy_(torch.randn(COLUMNS, INPUTS) * 10.0 ** -torch.arange(5)[:, None])
    return layer


def columns(layer):
    """Return the weights as ``(D_out, D)``."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


@pytest.mark.parametrize("strength", [0.04, 0.5])
def test_std_is_relative_to_the_column_maximum(layer, strength):
    clean = columns(layer).detach().clone()
    torch.manual_seed(1)
    with WeightNoise(nn.Sequential(layer), strength).applied():
        noise = columns(layer) - clean
    in_units = noise / clean.abs().amax(dim=1, keepdim=True)
    # Standard errors with 4,000 inputs per column: strength / 63 of the mean, 1.1 % of the std.
    assert in_units.mean(dim=1).abs().max() < 5 * strength / INPUTS**0.5
    torch.testing.assert_close(
        in_units.std(dim=1), torch.full((COLUMNS,), strength), rtol=0.06, atol=0
    )


@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt])
def test_every_block_draws_new_noise_and_restores_the_weights_on_any_exit(layer, ending):
    frozen, bits = layer.weight, layer.weight.detach().clone()
    noise = WeightNoise(nn.Sequential(layer), 0.1)
    with noise.applied():
        first = layer.weight.detach().clone()
    with pytest.raises(ending) if ending else nullcontext(), noise.applied():
        assert (layer.weight != first).float().mean() > 0.99
        if ending:
            raise ending
    assert layer.weight is frozen
    assert torch.equal(frozen, bits)


def test_zero_strength_has_no_effect(layer):
    frozen, state = layer.weight, torch.get_rng_state()
    with WeightNoise(nn.Sequential(layer), 0.0).applied():
        assert layer.weight is frozen
    assert torch.equal(torch.get_rng_state(), state)


def test_only_frozen_projections_are_noisy(model):
    adapted = get_peft_model(model, GraspConfig(task_type="SEQ_CLS", groups=4))
    before = {name: (p, p.detach().clone()) for name, p in adapted.named_parameters()}
    with WeightNoise(adapted, 0.1).applied():
        during = dict(adapted.named_parameters())
        noisy = {name for name, (p, bits) in before.items() if not torch.equal(during[name], bits)}
        assert all(during[name] is p for name, (p, _) in before.items() if name not in noisy)
        assert not any(during[name].requires_grad for name in noisy)
    assert noisy == {name for name in before if name.endswith("base_layer.weight")}


def test_pattern_selects_layers(bert):
    frozen = dict(bert.named_parameters())
    with WeightNoise(bert, 0.1, ["query"]).applied():
        noisy = {name for name, p in bert.named_parameters() if p is not frozen[name]}
    assert noisy == {f"bert.encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)}


SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40, "num_local_experts": 3,
    "num_experts_per_tok": 2, "tie_word_embeddings": False,
}  # fmt: skip


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES)).requires_grad_(False)


def gpt_oss():
    """A mixture of experts that are stored as ``(D, D_out)``."""
    torch.manual_seed(0)
    return GptOssForCausalLM(GptOssConfig(**SIZES, pad_token_id=0)).requires_grad_(False)


def attention():
    layer = nn.TransformerEncoderLayer(16, 2, 24)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).requires_grad_(False)


def changed(model, noise):
    """Return the names of the parameters that are noisy."""
    frozen = dict(model.named_parameters())
    with noise.applied():
        noisy = {n for n, p in model.named_parameters() if not torch.equal(p, frozen[n])}
    assert all(p is frozen[n] for n, p in model.named_parameters())
    return noisy


@pytest.mark.parametrize("strength", [0.05, "gaussian:0.05@0s"])
@pytest.mark.parametrize("make", [mixtral, gpt_oss, attention])
@pytest.mark.parametrize("pattern", ["all-linear", ".*(mlp|linear).*", ".*(experts|in_proj).*"])
def test_noise_is_on_the_weights_that_are_deployed(make, pattern, strength):
    model = make()
    parts = r"(_proj|_weight)\.[0-9qkv]$"
    tiles = deploy(model, "ideal", layers=pattern).layers
    # Tiles hold the parts of fused weights under names of their own.
    deployed = {n.rpartition(".")[0] if re.search(parts, n) else f"{n}.weight" for n in tiles}
    assert changed(model, WeightNoise(model, strength, pattern)) == deployed


def test_lm_head_is_noisy_where_it_is_named():
    model = mixtral()
    layers = ["all-linear", "lm_head"]
    assert len(deploy(model, "ideal", layers=layers).layers) == 21
    assert "lm_head.weight" in changed(model, WeightNoise(model, 0.05, layers))
    assert "lm_head.weight" not in changed(model, WeightNoise(model, 0.05))


@pytest.mark.parametrize("strength", [0.05, "gaussian:0.05@0s"])
@pytest.mark.parametrize("make", [mixtral, gpt_oss, attention])
def test_noise_of_each_fused_layer_is_relative_to_its_column_maximum(make, strength):
    model = make()
    (fused, *_), found = selected(model, "all-linear")[1], []
    clean = {name: layer.weight.clone() for name, layer in fused.layers().items()}
    # Each layer has its own scale.
    for factor, layer in enumerate(fused.layers().values()):
        layer.weight.mul_(10.0**-factor)
    torch.manual_seed(1)
    with WeightNoise(model, strength).applied():
        for factor, (name, layer) in enumerate(fused.layers().items()):
            noise = layer.weight * 10.0**factor - clean[name]
            found.append((noise / clean[name].abs().amax(1, keepdim=True)).flatten())
    noise = torch.stack(found)
    torch.testing.assert_close(noise.std(1), torch.full((3,), 0.05), rtol=0.25, atol=0)
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.25


def test_lora_on_fused_experts_is_trained_under_noise():
    model = adapt(mixtral(), "lora", task_type="CAUSAL_LM", target_modules=["w1", "w2", "w3"])
    frozen = {n: (p, p.clone()) for n, p in model.named_parameters() if not p.requires_grad}
    ids = torch.arange(8)[None]
    clean, noise = model(input_ids=ids).logits, WeightNoise(model, 0.1)
    with noise.applied():
        noisy = model(input_ids=ids, labels=ids)
        noisy.loss.backward()
    assert not torch.allclose(noisy.logits, clean)
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)
    after = dict(model.named_parameters())
    assert all(after[n] is p and torch.equal(p, bits) for n, (p, bits) in frozen.items())


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_layers_off_the_tiles_are_multiplied_in_bfloat16_too(bert, strength, monkeypatch):
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: True)
    bert.requires_grad_(False)
    noise = WeightNoise(bert, strength, ["query"], reduced=True)
    frozen = {name: p.detach().clone() for name, p in bert.named_parameters()}
    with noise.applied():
        for name, p in bert.bert.encoder.named_parameters(prefix="bert.encoder"):
            if p.dim() == 2:
                exact = torch.equal(p, frozen[name].bfloat16())
                assert exact != (bool(strength) and "query" in name), name
    assert all(torch.equal(p, frozen[name]) for name, p in bert.named_parameters())
    assert not any("forward" in vars(module) for module in bert.modules())


@pytest.mark.parametrize("pattern", ["nothing", ["query", "qery"]])
def test_pattern_without_a_match_raises(bert, pattern):
    with pytest.raises(ValueError, match="matches no frozen linear layer"):
        WeightNoise(bert, 0.1, pattern)


def test_pattern_that_is_no_expression_raises(bert):
    with pytest.raises(ValueError, match=r"pattern '\[' is no regular expression \(unterminated"):
        WeightNoise(bert, 0.1, "[")


def test_trainable_weight_receives_the_gradient_of_its_noisy_copy(layer):
    noise = WeightNoise(nn.Sequential(layer), 0.1)
    x = torch.ones(2, INPUTS)
    for _ in range(2):
        with noise.applied():
            layer(x).sum().backward()
    torch.testing.assert_close(columns_of(layer.weight.grad, layer), torch.full((5, INPUTS), 4.0))


def columns_of(tensor, layer):
    return tensor.T if isinstance(layer, Conv1D) else tensor


@pytest.mark.filterwarnings("ignore:Device card:UserWarning")
@pytest.mark.parametrize("where", ["pcm-hermes-2@1d", "rram-wan2022@1y", "gaussian:0.1@0s"])
def test_noise_of_a_device(layer, where):
    clean = columns(layer).detach().clone()
    largest = clean.abs().amax(dim=1, keepdim=True)
    torch.manual_seed(1)
    with WeightNoise(nn.Sequential(layer), where).applied():
        noisy = columns(layer).detach()
    relative = (noisy / largest).flatten()
    stored = (clean / largest).flatten()
    name, _, time = where.rpartition("@")
    profile = device_profile(DeviceCard.load(name), time)
    gain = stored.abs().mean() / relative.abs().mean()
    small = stored.abs() < 0.1
    # The read weights are rescaled to the mean magnitude of the weights, so the standard
    # deviations are those of the profile divided by its mean.
    scale = float(profile.mean_at(stored).abs().mean() / stored.abs().mean())
    expected = profile.std_at(stored[small]).square().mean().sqrt() / scale
    measured = (relative - profile.mean_at(stored) / scale)[small].std()
    assert gain == pytest.approx(1, abs=1e-4)
    assert measured == pytest.approx(float(expected), rel=0.1)


def test_noise_of_a_device_has_that_of_each_read(layer):
    card = DeviceCard.load("rram-wan2022").without("programming", "drift")
    clean = columns(layer).detach().clone()
    torch.manual_seed(1)
    with WeightNoise(nn.Sequential(layer), card.at("0s")).applied():
        noisy = columns(layer).detach()
    error = (noisy - clean) / clean.abs().amax(dim=1, keepdim=True)
    expected = device_profile(card, "0s").std_at(torch.tensor([0.5]))
    assert float(error.std()) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize(
    ("strength", "sentence"),
    [
        (-0.1, r"injection is -0\.1.*at least 0"),
        (float("nan"), "injection is nan.*at least 0"),
        ("pcm-hermes-2", "has no drift time"),
        ("nothing@1d", "nothing"),
        ("pcm-hermes-2@soon", "soon"),
    ],
)
def test_invalid_strength_raises(layer, strength, sentence):
    with pytest.raises(ValueError, match=sentence):
        WeightNoise(nn.Sequential(layer), strength)


def test_the_layers_of_a_batch_are_on_one_die():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(3))).requires_grad_(False)
    card = DeviceCard.load("gaussian").with_(die_to_die=0.5)
    noise = WeightNoise(model, card.at("0s"))
    clean = [layer.weight.clone() for layer in model]
    scales = [weight.abs().amax(1, keepdim=True) for weight in clean]
    batches = []
    for _ in range(4):
        with noise.applied():
            noisy = [layer.weight for layer in model]
            parts = zip(noisy, clean, scales, strict=True)
            batches.append([float(((a - b) / scale).std()) for a, b, scale in parts])
    stds = torch.tensor(batches)
    # Standard deviations differ between batches, and within one by their sampling alone.
    assert (stds / stds.mean(1, keepdim=True) - 1).abs().max() < 0.05
    assert stds.mean(1).std() > 0.005


def test_device_and_age_are_drawn_for_every_batch(layer):
    clean = columns(layer).detach().clone()
    largest = clean.abs().amax(dim=1, keepdim=True)

    def errors(where, batches):
        torch.manual_seed(1)
        noise, found = WeightNoise(nn.Sequential(layer), where), []
        for _ in range(batches):
            with noise.applied():
                found.append(((columns(layer) - clean) / largest).std().item())
        return torch.tensor(found)

    (fixed,) = errors("gaussian:0.1@0s", 1)
    assert errors("gaussian:0.1@0s x1.5", 1) == pytest.approx(1.5 * float(fixed), rel=0.1)
    both = errors("gaussian:0.1@0s,gaussian:0.01@0s", 40)
    large = both > 0.05
    assert 8 < large.sum() < 32
    torch.testing.assert_close(both[large], fixed.expand(large.sum()), rtol=0.05, atol=0)
    aged = errors("pcm-hermes-2@20s..10y", 12)
    assert aged.min() > 0.9 * errors("pcm-hermes-2@20s", 1)
    assert aged.max() < 1.1 * errors("pcm-hermes-2@10y", 1)
    assert aged.max() > 1.2 * aged.min()


@pytest.mark.parametrize("strength", [0.0, 0.04, "gaussian:0.1@0s"])
def test_frozen_weights_are_multiplied_in_bfloat16(layer, strength, monkeypatch):
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: True)
    layer.weight.requires_grad_(False)
    x, direction = torch.randn(3, 2, INPUTS, requires_grad=True), torch.randn(3, 2, COLUMNS)
    found = []
    for reduced in (True, False):
        torch.manual_seed(1)
        with WeightNoise(nn.Sequential(layer), strength, reduced=reduced).applied():
            noisy, y = columns(layer).detach(), layer(x)
            y.backward(direction)
        assert "forward" not in vars(layer)
        found.append((noisy, y.detach(), x.grad, layer.bias.grad))
        x.grad = layer.bias.grad = None
    (reduced, y, *grads), (exact, y_exact, *grads_exact) = found
    assert torch.equal(reduced, exact.bfloat16())
    assert (y.dtype, y.shape) == (torch.float32, y_exact.shape)
    # Rounding errors of 2^-9 relative add up at random.
    sizes = (x.detach().square() @ exact.square().T).sqrt()
    assert ((y - y_exact) / sizes).abs().max() < 0.02
    for ours, expected in zip(grads, grads_exact, strict=True):
        assert (ours - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("processor", "instructions", "faster"),
    [
        ("znver5", {"avx512_bf16": True, "amx_bf16": False}, True),
        ("znver3", {"avx512_bf16": False}, False),
        ("emeraldrapids", {"avx512_bf16": True, "amx_bf16": False}, False),
        ("emeraldrapids", {"avx512_bf16": True, "amx_bf16": True}, True),
        ("neoverse-v2", {}, False),
    ],
)
def test_bfloat16_is_used_where_it_is_faster(processor, instructions, faster, monkeypatch):
    monkeypatch.setattr(weight_noise.llvm, "get_host_cpu_name", lambda: processor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    # The function itself, without what it has found for this processor.
    assert weight_noise._multiplies_bfloat16.__wrapped__() is faster


def test_trainable_weights_stay_in_float32(layer, monkeypatch):
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: True)
    with WeightNoise(nn.Sequential(layer), 0.1, reduced=True).applied():
        assert layer.weight.dtype == torch.float32
