"""Program-and-verify: pulses and errors against a simulation of the pulses themselves."""

import math

import pytest
import torch

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.programming import WriteTolerance
from analog_grasp.utils.errors import CardError

CARD = DeviceCard.load("rram-wan2022")


@pytest.fixture(scope="module")
def write():
    return WriteTolerance(CARD)


def test_a_tolerance_of_zero_is_an_error():
    data = CARD.model_dump(mode="json", exclude_defaults=True, exclude={"programming"})
    data["write"]["tolerance"] = "0 uS"
    with pytest.raises(CardError, match=r"write\.tolerance is '0 uS'.* greater than 0"):
        DeviceCard.from_data(data, "Device card")


def test_the_published_pair_is_met(write):
    stated = torch.tensor(1.0 / 40.0)
    assert float(write.pulses(stated)) == pytest.approx(8.52)
    std = torch.tensor([0.2, 1.0, 1.8, 3.0])
    torch.testing.assert_close(write.std(std, stated), std)


@pytest.mark.parametrize("tolerance", [0.025, 0.1, 0.3])
def test_pulses_and_errors_of_simulated_pulses(write, tolerance):
    """Draw pulses until each device is accepted, and count them."""
    generator = torch.Generator().manual_seed(0)
    devices = 100_000
    error, pulses = torch.full((devices,), math.inf), torch.zeros(devices)
    while (open_ := error.abs() > tolerance * 40).any():
        error[open_] = write.single_std * torch.randn(int(open_.sum()), generator=generator)
        pulses += open_
    asked = torch.tensor(tolerance)
    assert float(pulses.mean()) == pytest.approx(float(write.pulses(asked)), rel=0.02)
    # All of an error that is that of writing alone.
    alone = float(write._variance(torch.tensor(1.0).double()).sqrt())
    predicted = float(write.std(torch.tensor(alone), asked))
    assert float(error.std()) == pytest.approx(predicted, rel=0.02)


def test_a_looser_tolerance_needs_fewer_pulses_and_leaves_more_error(write):
    tolerances = torch.tensor([0.01, 0.025, 0.1, 0.4, math.inf])
    pulses, std = write.pulses(tolerances), write.std(torch.full((5,), 1.8), tolerances)
    assert (pulses.diff() < 0).all()
    assert (std.diff() > 0).all()
    assert float(pulses[-1]) == 1.0


def test_no_tolerance_removes_relaxation(write):
    left = write.std(torch.tensor(1.8), torch.tensor(1e-6))
    stated = 1.0**2 / 3
    assert float(left) == pytest.approx((1.8**2 - stated) ** 0.5, rel=2e-3)


@pytest.mark.parametrize("time", [0.0, 86400.0])
def test_the_noise_model_uses_them(time):
    targets = torch.full((200, 200), 0.5)
    stds = [
        float(CardNoiseModel(CARD, 3, tolerance=t).read_weights(targets, time).std())
        for t in (None, torch.tensor(0.025), torch.tensor(0.1), torch.tensor(math.inf))
    ]
    assert stds[1] == pytest.approx(stds[0], rel=1e-4)
    assert stds[0] < stds[2] < stds[3]
    # Tolerances of single weights.
    mixed = torch.where(torch.arange(200) < 100, 0.025, math.inf)
    read = CardNoiseModel(CARD, 3, tolerance=mixed).read_weights(targets, time)
    assert float(read[:, :100].std()) == pytest.approx(stds[1], rel=0.05)
    assert float(read[:, 100:].std()) == pytest.approx(stds[3], rel=0.05)


def test_cards_without_it_raise():
    with pytest.raises(ValueError, match=r"pcm-hermes-2 states no program-and-verify \(section"):
        CardNoiseModel(DeviceCard.load("pcm-hermes-2"), tolerance=torch.tensor(0.1))


def test_published_acceptance_ranges_leave_a_uniform_error():
    """CMO/HfOx programmed to 2 % and 0.2 %: measured errors close to the tolerance / sqrt(3)."""
    for name, accepted in (("rram-cmo-falcone-2pct", 0.02), ("rram-cmo-falcone", 0.002)):
        card = DeviceCard.load(name)
        g = torch.tensor([30.0, 60.0, 85.0])
        relative = card.programming.at(g, card.conductance.g_max) / g
        torch.testing.assert_close(
            relative, torch.full((3,), accepted / math.sqrt(3)), rtol=0.15, atol=0.0
        )
