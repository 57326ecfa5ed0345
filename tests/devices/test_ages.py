"""Devices at ranges of ages: text, draws, and errors."""

import numpy as np
import pytest

from analog_grasp.devices import cards_folder
from analog_grasp.devices.ages import AgeRange, draw, parse_age, parse_ages
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.schema import DieToDie

YEAR = 31_536_000.0


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("pcm-hermes-2@1d", 86_400.0, 86_400.0),
        ("pcm-hermes-2@0s..1y", 0.0, YEAR),
        ("pcm-hermes-2@1h..1h", 3600.0, 3600.0),
        (" pcm-hermes-2@20..1d ", 20.0, 86_400.0),
    ],
)
def test_text_of_one_device(text, first, last):
    (ages,) = parse_ages(text)
    assert (ages.card.name, ages.first, ages.last) == ("pcm-hermes-2", first, last)
    assert AgeRange.parse(str(ages)) == ages


def test_several_devices_in_a_text_or_a_list():
    text = "pcm-hermes-2@0s..1y,rram-wan2022@1d"
    assert [str(each) for each in parse_ages(text)] == text.split(",")
    assert parse_ages(text.split(",")) == parse_ages(text)
    assert parse_ages(parse_ages(text)) == parse_ages(text)


def test_cards_at_a_time_alone_and_in_a_list():
    card = DeviceCard.load("pcm-hermes-2")
    ages = AgeRange(card, 3600.0, 3600.0)
    for given in (card.at("1h"), [card.at("1h")], (card.at("1h"),), ages, [ages]):
        assert parse_ages(given) == (ages,)
    mixed = parse_ages([card.at("1d"), "ideal@0s..1y", ages])
    assert [str(each) for each in mixed] == ["pcm-hermes-2@1d", "ideal@0s..1y", "pcm-hermes-2@1h"]


@pytest.mark.parametrize("factor", ["1.5", "2", "0.1", "1e-05", "1.0123456789", "1"])
def test_text_states_the_factor(factor):
    text = f"pcm-hermes-2@0s..1y x{factor}"
    (ages,) = parse_ages(text)
    assert str(ages) == text
    assert parse_ages(str(ages)) == (ages,)
    assert ages.factor == float(factor)


def test_a_factor_keeps_variation_from_die_to_die(tmp_path):
    text = (cards_folder() / "gaussian.toml").read_text()
    path = tmp_path / "card.toml"
    path.write_text(f"{text}\n[die_to_die]\nmean = 0.1\nstd = 0.2\n")
    plain, same, double = parse_ages([f"{path}@1d", f"{path}@1d x1", f"{path}@1d x2"])
    assert same.card == plain.card
    assert double.card.die_to_die == plain.card.die_to_die == DieToDie(mean=0.1, std=0.2)
    assert CardNoiseModel(double.card, 1).card.die_to_die is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (DeviceCard.load("pcm-hermes-2"), r"pcm-hermes-2 has no drift time: .*\.at\(.1d.\)\."),
        ([DeviceCard.load("pcm-hermes-2")], "pcm-hermes-2 has no drift time"),
        (None, "None is no device at a time: give text such as"),
        (86_400.0, "86400.0 is no device at a time"),
        (["ideal@0s", None], "None is no device at a time"),
        ([], r"\[\] names no device"),
    ],
)
def test_other_types_raise_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        parse_ages(given)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("text", ["pcm-hermes-2@1h..1y", "pcm-hermes-2@1d,ideal@1d"])
def test_one_device_at_one_time(text):
    assert parse_age("pcm-hermes-2@1d x2") == parse_ages("pcm-hermes-2@1d x2")[0]
    with pytest.raises(ValueError, match=f"'{text}' is more than one device at one time"):
        parse_age(text)


@pytest.mark.parametrize("text", ["gaussian:0.04@0s x1.5", "gaussian:0.04@0sx1.5"])
def test_a_factor_multiplies_standard_deviations(text):
    (ages,) = parse_ages(text)
    plain = DeviceCard.load("gaussian:0.04").programming.pieces[0].coefficients[0]
    assert ages.card.programming.pieces[0].coefficients[0] == pytest.approx(1.5 * plain)
    (drifting,) = parse_ages("pcm-hermes-2@0s..1y x2")
    card = DeviceCard.load("pcm-hermes-2")
    assert drifting.card.drift.nu_mean == card.drift.nu_mean
    assert drifting.card.drift.nu_std != card.drift.nu_std


def test_draws_are_uniform_in_the_logarithm_and_repeatable():
    ranges = parse_ages("pcm-hermes-2@0s..1y,rram-wan2022@1h..1d")
    draws = [draw(ranges, seed) for seed in range(2000)]
    assert draws == [draw(ranges, seed) for seed in range(2000)]
    ages = np.array([age for index, age in draws if index == 0])
    assert 900 < len(ages) < 1100
    assert ages.min() >= 0
    assert ages.max() <= YEAR
    middle = np.sqrt(60.0 * (YEAR + 60)) - 60
    assert np.median(ages) == pytest.approx(middle, rel=0.5)
    others = [age for index, age in draws if index == 1]
    assert 3600 <= min(others) < max(others) <= 86_400


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("pcm-hermes-2", "has no drift time: write a device and a time or a range"),
        ("", "'' names no device"),
        (" , ", "names no device"),
        ("pcm-hermes-2@1y..1h", "reversed range of ages: .* pcm-hermes-2@1h..1y"),
        ("pcm-hermes-2@..1y", 'time "" cannot be read'),
        ("pcm-hermes-2@1h..", 'time "" cannot be read'),
        ("pcm-hermes-2@-1h..1y", "is negative"),
        ("hermes@1h..1y", "Unknown device 'hermes'"),
        ("pcm-hermes-2@1h..1y x0", "factor x0 of pcm-hermes-2 is no number above 0"),
        ("pcm-hermes-2@1d xnan", "factor xnan"),
        ("pcm-hermes-2@1d x1e30", "factor x1e30 of pcm-hermes-2 is no number above 0, at most 100"),
    ],
)
def test_invalid_text_raises_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        parse_ages(text)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
