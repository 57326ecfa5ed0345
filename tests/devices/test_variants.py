"""Cards changed: converters, tile and range, chips that differ, cells that fail."""

import pytest
import torch

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel, card_on_die
from analog_grasp.utils.errors import CardError

DAY = 86_400.0
NAMES = DeviceCard.names()


def test_converters_tile_and_range():
    card = DeviceCard.load("pcm-hermes-2").with_(
        dac_bits=6, adc_bits=10, output_noise=0.1, tile_size=(128, 64), g_max="10 uS"
    )
    c = card.converters
    assert (c.dac_bits, c.adc_bits, c.output_noise, c.output_range) == (6, 10, 0.1, 12.0)
    assert (card.tile.rows, card.tile.columns) == (128, 64)
    assert card.conductance.g_max == 10.0
    assert DeviceCard.load("ideal").with_(tile_size=32).tile.columns == 32
    assert DeviceCard.load("ideal").with_(g_max=12.5).conductance.g_max == 12.5


def test_zero_bits_are_exact():
    converters = DeviceCard.load("pcm-hermes-2").with_(dac_bits=0, adc_bits=0).converters
    assert (converters.dac_bits, converters.adc_bits) == (None, None)


def test_a_card_without_converters_gets_those_of_the_others():
    ours = DeviceCard.load("ideal").with_(dac_bits=8, adc_bits=8, output_noise=0.04).converters
    assert ours == DeviceCard.load("pcm-hermes-2").converters


def test_nothing_changed_is_the_same_card():
    for name in NAMES:
        assert DeviceCard.load(name).with_() == DeviceCard.load(name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dac_bits": 40}, "converters.dac_bits is 40: it should be less than or equal to 16"),
        ({"output_noise": -1.0}, "converters.output_noise is -1.0: it should be greater"),
        ({"tile_size": 0}, "tile.rows is 0: it should be greater than or equal to 1"),
        ({"g_max": -5.0}, "conductance.g_max is out of range"),
        ({"g_max": "5 Ohm"}, 'conductance.g_max has the unknown unit "Ohm"'),
        ({"stuck_off": 1.5}, "stuck.off is 1.5: it should be less than or equal to 1"),
        ({"stuck_off": 0.6, "stuck_on": 0.6}, "stuck has off + on = 1.2: together"),
        ({"die_to_die": float("nan")}, "die_to_die.mean is nan: it should be"),
    ],
)
def test_what_is_refused_names_its_key(changes, words):
    with pytest.raises(CardError) as caught:
        DeviceCard.load("pcm-hermes-2").with_(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith('device card "pcm-hermes-2": ')


def test_an_unknown_change_is_refused():
    with pytest.raises(TypeError, match="Unknown change 'colour'"):
        DeviceCard.load("ideal").with_(colour="red")


def test_a_spread_beyond_reason_is_refused_after_a_change_of_range():
    with pytest.raises(
        CardError, match="programming gives a negative standard deviation at 100 uS"
    ):
        DeviceCard.load("pcm-joshi2020").with_(g_max=100.0)


def test_no_shipped_card_has_faults():
    for name in NAMES:
        card = DeviceCard.load(name)
        assert (card.die_to_die, card.stuck) == (None, None)


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


def test_all_devices_stuck_hold_nothing():
    w = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) - 0.5
    card = DeviceCard.load("pcm-hermes-2").with_(stuck_on=1.0)
    assert not CardNoiseModel(card).read_weights(w, DAY).any()


def test_a_chip_has_one_die():
    card = DeviceCard.load("pcm-nandakumar2019").with_(die_to_die=0.1)
    tiles = [CardNoiseModel(card, seed=seed, chip=8).card for seed in (1, 2)]
    assert tiles[0] == tiles[1] == card_on_die(card, 8) != card_on_die(card, 9)
    assert CardNoiseModel(card, seed=3).card == card_on_die(card, 3)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ideal"])
def test_factors_have_the_stated_spread(name):
    """The spread of programming over many dies, in units of the card's own."""
    card = DeviceCard.load(name).with_(die_to_die=0.1)
    g = torch.tensor([0.5 * card.conductance.g_max])
    g_max = card.conductance.g_max
    own = float(card.programming.at(g, g_max))
    factors = torch.tensor(
        [float(card_on_die(card, chip).programming.at(g, g_max)) / own for chip in range(1000)]
    )
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(factors.std()) == pytest.approx(0.1, rel=0.1)


def test_means_and_spreads_are_drawn_apart():
    card = DeviceCard.load("pcm-nandakumar2019")
    means = card.model_copy(update={"die_to_die": card.with_(die_to_die=0.2).die_to_die})
    means = means.model_copy(
        update={"die_to_die": means.die_to_die.model_copy(update={"std": 0.0})}
    )
    die = card_on_die(means, 5)
    assert die.programming == card.programming
    assert die.read == card.read
    g = torch.linspace(0, 25, 50)
    factor = die.drift.nu_mean.at(g, 25.0) / card.drift.nu_mean.at(g, 25.0)
    assert float(factor.std()) < 1e-6
    assert float(factor[0]) != pytest.approx(1.0, abs=0.01)


def test_every_section_follows_the_die():
    for name, section in (
        ("rram-wan2022", "short_term"),
        ("rram-cmo-falcone", "read"),
        ("rram-cmo-falcone", "drift"),
        ("sonos-agrawal2022", "drift"),
        ("pcm-hermes-1", "read"),
    ):
        card = DeviceCard.load(name).with_(die_to_die=0.2)
        assert getattr(card_on_die(card, 1), section) != getattr(card, section)
