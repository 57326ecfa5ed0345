"""Moments of every card against the published formulas, written out here without the cards.

Conductances in µS, times in seconds, u = g / g_max; each moment to 1 %.
"""

import math

import numpy as np
import pytest
import torch

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel

N = 400_000
DAY = 86_400.0
LEVELS = (0.3, 0.5, 0.8, 1.0)


def model(name: str, *without: str) -> CardNoiseModel:
    return CardNoiseModel(DeviceCard.load(name).without(*without), seed=5)


def devices(g: float) -> torch.Tensor:
    return torch.full((1000, N // 1000), g, dtype=torch.float64)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def folded(mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation of |N(mean, std^2)|."""
    x = mean / std
    folded_mean = std * math.sqrt(2 / math.pi) * math.exp(-x * x / 2) + mean * math.erf(
        x / math.sqrt(2)
    )
    return folded_mean, math.sqrt(mean**2 + std**2 - folded_mean**2)


def wan(*coefficients: float):
    return lambda g: np.polyval(coefficients[::-1], g / 40.0)


WAN = {
    1.0: wan(0.348, 16.030, -43.853, 45.393, -16.815),
    DAY: wan(0.701, 22.086, -50.773, 47.095, -16.458),
    2 * DAY: wan(0.782, 20.274, -43.507, 37.062, -11.934),
}
# In nA, of a current in nA at 0.1 V: A and B of the spread, and the mean shift, by day.
SONOS_SPREAD = {
    0: (19.88665, 176.3115),
    1: (25.59102, 186.85544),
    2: (28.72753, 193.56834),
    3: (31.04318, 198.90332),
    4: (33.76214, 204.77023),
    5: (34.57909, 207.34309),
}
SONOS_SHIFT = {
    1: "6.83650e-01 6.51250e-03 -4.03163e-04 3.37944e-06 -1.87435e-08 5.88902e-11 -1.07685e-13 "
    "1.17751e-16 -7.60016e-20 2.67255e-23 -3.94954e-27",
    2: "6.60925e-01 8.60627e-03 -1.72936e-04 7.44096e-07 -5.94866e-09 2.36734e-11 -4.83740e-14 "
    "5.56072e-17 -3.65397e-20 1.28405e-23 -1.87450e-27",
    3: "1.15821e00 1.96116e-02 -4.70807e-04 3.67510e-06 -2.08786e-08 6.59752e-11 -1.19499e-13 "
    "1.28435e-16 -8.11574e-20 2.78802e-23 -4.02057e-27",
    4: "8.72216e-01 1.70926e-02 -2.23370e-04 1.57526e-06 -1.32779e-08 5.08256e-11 -1.01251e-13 "
    "1.14633e-16 -7.46124e-20 2.60559e-23 -3.78724e-27",
    5: "1.15294e00 1.03149e-02 -6.05199e-05 1.76086e-08 -6.46690e-09 3.39044e-11 -7.53872e-14 "
    "8.98185e-17 -6.00346e-20 2.12615e-23 -3.11099e-27",
}


def sonos_spread(current: float, a: float, b: float) -> float:
    return a * (1 - math.exp(-current / b))


PROGRAMMING = {
    "pcm-nandakumar2019": lambda g: 0.26348 + 1.9650 * g / 25 - 1.1731 * (g / 25) ** 2,
    "pcm-hermes-1": lambda g: np.polyval(
        [0.68841818, -2.16310839, 2.32443916, 0.15781817], g / 10.35
    ),
    "pcm-hermes-2": lambda g: np.polyval(
        [4.68961419, -8.48101252, 4.71806468, 0.16603222], g / 20.7
    ),
    "pcm-joshi2020": lambda g: 0.28638599 + 0.07585724 * g - 0.00178767 * g**2,
    "rram-wan2022": WAN[1.0],
    "rram-milo2021": lambda g: max(4.782321 - 0.009107 * g, 0),
    "rram-cmo-falcone": lambda g: 0.00106879 * g + 0.00081107,
    "rram-cmo-falcone-2pct": lambda g: 0.01129027418 * g + 0.0112185391,
    "sonos-agrawal2022": lambda g: sonos_spread(100 * g, *SONOS_SPREAD[0]) / 100,
    "gaussian": lambda g: 1.25,
    "ideal": lambda g: 0.0,
}


def test_every_card_has_its_formula_here():
    assert sorted(PROGRAMMING) == DeviceCard.names()


@pytest.mark.parametrize("u", LEVELS)
@pytest.mark.parametrize("name", PROGRAMMING)
def test_programming(name, u):
    m = model(name)
    g = m.card.conductance.g_max * u
    reached = m.apply_programming_noise_to_conductance(devices(g))
    assert float(reached.mean()) == pytest.approx(g, rel=0.01)
    assert float(reached.std()) == pytest.approx(PROGRAMMING[name](g), rel=0.01)


# Mean and standard deviation of nu, of u.
EXPONENTS = {
    "pcm-nandakumar2019": (
        lambda u: clip(-0.0155 * math.log(u) + 0.0244, 0.049, 0.1),
        lambda u: clip(-0.0125 * math.log(u) - 0.0059, 0.008, 0.045),
    ),
    "pcm-hermes-1": (
        lambda u: (
            clip(-0.0182 - 0.0387 * math.log(u), 0.072, 0.13)
            if u < 0.0945
            else 0.0736 - 0.0126 * u - 0.0436 * u**2
        ),
        lambda u: (
            clip(-0.0023 - 0.0120 * math.log(u), 0.0124, 0.04)
            if u < 0.3039
            else 0.0104 + 0.0116 * u - 0.0165 * u**2
        ),
    ),
    "pcm-hermes-2": (
        lambda u: (
            clip(-0.0182 - 0.0387 * math.log(u), 0.072, 0.13)
            if u < 0.0945
            else 0.0736 - 0.0126 * u - 0.0436 * u**2
        ),
        lambda u: (
            clip(-0.0057 - 0.0117 * math.log(u), 0.0091, 0.04)
            if u < 0.3055
            else 0.0073 + 0.0093 * u - 0.0118 * u**2
        ),
    ),
}


@pytest.mark.parametrize("u", [0.02, 0.05, 0.1, 0.2, *LEVELS])
@pytest.mark.parametrize("name", EXPONENTS)
def test_drift_exponents(name, u):
    m = model(name)
    nu = m.generate_drift_coefficients(devices(m.card.conductance.g_max * u))
    mean, std = folded(*(formula(u) for formula in EXPONENTS[name]))
    assert float(nu.mean()) == pytest.approx(mean, rel=0.01)
    assert float(nu.std()) == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize("time", [20.0, 3600.0, DAY, 365 * DAY])
@pytest.mark.parametrize(
    ("name", "t0"), [("pcm-nandakumar2019", 20), ("pcm-hermes-1", 200), ("pcm-hermes-2", 300)]
)
def test_drift(name, t0, time):
    nu = torch.tensor([0.0, 0.05, 0.1])
    read = model(name, "programming", "read").apply_drift_noise_to_conductance(
        torch.full((3,), 8.0), nu, time
    )
    expected = 8.0 * ((time + t0) / t0) ** -nu.double()
    torch.testing.assert_close(read.double(), expected, rtol=1e-5, atol=0)


# Q of u; age at t = 0 and duration of a read, s.
READ = {
    "pcm-nandakumar2019": (lambda u: min(0.0088 / u**0.65, 0.2), 20, 250e-9),
    "pcm-hermes-1": (
        lambda u: (
            clip(0.0038 - 0.0078 * math.log(u), 0.0179, 0.04)
            if u < 0.1591
            else 0.0088 + 0.0768 * u - 0.1352 * u**2 + 0.0664 * u**3
        ),
        200,
        512e-9,
    ),
    "pcm-hermes-2": (
        lambda u: (
            clip(-0.0069 - 0.0117 * math.log(u), 0.015, 0.04)
            if u < 0.16
            else 0.0123 + 0.0211 * u - 0.0280 * u**2 + 0.0069 * u**3
        ),
        300,
        512e-9,
    ),
}


@pytest.mark.parametrize("time", [0.0, 3600.0, 365 * DAY])
@pytest.mark.parametrize("u", [0.05, 0.12, 0.5, 1.0])
@pytest.mark.parametrize("name", READ)
def test_accumulated_read_noise(name, u, time):
    m = model(name, "programming", "drift")
    g = m.card.conductance.g_max * u
    read = m.apply_drift_noise_to_conductance(devices(g), None, time)
    q, t0, t_read = READ[name]
    expected = g * q(u) * math.sqrt(math.log((time + t0 + t_read) / (2 * t_read)))
    assert float(read.mean()) == pytest.approx(g, rel=0.01)
    assert float(read.std()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("time", [20.0, 3600.0, DAY])
@pytest.mark.parametrize("name", ["rram-cmo-falcone", "rram-cmo-falcone-2pct"])
def test_relaxation_and_its_read_noise(name, time):
    g = devices(50.0)
    m = model(name, "programming")
    read = m.apply_drift_noise_to_conductance(g, m.generate_drift_coefficients(g), time)
    shift = -0.08900206 * math.log(time)
    relaxed = 0.04201137 * math.log(time) + 0.41183342
    noise = 0.0277316483 * math.log10(50 + shift) * math.sqrt(math.log((time + 1e-6) / (2 * 1e-6)))
    assert float(read.mean()) - 50 == pytest.approx(shift, rel=0.01)
    assert float(read.std()) == pytest.approx(math.hypot(relaxed, noise), rel=0.01)


def tabulated(name: str, g: float, time: float) -> torch.Tensor:
    m, targets = model(name), devices(g)
    programmed, state = (
        m.apply_programming_noise_to_conductance(targets),
        m.generate_drift_coefficients(targets),
    )
    return m.apply_drift_noise_to_conductance(programmed, state, time)


@pytest.mark.parametrize("u", [0.5, 1.0])
@pytest.mark.parametrize("time", WAN)
def test_wan_relaxation(time, u):
    read = tabulated("rram-wan2022", 40 * u, time)
    assert float(read.mean()) == pytest.approx(40 * u, rel=0.01)
    assert float(read.std()) == pytest.approx(WAN[time](40 * u), rel=0.01)


def sonos(current: float, day: int) -> tuple[float, float]:
    """Mean and spread of the current, nA, some days after programming to `current`."""
    terms = [float(c) for c in SONOS_SHIFT[day].split()]
    mean = current + sum(c * current**power for power, c in enumerate(terms))
    return mean, sonos_spread(mean, *SONOS_SPREAD[day])


@pytest.mark.parametrize("current", [150.0, 400.0, 800.0, 1200.0, 1600.0])
@pytest.mark.parametrize("day", SONOS_SHIFT)
def test_sonos_by_day(day, current):
    read = 100 * tabulated("sonos-agrawal2022", current / 100, day * DAY)
    mean, std = sonos(current, day)
    assert float(read.mean()) == pytest.approx(mean, rel=0.01)
    # The shift itself, beyond the error of the sample mean.
    assert float(read.mean()) - current == pytest.approx(
        mean - current, rel=0.01, abs=4 * std / math.sqrt(N)
    )
    assert float(read.std()) == pytest.approx(std, rel=0.01)


def test_sonos_between_days_is_linear_in_log_time():
    mean, std = zip(*(sonos(800.0, day) for day in (2, 3)), strict=True)
    read = 100 * tabulated("sonos-agrawal2022", 8.0, math.sqrt(6) * DAY)
    assert float(read.mean()) == pytest.approx(sum(mean) / 2, rel=0.001)
    assert float(read.std()) == pytest.approx(sum(std) / 2, rel=0.01)


@pytest.mark.filterwarnings("ignore:device card .* is tabulated")
@pytest.mark.parametrize("name", ["rram-wan2022", "sonos-agrawal2022"])
def test_the_last_of_a_table_is_held(name):
    last = DeviceCard.load(name).drift.table[-1].time
    assert torch.equal(tabulated(name, 8.0, last), tabulated(name, 8.0, 10 * last))
    assert not torch.equal(tabulated(name, 8.0, last), tabulated(name, 8.0, 0.9 * last))


def test_short_term_noise_of_sonos_goes_by_the_conductance_read():
    m = model("sonos-agrawal2022", "programming", "drift")
    w = torch.tensor([[1.0, 0.5, 0.1, 0.0, -0.25]])
    variance = torch.empty_like(w)
    m.read_weights(w, 0.0, variance_out=variance)
    expected = [(sonos_spread(1600 * abs(v), 12.58037, 215.36557) / 1600) ** 2 for v in w[0]]
    assert variance[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert m.constant_short_term_variance(w) is None


def test_short_term_noise_of_wan_is_a_hundredth_of_the_largest_weight():
    m, w = model("rram-wan2022"), 0.3 * torch.linspace(-1, 1, 20).view(4, 5)
    variance = torch.empty_like(w)
    m.read_weights(w, DAY, variance_out=variance)
    assert m.constant_short_term_variance(w) == pytest.approx((0.01 * 0.3) ** 2, rel=1e-5)
    torch.testing.assert_close(variance, torch.full_like(w, (0.01 * 0.3) ** 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", DeviceCard.names())
def test_other_cards_have_no_short_term_noise_and_read_switches_it_off(name):
    w = torch.linspace(-1, 1, 20).view(4, 5)
    off = model(name, "read")
    variance = torch.ones_like(w)
    off.read_weights(w, DAY, variance_out=variance)
    assert not variance.any()
    assert off.constant_short_term_variance(w) == 0.0
    has_noise = model(name).constant_short_term_variance(w) != 0.0
    assert has_noise == (name in ("rram-wan2022", "sonos-agrawal2022"))
