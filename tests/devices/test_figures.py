"""Figures of cards for the command line, and their cache."""

import os
import shutil

import numpy as np
import pytest

from analog_grasp import devices
from analog_grasp.devices import FRACTIONS, TIMES, card_figures, card_names, cards_folder
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import conductance_moments, weight_std
from analog_grasp.utils.errors import CardError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of a cache of its own."""
    monkeypatch.setattr(devices, "user_cache_path", lambda _: tmp_path / "cache")
    return tmp_path / "cache" / "figures"


def not_computed(device: str) -> None:
    raise AssertionError(f"the figures of {device} are computed again")


def test_figures_are_the_cards_moments_and_cached(cache, monkeypatch):
    names = card_names()
    computed = [card_figures(name) for name in names]
    for name, found in zip(names, computed, strict=True):
        card = DeviceCard.load(name)
        assert found.facts["name"] == name
        assert found.facts["conductance"] == card.conductance.model_dump()
        for text, time in TIMES.items():
            mean, std = conductance_moments(card, FRACTIONS, time)
            np.testing.assert_array_equal(found.means[text], mean)
            np.testing.assert_array_equal(found.stds[text], std)
            np.testing.assert_array_equal(
                found.weight_stds[text], weight_std(card, FRACTIONS, time)
            )
    assert len(list(cache.iterdir())) == len(names)
    monkeypatch.setattr(devices, "_computed", not_computed)
    assert [card_figures(name) for name in names] == computed


def test_a_changed_card_is_computed_again(tmp_path):
    path = tmp_path / "mine.toml"
    shutil.copy(cards_folder() / "gaussian.toml", path)
    before = card_figures(str(path))
    path.write_text(path.read_text().replace("[1.25]", "[2.5]"))
    after = card_figures(str(path))
    assert after.stds["0s"] == pytest.approx(2 * np.array(before.stds["0s"]))
    level = card_figures("gaussian:0.2")
    assert level.facts["name"] == "gaussian:0.2"
    assert level.weight_stds["1d"] == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"facts": {}', "\0"])
def test_a_damaged_cache_is_replaced(cache, content):
    expected = card_figures("ideal")
    (file,) = cache.iterdir()
    file.write_text(content)
    assert card_figures("ideal") == expected
    assert file.read_text() != content


def test_figures_need_no_writable_cache(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert card_figures("ideal").facts["name"] == "ideal"


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(CardError, match="does not exist"):
        card_figures(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("device", ["nope", "ideal:0.1", "no/such.toml", "a\0.toml"])
def test_unknown_cards_are_errors(device):
    with pytest.raises(CardError):
        card_figures(device)
