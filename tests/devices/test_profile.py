"""Target noise profiles and moments, compared with closed forms and with samples."""

import math

import numpy as np
import pytest
import torch

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import conductance_moments, weight_std
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.profile import profile
from analog_grasp.utils.time import parse_time


def card(name: str) -> DeviceCard:
    return DeviceCard.load(name)


def test_ideal_reads_back_what_was_stored():
    p = profile(card("ideal"), "1y")
    assert np.array_equal(p.mean, p.values)
    assert not p.std.any()


def test_gaussian_std_is_its_noise_level():
    p = profile(card("gaussian:0.2"), 0)
    assert p.std == pytest.approx(np.full(p.values.shape, 0.2), rel=0.03)
    assert p.mean == pytest.approx(p.values, abs=0.01)


def test_a_pair_adds_the_noise_of_its_idle_device():
    # g- sits at 0, where the clipped normal has the variance s^2 (1/2 - 1/(2 pi)).
    p = profile(card("pcm-nandakumar2019").without("read"), "0s")
    at_half = 0.26348 + 1.9650 / 2 - 1.1731 / 4
    idle = 0.26348 * math.sqrt(0.5 - 0.5 / math.pi)
    expected = math.hypot(at_half, idle) / 25
    assert p.std_at(np.array([0.5, -0.5])) == pytest.approx([expected, expected], rel=0.02)


def test_the_mean_falls_with_power_law_drift():
    at = np.array([1.0])
    start, year = (profile(card("pcm-nandakumar2019"), t).mean_at(at)[0] for t in ("0s", "1y"))
    assert start == pytest.approx(1.0, abs=0.01)
    # nu of the largest conductances is about 0.049.
    assert year == pytest.approx((parse_time("1y") / 20 + 1) ** -0.049, rel=0.02)


def test_a_profile_is_stable_and_shared():
    assert profile(card("rram-milo2021"), "1h") is profile(card("rram-milo2021"), 3600)
    with pytest.raises(ValueError, match="read-only"):
        profile(card("rram-milo2021"), "1h").std[0] = 1.0


@pytest.mark.parametrize("time", [0.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("name", DeviceCard.names())
def test_a_profile_matches_a_sample_of_another_chip_at_both_signs(name, time):
    stored = (1.0, -1.0, 0.7, 0.2, 0.0, -0.4)
    weights = torch.tensor(stored, dtype=torch.float64).repeat(60_000, 1)
    variance = torch.empty_like(weights)
    read = CardNoiseModel(card(name), seed=77).read_weights(weights, time, variance_out=variance)
    noise = torch.randn(read.shape, generator=torch.Generator().manual_seed(1))
    std, mean = torch.std_mean(read + variance.sqrt() * noise, dim=0)
    p = profile(card(name), time)
    at = np.array(stored)
    # Five standard errors of the profile's own sample of 16,384.
    assert p.mean_at(at) == pytest.approx(mean.numpy(), abs=0.045 * float(std.max()) + 1e-6)
    assert p.std_at(at) == pytest.approx(std.numpy(), rel=0.04, abs=1e-6)


def test_a_profile_is_of_the_nominal_chip():
    nominal = profile(card("rram-milo2021"), "1h")
    assert np.array_equal(
        profile(card("rram-milo2021").with_(die_to_die=0.3), "1h").std, nominal.std
    )
    stuck = profile(card("rram-milo2021").with_(stuck_off=0.01), "1h")
    assert (stuck.std_at(np.array([1.0])) > 1.2 * nominal.std_at(np.array([1.0]))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_and_arrays_interpolate_alike(dtype):
    p = profile(card("pcm-hermes-1"), "1d")
    v = np.linspace(-1.2, 1.2, 77).reshape(7, 11)
    tensor = torch.from_numpy(v).to(dtype).requires_grad_()
    for by_array, by_tensor in ((p.std_at(v), p.std_at(tensor)), (p.mean_at(v), p.mean_at(tensor))):
        assert by_tensor.dtype == dtype
        assert not by_tensor.requires_grad
        assert by_tensor.numpy() == pytest.approx(by_array, abs=1e-6)
    assert p.std_at(p.values) == pytest.approx(p.std)
    assert p.std_at(torch.tensor([math.nan, 0.5], dtype=dtype)).isnan().tolist() == [True, False]


FRACTIONS = (0.0, 0.1, 0.5, 1.0)


@pytest.mark.parametrize("time", [0.0, 3600.0, 86_400.0, 3e7])
@pytest.mark.parametrize("name", DeviceCard.names())
def test_moments_match_a_sample_of_devices(name, time):
    device = card(name).with_(stuck_off=0.01, stuck_on=0.02)
    mean, std = conductance_moments(device, FRACTIONS, time)
    model = CardNoiseModel(device, seed=5)
    low, high = device.conductance.g_min, device.conductance.g_max
    for i, fraction in enumerate(FRACTIONS):
        g = torch.full((100, 1000), low + fraction * (high - low), dtype=torch.float64)
        programmed = model.apply_programming_noise_to_conductance(g)
        drift = model.generate_drift_coefficients(g)
        read = model.apply_drift_noise_to_conductance(programmed, drift, time)
        # The sample's 1 % and 2 % of stuck devices have standard errors of 3 % and 2 %.
        assert std[i] == pytest.approx(float(read.std()), rel=0.03, abs=1e-9)
        assert mean[i] == pytest.approx(float(read.mean()), abs=0.02 * float(read.std()) + 1e-9)


@pytest.mark.parametrize("time", [0.0, 86_400.0, 3e7])
@pytest.mark.parametrize("name", DeviceCard.names())
def test_moments_of_weights_match_the_profile_at_both_signs(name, time):
    values = (-1.0, -0.5, 0.0, 0.2, 1.0)
    expected = profile(card(name), time).std_at(np.array(values))
    assert weight_std(card(name), values, time) == pytest.approx(expected, rel=0.03, abs=1e-9)
