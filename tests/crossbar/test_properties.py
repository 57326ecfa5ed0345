"""Properties of every card, shape, time and setting."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.card import DeviceCard

CARDS = st.sampled_from(DeviceCard.names())
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 40))
TIMES = st.one_of(st.just(0.0), st.floats(1e-3, 1e11))
COMPENSATIONS = st.sampled_from(["global", "per-column", "exact", "none"])
CONVERTERS = st.fixed_dictionaries(
    {},
    optional={
        "dac_bits": st.sampled_from([0, 2, 4, 8]),
        "adc_bits": st.sampled_from([0, 2, 4, 8]),
        "output_noise": st.sampled_from([0.0, 0.04, 1.0]),
        "tile_size": st.integers(1, 50),
        "die_to_die": st.sampled_from([0.0, 0.1]),
        "stuck_off": st.sampled_from([0.0, 0.1]),
        "stuck_on": st.sampled_from([0.0, 0.1]),
    },
)
SEEDS = st.integers(0, 2**32)


@pytest.fixture(autouse=True)
def quietly():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Device card", UserWarning)
        yield


def on_chip(shape, card, compensation="global", seed=0, time=0.0) -> CrossbarLinear:
    torch.manual_seed(7)
    linear = nn.Linear(*shape)
    if shape[1] > 2:
        linear.weight.data[1] = 0
    layer = CrossbarLinear(linear, card, "layer", compensation)
    with torch.no_grad():
        layer.program(seed)
        layer.drift_to(time)
    return layer


@torch.no_grad()
def read(layer: CrossbarLinear) -> torch.Tensor:
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(2))
    x[0] = 0
    torch.manual_seed(3)
    return layer(x)


@given(CARDS, SIZES, TIMES, COMPENSATIONS, CONVERTERS, SEEDS)
@settings(max_examples=80, deadline=None)
def test_outputs_are_finite_and_follow_the_seed(name, shape, time, compensation, changes, seed):
    card = DeviceCard.load(name).with_(**changes)
    layer = on_chip(shape, card, compensation, seed, time)
    outputs = read(layer)
    assert outputs.isfinite().all()
    assert torch.isfinite(torch.tensor(layer.weight_error()))
    again = on_chip(shape, card, compensation, seed, 12.5)
    with torch.no_grad():
        again.drift_to(time)
    assert torch.equal(read(again), outputs)


@given(CARDS, SIZES, TIMES, SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_chip_without_effects_is_exact(name, shape, time, seed):
    card = DeviceCard.load(name).without("programming", "drift", "read", "converters")
    layer = on_chip(shape, card, "global", seed, time)
    torch.manual_seed(7)
    linear = nn.Linear(*shape)
    if shape[1] > 2:
        linear.weight.data[1] = 0
    x = torch.randn(4, shape[0])
    torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=1e-4)


@given(CARDS, TIMES, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_a_row_is_read_alike_in_any_batch(name, time, rows):
    """Without noise from read to read, a vector's output does not depend on the batch."""
    card = DeviceCard.load(name).with_(output_noise=0.0)
    card = card.model_copy(update={"short_term": None})
    layer = on_chip((30, 20), card, "global", 1, time)
    x = torch.randn(6, 30, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[:rows], layer(x[:rows]), atol=1e-5, rtol=1e-4)
