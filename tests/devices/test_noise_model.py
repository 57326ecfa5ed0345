"""The noise model: times, seeds, order of calls, ranges, switches, stuck devices and dies."""

import copy
import pickle
import warnings

import pytest
import torch
from aihwkit.inference import GlobalDriftCompensation
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from analog_grasp.devices import noise_model as noise
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel, card_on_die

N = 400_000
NAMES = DeviceCard.names()
NOISY = [name for name in NAMES if name != "ideal"]
DAY = 86_400.0


@pytest.fixture(autouse=True)
def _forget_warnings():
    noise._warned.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Device card .* (is tabulated|has no drift data)")
        yield


def model(name: str, seed: int = 0, without: tuple[str, ...] = ()) -> CardNoiseModel:
    return CardNoiseModel(DeviceCard.load(name).without(*without), seed)


def weights(*shape: int) -> torch.Tensor:
    w = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return w / w.abs().max()


@pytest.mark.parametrize(
    ("name", "with_data", "message"),
    [
        ("rram-wan2022", 2 * DAY, "is tabulated up to 2d: from then on its standard deviation is"),
        ("rram-milo2021", 0.0, "has no drift data: it is read at all times as at 0s"),
    ],
)
def test_a_time_without_data_gives_one_note_per_card_whatever_the_age(name, with_data, message):
    card = DeviceCard.load(name).with_(adc_bits=6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CardNoiseModel(card, 0).apply_noise(weights(4, 4), with_data)
        CardNoiseModel(card.without("drift"), 0).apply_noise(weights(4, 4), 30 * DAY)
        assert not caught
        for seed, time in ((0, 30 * DAY), (1, 365 * DAY)):
            CardNoiseModel(card, seed).apply_noise(weights(4, 4), time)
            CardNoiseModel(card, seed).read_weights(weights(4, 4), time)
    (note,) = caught
    assert str(note.message).startswith(f'Device card "{name}" {message}')
    assert note.filename == __file__


def test_cards_of_no_real_device_give_no_note():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("ideal", "gaussian:0.1"):
            model(name).read_weights(weights(4, 4), 365 * DAY)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([n for n in NOISY if model(n).card.conductance.mapping != "signed"]),
    time=st.floats(0, 1e308),
    low=st.floats(0, 1),
)
def test_conductances_stay_in_range(name, time, low):
    m = model(name)
    g_min, g_max = m.card.conductance.g_min, m.card.conductance.g_max
    g = torch.linspace(g_min + low * (g_max - g_min), g_max, 500)
    g_prog = m.apply_programming_noise_to_conductance(g)
    assert (g_prog >= 0).all()
    read = m.apply_drift_noise_to_conductance(g_prog, m.generate_drift_coefficients(g), time)
    assert torch.isfinite(read).all()
    assert (read >= 0).all()
    if name.startswith("rram-cmo") and time > 0:
        # In single precision the limits themselves are rounded.
        assert (read >= torch.tensor(g_min)).all()
        assert (read <= torch.tensor(g_max)).all()


@pytest.mark.parametrize("name", NOISY)
def test_a_seed_gives_the_same_chip_for_any_order_of_times(name):
    w = weights(30, 40)
    times = [0.0, 3600.0, DAY, 30 * DAY]
    first, second = model(name, 11), model(name, 11)
    a_prog, a_state = first.apply_programming_noise(w)
    a = [first.apply_drift_noise(a_prog, a_state, t) for t in times]
    torch.manual_seed(99)
    b_prog, b_state = second.apply_programming_noise(w)
    torch.randn(7)
    b = [second.apply_drift_noise(b_prog, b_state, t) for t in reversed(times)][::-1]
    assert torch.equal(a_prog, b_prog)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    other, _ = model(name, 12).apply_programming_noise(w)
    assert not torch.equal(a_prog, other)
    assert torch.equal(a_prog, copy.deepcopy(first).apply_programming_noise(w)[0])
    assert torch.equal(a_prog, pickle.loads(pickle.dumps(first)).apply_programming_noise(w)[0])


