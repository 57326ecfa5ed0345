"""Cards that restate an aihwkit model agree with aihwkit's own class in distribution."""

import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel, ReRamCMONoiseModel, ReRamWan2022NoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from scipy.stats import ks_2samp

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.utils.seed import derive_seed

DEVICES = 100_000
LEVELS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
DAY = 86_400.0
TIMES = (0.0, 20.0, 3600.0, DAY, 365 * DAY)
# All samples are seeded, so that the p-values are fixed. At this level a standard deviation that is
# 5 % off is detected; see test_a_wrong_scale_is_detected.
LEAST_P = 1e-4

PCM = {
    "pcm-nandakumar2019": PCMLikeNoiseModel,
    "pcm-hermes-1": lambda: HermesNoiseModel(num_devices=1),
    "pcm-hermes-2": lambda: HermesNoiseModel(num_devices=2),
}
CMO = {
    "rram-cmo-falcone": lambda: ReRamCMONoiseModel(acceptance_range=0.2),
    "rram-cmo-falcone-2pct": lambda: ReRamCMONoiseModel(acceptance_range=2),
}


def wan() -> ReRamWan2022NoiseModel:
    return ReRamWan2022NoiseModel(g_max=40.0)


MODELS = {
    **{name: (make, TIMES) for name, make in (PCM | CMO).items()},
    # aihwkit has this device at three times only.
    "rram-wan2022": (wan, (1.0, DAY, 2 * DAY)),
}


def p_value(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(ks_2samp(a.flatten().numpy(), b.flatten().numpy(), method="asymp").pvalue)


def both(name: str, u: float = 0.0):
    """Return our model and aihwkit's, seeded by name and level."""
    torch.manual_seed(derive_seed(name, u))
    return CardNoiseModel(DeviceCard.load(name), seed=derive_seed(u, name)), MODELS[name][0]()


def targets(model: CardNoiseModel, u: float) -> torch.Tensor:
    return torch.full((DEVICES,), max(u * model.card.conductance.g_max, model.g_converter.g_min))


def moments(a: torch.Tensor) -> tuple[float, float, float]:
    """Return mean and variance of a sample, and the standard error of the variance."""
    centred = (a - a.mean()).square()
    return float(a.mean()), float(centred.mean()), float(centred.var() / a.numel()) ** 0.5


def assert_alike(a: torch.Tensor, b: torch.Tensor, when: object = "") -> None:
    """Assert that two samples agree in distribution, and in moments to five standard errors."""
    a, b = a.double().flatten(), b.double().flatten()
    (a_mean, a_var, a_error), (b_mean, b_var, b_error) = moments(a), moments(b)
    assert abs(a_mean - b_mean) <= 5 * ((a_var + b_var) / a.numel()) ** 0.5, when
    assert abs(a_var - b_var) <= 5 * (a_error**2 + b_error**2) ** 0.5, when
    assert p_value(a, b) > LEAST_P, when


def their_weights(model, weights: torch.Tensor, time: float) -> torch.Tensor:
    """Return aihwkit's `apply_noise`, with a reading at time 0 too."""
    targets, params = model.g_converter.convert_to_conductances(weights)
    read = [
        model.apply_drift_noise_to_conductance(
            model.apply_programming_noise_to_conductance(g),
            model.generate_drift_coefficients(g),
            time,
        )
        for g in targets
    ]
    return model.g_converter.convert_back_to_weights(read, params)


@pytest.mark.parametrize("u", LEVELS)
@pytest.mark.parametrize("name", MODELS)
def test_programmed_conductances(name, u):
    ours, theirs = both(name, u)
    g = targets(ours, u)
    a = ours.apply_programming_noise_to_conductance(g)
    assert_alike(a, theirs.apply_programming_noise_to_conductance(g))


@pytest.mark.parametrize("u", LEVELS)
@pytest.mark.parametrize("name", PCM)
def test_drift_exponents(name, u):
    ours, theirs = both(name, u)
    g = targets(ours, u)
    assert_alike(ours.generate_drift_coefficients(g), theirs.generate_drift_coefficients(g))


@pytest.mark.parametrize("u", LEVELS)
@pytest.mark.parametrize("name", MODELS)
def test_conductances_read_back(name, u):
    ours, theirs = both(name, u)
    g = targets(ours, u)
    a_prog = ours.apply_programming_noise_to_conductance(g)
    a_drift = ours.generate_drift_coefficients(g)
    b_prog = theirs.apply_programming_noise_to_conductance(g)
    b_drift = theirs.generate_drift_coefficients(g)
    for time in MODELS[name][1]:
        a = ours.apply_drift_noise_to_conductance(a_prog, a_drift, time)
        b = theirs.apply_drift_noise_to_conductance(b_prog, b_drift, time)
        assert_alike(a, b, time)


@pytest.mark.parametrize("name", MODELS)
def test_weights_read_back(name):
    """Both ways of reading: in one pass, and in aihwkit's two steps."""
    ours, theirs = both(name)
    weights = torch.rand(250, 400, generator=torch.Generator().manual_seed(1)) * 2 - 1
    weights[0, 0], weights[0, 1] = 1.0, -1.0
    for time in MODELS[name][1]:
        expected = their_weights(theirs, weights, time) - weights
        assert_alike(ours.read_weights(weights, time) - weights, expected, time)
        assert_alike(ours.apply_noise(weights, time) - weights, expected, time)


def test_aihwkit_tiles_scale_wan2022_by_the_noisy_maximum():
    """`apply_drift_noise` rescales by the maximum of the noisy weights, not of the targets."""
    ours, theirs = both("rram-wan2022")
    weights = torch.linspace(-1, 1, 90_000).view(300, 300)
    noisy, targets = theirs.apply_programming_noise(weights)
    through_tile = theirs.apply_drift_noise(noisy, targets, DAY)
    read = ours.read_weights(weights, DAY)
    scale = noisy.abs().max() / weights.abs().max()
    assert 1.03 < scale < 1.15
    assert_alike(read, through_tile / scale)
    assert p_value(read, through_tile) < LEAST_P


@pytest.mark.parametrize(
    ("name", "scale", "factor", "quantity"),
    [
        ("pcm-nandakumar2019", "prog_noise_scale", 1.05, "apply_programming_noise_to_conductance"),
        ("pcm-hermes-2", "drift_scale", 1.01, "generate_drift_coefficients"),
    ],
)
def test_a_wrong_scale_is_detected(name, scale, factor, quantity):
    ours, theirs = both(name)
    setattr(theirs, scale, factor)
    g = targets(ours, 0.5)
    assert p_value(getattr(ours, quantity)(g), getattr(theirs, quantity)(g)) < LEAST_P
