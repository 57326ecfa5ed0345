"""The noise-aware loss, compared with values computed by hand."""

import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch.distributions import Normal, kl_divergence

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.profile import profile as device_profile
from analog_grasp.training.loss import NoiseAwareLoss, kl, l2, target_std

FORMS = {"l2": l2, "kl": kl}


def adapted(model, **settings):
    config = StochGraspConfig(task_type="SEQ_CLS", groups=2, **settings)
    return get_peft_model(model, config), config


def each_layer(model, **values):
    """Set the parameters of every StochGRASP layer to the same values."""
    for name, parameter in model.named_parameters():
        for kind, value in values.items():
            if f"stochgrasp_{kind}.default" in name:
                parameter.data = torch.tensor(value)


@pytest.mark.parametrize(
    ("form", "expected"),
    [(l2, [0.25, 0.0, 4.0]), (kl, [math.log(2) - 0.375, 0.0, 4 - math.log(3)])],
)
def test_values_computed_by_hand(form, expected):
    sigma, target = torch.tensor([0.05, 0.1, 0.3]), torch.full((3,), 0.1)
    assert form(sigma, target).tolist() == pytest.approx(expected, abs=1e-6)


def test_kl_equals_torch_kl_divergence():
    sigma, target = torch.rand(50) + 0.01, torch.rand(50) + 0.01
    mean = torch.randn(50)
    expected = kl_divergence(Normal(mean, sigma), Normal(mean, target))
    torch.testing.assert_close(kl(sigma, target), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", [l2, kl])
def test_minimum_is_at_the_target(form):
    sigma = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    form(sigma, torch.full((3,), 0.1, dtype=torch.float64)).sum().backward()
    below, at, above = sigma.grad.tolist()
    assert below < 0 < above
    assert at == pytest.approx(0, abs=1e-12)


def test_float_target_is_constant():
    assert target_std(0.25)(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.25] * 3


def test_device_target_equals_its_profile():
    profile = device_profile(DeviceCard.load("pcm-hermes-2"), "1d")
    values = torch.linspace(0, 1, 37)
    expected = np.interp(values.numpy(), profile.values, profile.std)
    target = target_std("pcm-hermes-2@1d")(values)
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-5)
    assert target.dtype == values.dtype


@pytest.mark.parametrize(("factor", "std"), [("", 0.1), (" x1.5", 0.15), (" x2", 0.2)])
def test_gaussian_card_at_a_time_with_a_factor(factor, std):
    target = target_std(f"gaussian:0.1@0s{factor}")(torch.tensor([0.5]))
    assert target.item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("pcm-hermes-2", "has no drift time"),
        ("pcm-hermes-3@1d", "Did you mean 'pcm-hermes-2'"),
        ("ideal@1d", "stores some values without noise"),
        ("pcm-afm-2025@0s", "stores some values without noise"),
        ("sonos-agrawal2022@0s", "stores some values without noise"),
        ("pcm-hermes-2@1 fortnight", "unknown unit"),
        ("pcm-hermes-2@", "has no drift time"),
        ("pcm-hermes-2@1h..1y", "more than one device at one time"),
        ("gaussian:0.1@0s x0", "no number above 0"),
    ],
)
def test_invalid_targets_raise(target, sentence):
    with pytest.raises(ValueError, match=sentence):
        target_std(target)


@pytest.mark.parametrize(("form", "value"), [("l2", 1.0), ("kl", 1.5 - math.log(2))])
def test_loss_is_the_weighted_mean_over_all_sigmas(bert, form, value):
    model, config = adapted(bert, noise_loss=form, noise_weight=3.0, noise_target=0.1)
    each_layer(
        model,
        scale_log_sigma=[math.log(0.2), math.log(0.1)],
        shift_log_sigma=[math.log(0.2), math.log(0.1)],
    )
    assert NoiseAwareLoss(model, config)().item() == pytest.approx(3 * value / 2, rel=1e-5)