def test_the_global_generator_is_not_used():
    before = torch.random.get_rng_state()
    model("pcm-hermes-2").apply_noise(weights(8, 8), 3600.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_devices_of_a_pair_are_independent():
    g = torch.full((100_000,), 10.0)
    m = model("pcm-nandakumar2019")
    plus, minus = (m.apply_programming_noise_to_conductance(g, device) for device in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack([plus, minus]))[0, 1])) < 0.01


@pytest.mark.parametrize("name", ["rram-wan2022", "rram-cmo-falcone-2pct"])
def test_a_device_follows_one_path(name):
    m = model(name, without=("read",))
    w = torch.full((200, 200), 0.5)
    w[0, 0], w[0, 1] = 1.0, -1.0
    programmed, state = m.apply_programming_noise(w)
    hour, later = (m.apply_drift_noise(programmed, state, t) for t in (3600.0, 3700.0))
    correlation = torch.corrcoef(torch.stack([(hour - w).flatten(), (later - w).flatten()]))[0, 1]
    assert float(correlation) > 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_is_kept(dtype):
    m = model("pcm-hermes-1")
    programmed, state = m.apply_programming_noise(weights(8, 8).to(dtype))
    assert programmed.dtype == m.apply_drift_noise(programmed, state, DAY).dtype == dtype


@pytest.mark.parametrize("name", NOISY)
def test_each_switch_has_its_effect_and_no_other(name):
    card, w = DeviceCard.load(name), weights(60, 60)
    full_prog, full_state = model(name).apply_programming_noise(w)
    full = model(name).apply_drift_noise(full_prog, full_state, DAY)
    for effect in ("programming", "drift", "read"):
        m = model(name, without=(effect,))
        programmed, state = m.apply_programming_noise(w)
        read = m.apply_drift_noise(programmed, state, DAY)
        assert torch.equal(read, full) == (getattr(card, effect) is None), effect
        if effect != "programming":
            assert torch.equal(programmed, full_prog)
    all_off = model(name, without=("programming", "drift", "read"))
    assert torch.equal(all_off.apply_noise(w, DAY), w)
    converters_off = model(name, without=("converters",))
    assert torch.equal(converters_off.apply_noise(w, DAY), full)


@pytest.mark.parametrize("config", [InferenceRPUConfig, TorchInferenceRPUConfig])
def test_aihwkit_tiles_program_and_drift_with_it(config):
    from aihwkit.nn import AnalogLinear

    rpu = config(drift_compensation=GlobalDriftCompensation())
    layer = AnalogLinear(12, 6, bias=False, rpu_config=rpu).eval()
    tile = next(iter(layer.analog_tiles()))
    target = tile.tile.get_weights().clone()
    m = model("pcm-nandakumar2019", 5)
    tile.program_weights(noise_model=m)
    expected, state = m.apply_programming_noise(target)
    torch.testing.assert_close(tile.tile.get_weights().cpu(), expected)
    tile.drift_weights(DAY)
    torch.testing.assert_close(
        tile.tile.get_weights().cpu(), m.apply_drift_noise(expected, state, DAY)
    )


def test_a_negative_time_is_an_error():
    m = model("pcm-hermes-2")
    w, state = m.apply_programming_noise(weights(3, 3))
    with pytest.raises(ValueError, match="is negative"):
        m.apply_drift_noise(w, state, -1.0)


def test_a_table_is_extrapolated_in_ln_t_if_the_card_states_it():
    wan, day = DeviceCard.load("rram-wan2022"), 86_400.0
    drift = wan.drift.model_copy(update={"beyond": "extrapolate"})
    card = wan.model_copy(update={"drift": drift})
    targets = torch.full((200, 500), 20.0)

    def std(time):
        model = CardNoiseModel(card, seed=1)
        programmed = model.apply_programming_noise_to_conductance(targets)
        drift = model.generate_drift_coefficients(targets)
        read = model.apply_drift_noise_to_conductance(programmed, drift, time)
        return float((read - targets).std())

    first, second, third = std(day), std(2 * day), std(4 * day)
    assert third - second == pytest.approx(second - first, abs=0.01 * second)
    weights = torch.linspace(-1, 1, 512).view(2, 256)
    model = CardNoiseModel(card, seed=1)
    torch.testing.assert_close(
        model.read_weights(weights, 365 * day),
        model.apply_noise(weights, 365 * day),
        atol=1e-4,
        rtol=1e-4,
    )


