"""Injected weight noise: its standard deviation, and restored weights."""

from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.profile import profile as device_profile
from analog_grasp.training import WeightNoise, hardware_loop

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
    monkeypatch.setattr(hardware_loop, "_multiplies_bfloat16", lambda: True)
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


def test_trainable_weights_stay_in_float32(layer, monkeypatch):
    monkeypatch.setattr(hardware_loop, "_multiplies_bfloat16", lambda: True)
    with WeightNoise(nn.Sequential(layer), 0.1, reduced=True).applied():
        assert layer.weight.dtype == torch.float32