def test_linear_schedules_end_at_the_full_loss(bert):
    sigma, target, weight = 0.2, 0.1, 3.0
    model, config = adapted(bert, noise_loss="l2", noise_weight=weight, noise_target=target)
    each_layer(model, scale_log_sigma=[math.log(sigma)] * 2, shift_log_sigma=[math.log(sigma)] * 2)

    def found(progress, **schedules):
        return NoiseAwareLoss(model, config, **schedules)(progress).item()

    full = found(1.0)
    for kind in ("weight", "target"):
        assert found(1.0, **{f"{kind}_schedule": "linear"}) == pytest.approx(full)
        assert found(0.5, **{f"{kind}_schedule": "constant"}) == full
    assert found(0.25, weight_schedule="linear") == pytest.approx(full / 4)
    early = target * (0.01 + 0.99 * 0.25)
    expected = weight * ((sigma - early) / early) ** 2
    assert found(0.25, target_schedule="linear") == pytest.approx(expected, rel=1e-5)
    both = {"weight_schedule": "linear", "target_schedule": "linear"}
    assert found(0.25, **both) == pytest.approx(expected / 4, rel=1e-5)
    with pytest.raises(ValueError, match="Unknown schedule 'cosine'"):
        found(1.0, weight_schedule="cosine")


def test_device_target_depends_on_the_stored_value(bert):
    model, config = adapted(bert, noise_target="pcm-hermes-2@1d", noise_loss="l2", noise_weight=1.0)
    sigma = {"scale": [0.02, 0.03], "shift": [0.04, 0.05]}
    each_layer(model, scale=[2.0, -1.0], shift=[0.1, 0.4])
    each_layer(model, **{f"{k}_log_sigma": np.log(v).tolist() for k, v in sigma.items()})
    profile = device_profile(DeviceCard.load("pcm-hermes-2"), "1d")
    target = np.interp([1.0, -0.5, 0.25, 1.0], profile.values, profile.std)
    expected = np.mean(((np.array(sigma["scale"] + sigma["shift"]) - target) / target) ** 2)
    assert NoiseAwareLoss(model, config)().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "name", [n for n in DeviceCard.names() if n not in ("ideal", "pcm-afm-2025")]
)
def test_target_of_each_sign_is_the_stds_of_devices_that_store_it(bert, name):
    """On every card, at 0 s and a day: the loss is 0 for sigmas measured on devices."""
    card = DeviceCard.load(name)
    # At 0 s a SONOS device stores 0 without noise, which is an error as a target.
    for time in (0.0, 86_400.0)[name == "sonos-agrawal2022" :]:
        target = {"noise_target": card.at(time), "noise_loss": "l2"}
        model, config = adapted(bert, **target, noise_weight=1.0)
        stored = torch.tensor([-1.0, 1.0, 0.6, -0.6]).repeat(60_000, 1)
        variance = torch.empty_like(stored)
        read = CardNoiseModel(card, seed=8).read_weights(stored, time, variance_out=variance)
        std = (read.double().var(0) + variance.double().mean(0)).sqrt()
        each_layer(model, scale=[-1.0, 0.6], shift=[1.0, -0.6])
        each_layer(model, scale_log_sigma=std[[0, 2]].log().tolist())
        each_layer(model, shift_log_sigma=std[[1, 3]].log().tolist())
        assert NoiseAwareLoss(model, config)().item() < 0.03**2
        each_layer(model, scale_log_sigma=(2 * std[[0, 2]]).log().tolist())
        assert NoiseAwareLoss(model, config)().item() > 0.1


def test_untrained_adapter_has_finite_loss_and_gradient(bert):
    model, config = adapted(bert, noise_target="rram-wan2022@1d")
    NoiseAwareLoss(model, config)().backward()
    gradients = [p.grad for n, p in model.named_parameters() if "log_sigma" in n]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_loss_covers_the_layers_of_the_adapter_only(bert):
    model, _ = adapted(bert, noise_target=0.1)
    settings = {"init_sigma": 0.3, "noise_target": 0.1, "noise_weight": 1.0, "noise_loss": "l2"}
    config = StochGraspConfig(groups=3, target_modules=["query"], **settings)
    model.add_adapter("second", config)
    assert NoiseAwareLoss(model, config, "second")().item() == pytest.approx(4.0, rel=1e-5)