def test_extrapolation_requires_two_rows():
    drift = DeviceCard.load("rram-wan2022").drift
    with pytest.raises(ValueError, match="requires a table of two rows"):
        type(drift)(model="tabulated", table=drift.table[:1], beyond="extrapolate")


@pytest.mark.parametrize("name", ["pcm-nandakumar2019", "rram-cmo-falcone", "gaussian"])
def test_stuck_devices_are_the_stated_fraction_for_all_times(name):
    off, on = 0.05, 0.02
    card = DeviceCard.load(name).with_(stuck_off=off, stuck_on=on)
    g_min, g_max = card.conductance.g_min, card.conductance.g_max
    m = CardNoiseModel(card, seed=4)
    target = torch.full((300, 400), g_min + 0.37 * (g_max - g_min))
    programmed = m.apply_programming_noise_to_conductance(target)
    states = m.generate_drift_coefficients(target)
    now, later = (
        m.apply_drift_noise_to_conductance(programmed, states, time) for time in (0.0, 30 * DAY)
    )
    healthy = CardNoiseModel(DeviceCard.load(name), seed=4)
    for end, fraction in ((g_min, off), (g_max, on)):
        stuck = programmed == end
        assert float(stuck.float().mean()) == pytest.approx(fraction, rel=0.05)
        assert (now[stuck] == end).all()
        assert (later[stuck] == end).all()
    at_end = (programmed == g_min) | (programmed == g_max)
    same = healthy.apply_programming_noise_to_conductance(target)
    assert torch.equal(programmed[~at_end], same[~at_end])
    # The other device of a cell and another chip have stuck devices of their own.
    assert not torch.equal(m.apply_programming_noise_to_conductance(target, 1) == g_min, at_end)


def test_weights_are_zero_if_all_devices_are_stuck():
    w = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) - 0.5
    card = DeviceCard.load("pcm-hermes-2").with_(stuck_on=1.0)
    assert not CardNoiseModel(card).read_weights(w, DAY).any()


def test_a_chip_has_one_die():
    card = DeviceCard.load("pcm-nandakumar2019").with_(die_to_die=0.1)
    tiles = [CardNoiseModel(card, seed=seed, chip=8).card for seed in (1, 2)]
    assert tiles[0] == tiles[1] == card_on_die(card, 8) != card_on_die(card, 9)
    assert CardNoiseModel(card, seed=3).card == card_on_die(card, 3)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ideal"])
def test_factors_of_dies_have_the_stated_std(name):
    card = DeviceCard.load(name).with_(die_to_die=0.1)
    g = torch.tensor([0.5 * card.conductance.g_max])
    g_max = card.conductance.g_max
    own = float(card.programming.at(g, g_max))
    factors = torch.tensor(
        [float(card_on_die(card, chip).programming.at(g, g_max)) / own for chip in range(1000)]
    )
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(factors.std()) == pytest.approx(0.1, rel=0.1)


def test_means_and_stds_have_separate_factors():
    card = DeviceCard.load("pcm-nandakumar2019")
    variation = card.with_(die_to_die=0.2).die_to_die.model_copy(update={"std": 0.0})
    die = card_on_die(card.model_copy(update={"die_to_die": variation}), 5)
    assert die.programming == card.programming
    assert die.read == card.read
    g = torch.linspace(0, 25, 50)
    factor = die.drift.nu_mean.at(g, 25.0) / card.drift.nu_mean.at(g, 25.0)
    assert float(factor.std()) < 1e-6
    assert float(factor[0]) != pytest.approx(1.0, abs=0.01)


def test_every_section_varies_with_the_die():
    for name, section in (
        ("rram-wan2022", "short_term"),
        ("rram-cmo-falcone", "read"),
        ("rram-cmo-falcone", "drift"),
        ("sonos-agrawal2022", "drift"),
        ("pcm-hermes-1", "read"),
    ):
        card = DeviceCard.load(name).with_(die_to_die=0.2)
        assert getattr(card_on_die(card, 1), section) != getattr(card, section)
