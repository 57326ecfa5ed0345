"""The compiled noise kernel compared with the two steps in torch."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel

NAMES = DeviceCard.names()
DAY = 86_400.0
TIMES = (0.0, 0.5, 20.0, 3600.0, DAY, 1e5, 4 * DAY, 365 * DAY, 1e300)
# Of g_max: rounding of single precision.
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Device card .* (is tabulated|has no drift data)")
        yield


def weights(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
    w = torch.rand(rows, columns, generator=torch.Generator().manual_seed(7)) * 2 - 1
    w[:, ::7] = 0.0
    return w * scale


def in_steps(model: CardNoiseModel, w: torch.Tensor, time: float) -> tuple[torch.Tensor, ...]:
    """Return weights and their variance by the two steps in torch."""
    variance = torch.empty_like(w)
    return model._read_in_steps(w, time, torch.empty_like(w), variance), variance


def fused(model: CardNoiseModel, w: torch.Tensor, time: float) -> tuple[torch.Tensor, ...]:
    variance = torch.empty_like(w)
    return model.read_weights(w, time, variance_out=variance), variance


def assert_agree(card: DeviceCard, w: torch.Tensor, time: float) -> None:
    model = CardNoiseModel(card, seed=3)
    (read, variance), (expected, expected_variance) = (
        fused(model, w, time),
        in_steps(model, w, time),
    )
    scale = float(w.abs().max()) * 2
    torch.testing.assert_close(read, expected, rtol=0, atol=ROUNDING * scale)
    torch.testing.assert_close(variance, expected_variance, rtol=1e-3, atol=1e-9 * scale**2)


@pytest.mark.parametrize("effects", [(), ("programming",), ("drift",), ("read",)])
@pytest.mark.parametrize("name", NAMES)
def test_every_card_at_every_time(name, effects):
    card = DeviceCard.load(name).without(*effects)
    for time in TIMES:
        assert_agree(card, weights(33, 129, 0.3), time)


@pytest.mark.parametrize("mapping", ["pair", "single", "signed"])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("ideal", "gaussian")])
def test_every_mapping_with_faults(name, mapping):
    card = DeviceCard.load(name).with_(die_to_die=0.1, stuck_off=0.02, stuck_on=0.01)
    g_min = 0.0 if mapping == "signed" else card.conductance.g_min
    section = card.conductance.model_copy(update={"mapping": mapping, "g_min": g_min})
    card = card.model_copy(update={"conductance": section})
    for time in (0.0, 3600.0, 30 * DAY):
        assert_agree(card, weights(20, 70), time)


CURVE = {
    "variable": "u",
    "unit": "uS",
    "pieces": [
        {"below": 0.2, "form": "power", "coefficients": [0.8, 0.5], "min": 0.1},
        {"below": 0.4, "form": "logarithm", "coefficients": [1.0, 0.2]},
        {"below": 0.5, "form": "reciprocal", "coefficients": [1.0, 3.0]},
        {"below": 0.6, "form": "points", "points": [[0.5, 0.2], [0.53, 0.4], [0.58, 0.1]]},
        {"below": 0.7, "form": "saturation", "coefficients": [0.9, 0.4], "max": 0.6},
        {"form": "polynomial", "coefficients": [0.3] * 9 + [-0.2, 0.1]},
    ],
}


def test_every_form_of_piece():
    card = DeviceCard.load("pcm-nandakumar2019")
    curve = type(card.programming).model_validate(CURVE)
    card = card.model_copy(update={"programming": curve, "short_term": curve})
    for time in (0.0, DAY):
        assert_agree(card, weights(64, 200), time)


@pytest.mark.parametrize("name", ["pcm-hermes-2", "rram-cmo-falcone", "sonos-agrawal2022"])
def test_bits_do_not_depend_on_threads_neighbours_or_buffers(name):
    model, w = CardNoiseModel(DeviceCard.load(name), 9), weights(300, 77)
    w[0, :2] = torch.tensor([1.0, -1.0])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = model.read_weights(w, DAY)
        torch.set_num_threads(3)
        pooled = model.read_weights(w, DAY)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, pooled)
    assert torch.equal(alone, model.read_weights(w.clone(), DAY, out=torch.empty_like(w)))
    in_place = w.clone()
    assert model.read_weights(in_place, DAY, out=in_place) is in_place
    assert torch.equal(alone, in_place)
    # Other rows do not matter while the largest weights, and so the scale, are the same.
    w[40:] *= 0.5
    assert torch.equal(model.read_weights(w, DAY)[:40], alone[:40])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_use_the_two_steps(dtype):
    model, w = CardNoiseModel(DeviceCard.load("pcm-hermes-2"), 2), weights(30, 40).to(dtype)
    read = model.read_weights(w, DAY)
    assert read.dtype == dtype
    expected = model.read_weights(w.float(), DAY)
    resolution = max(torch.finfo(dtype).eps, ROUNDING)
    torch.testing.assert_close(read.float(), expected, rtol=0, atol=2 * resolution)
    # A view of every other column does not fit the kernel either.
    w = weights(30, 40)
    torch.testing.assert_close(
        model.read_weights(w[:, ::2], DAY),
        model.read_weights(w[:, ::2].contiguous(), DAY),
        rtol=0,
        atol=ROUNDING,
    )


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(-(2**70), 2**70),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e6]),
    time=st.one_of(st.floats(0, 1e308), st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 1e11])),
    rows=st.integers(0, 20),
    columns=st.integers(1, 40),
    faults=st.floats(0, 0.5),
)
def test_weights_read_are_finite_and_determined_by_the_seed(
    name, seed, scale, time, rows, columns, faults
):
    card = DeviceCard.load(name).with_(stuck_off=faults, stuck_on=faults, die_to_die=faults)
    w = weights(rows + 1, columns, scale)
    read, variance = fused(CardNoiseModel(card, seed), w, time)
    assert torch.isfinite(read).all()
    assert torch.isfinite(variance).all()
    assert (variance >= 0).all()
    again, _ = fused(CardNoiseModel(card, seed), w, time)
    assert torch.equal(read, again)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_an_error(bad):
    with pytest.raises(ValueError, match="The weights contain NaN or infinity"):
        CardNoiseModel(DeviceCard.load("pcm-hermes-2")).read_weights(torch.tensor([[bad]]), 0.0)
