"""The lists of commands, devices and adapters, and the options of each command."""

import sys
from pathlib import Path

import pytest

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.cli.main import COMMANDS, load_command
from analog_grasp.devices.card import DeviceCard


def test_all_devices_are_listed(ag):
    ended = ag("devices")
    assert ended.status == 0
    for name in DeviceCard.names():
        assert name in ended.out
    assert "µS" in ended.out


@pytest.mark.parametrize("name", DeviceCard.names())
def test_one_device_is_shown_with_its_source(ag, name):
    ended = ag("devices", name)
    card = DeviceCard.load(name)
    assert ended.status == 0
    for text in (card.title, card.source.citation, card.source.location, card.valid_range,
                 card.not_modelled, card.source.doi or name):  # fmt: skip
        assert text in ended.out
    for time in ("0s", "1h", "1d", "30d", "1y"):
        assert ended.out.count(f"│ {time}") == 2


def test_device_of_a_file(ag, tmp_path):
    shipped = Path(__file__).parents[2] / "device_models" / "ideal.toml"
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped.read_text().replace('"ideal"', '"mine"'))
    assert ag("devices", mine).out.startswith("mine: ")
    assert "\nmapping: " not in ag("devices", mine).out
    mine.write_text(f'{mine.read_text()}\n[mapping]\nclip = "least-error"\nrescale = 0.5\n')
    line = "\nmapping: rescale 0.5, clip least-error, first_token analog\n"
    assert line in ag("devices", mine).out


def test_adapters_are_listed(ag):
    ended = ag("adapters")
    assert ended.status == 0
    for name, method in ADAPTERS.items():
        assert name in ended.out
        assert method.reference in ended.out
        assert ", ".join(method.placements) in ended.out


def test_version(ag):
    ended = ag("--version")
    assert ended.status == 0
    assert ended.out.startswith("analog-grasp 0.")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(ag, arguments):
    ended = ag(*arguments)
    assert ended.status == 0
    assert {"compare", "train", "deploy", "drift", "tune", "devices", "report"} <= {*COMMANDS}
    for command in COMMANDS:
        assert f"  {command} " in ended.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_by_the_first_line_of_its_docstring(name):
    assert load_command(name).help.splitlines()[0] == COMMANDS[name]


def test_a_misspelt_command_is_answered_with_the_right_one(error_of):
    assert "'devices'" in error_of("device")


def test_a_command_that_cannot_be_loaded_suggests_the_doctor(ag, monkeypatch):
    monkeypatch.setitem(sys.modules, "analog_grasp.cli.commands", None)
    ended = ag("report")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("error: The command report cannot be loaded (import of ")
    assert "`analog-grasp doctor`" in ended.err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "compare",
            "model task data-dir adapters devices times repeats placement groups seed engine out "
            "config debug injection epochs learning-rate batch-size noise-weight noise-target "
            "sampling target-modules noise-loss init-sigma",
        ),
        ("train", "adapter model task data-dir groups seed out config debug"),
        ("deploy", "device time seed placement model task data-dir config debug"),
        ("drift", "devices times repeats placement model task data-dir seed engine out config"),
    ],
)
def test_options_are_those_of_the_contract(ag, command, options):
    ended = ag(command, "--help")
    assert ended.status == 0
    for option in options.split():
        assert f"--{option} " in ended.out


@pytest.mark.parametrize(
    ("command", "default"), [("compare", "devices"), ("train", "none"), ("tune", "none")]
)
def test_help_shows_the_second_stage_that_a_command_has_by_default(command, default):
    (then,) = (each for each in load_command(command).params if each.name == "then")
    assert then.show_default == default
