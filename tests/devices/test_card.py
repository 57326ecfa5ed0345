"""Device cards: the shipped ones, loading, errors by key, and changed cards."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from analog_grasp.devices import cards_folder
from analog_grasp.devices.card import DeviceAtTime, DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.devices.schema import LayerMapping
from analog_grasp.utils.errors import CardError

SHIPPED = [
    "gaussian",
    "ideal",
    "pcm-afm-2025",
    "pcm-hermes-1",
    "pcm-hermes-2",
    "pcm-joshi2020",
    "pcm-nandakumar2019",
    "rram-cmo-falcone",
    "rram-cmo-falcone-2pct",
    "rram-milo2021",
    "rram-wan2022",
    "sonos-agrawal2022",
]
GOOD = (cards_folder() / "pcm-nandakumar2019.toml").read_text()


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def error_of(path: str | Path) -> str:
    """Return the sentence of the error that a card raises, without the name of the card."""
    with pytest.raises(CardError) as caught:
        DeviceCard.load(path)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert sentence.startswith(('Device card "', "Unknown device "))
    return sentence.split('" ', 1)[-1] if '": ' not in sentence else sentence.split('": ', 1)[1]


def test_shipped_cards_are_complete():
    assert DeviceCard.names() == SHIPPED
    for name in SHIPPED:
        card = DeviceCard.load(name)
        assert card.name == name
        assert (card.source.doi is None) == (card.technology == "none")
        assert (card.converters is None) == (card.technology == "none")
        assert hash(card) == hash(DeviceCard.load(cards_folder() / f"{name}.toml"))


def test_a_wheel_has_its_cards_inside_the_package(tmp_path, monkeypatch):
    inside = tmp_path / "analog_grasp" / "device_models"
    inside.mkdir(parents=True)
    (inside / "other.toml").write_text(GOOD)
    module = tmp_path / "analog_grasp" / "devices" / "__init__.py"
    monkeypatch.setattr("analog_grasp.devices.__file__", str(module))
    assert DeviceCard.names() == ["other"]
    assert DeviceCard.load("other").technology == "PCM"


def test_units_are_read():
    card = DeviceCard.load("pcm-nandakumar2019")
    assert card.conductance.g_max == 25.0
    assert card.read.t_read == 250e-9
    assert DeviceCard.load("rram-cmo-falcone").read.t_read == 1e-6
    assert [row.time for row in DeviceCard.load("rram-wan2022").drift.table] == [1, 86400, 172800]


def test_other_units_give_the_same_card(tmp_path):
    text = GOOD.replace('g_max = "25 uS"', 'g_max = "0.025 mS"').replace('"20 s"', '"20000ms"')
    card = DeviceCard.load(write(tmp_path, text))
    assert card == DeviceCard.load("pcm-nandakumar2019")


def test_a_tabulated_card_is_programmed_to_its_first_row():
    card = DeviceCard.load("rram-wan2022")
    assert card.programming.pieces == card.drift.table[0].pieces
    assert card.without("drift").programming is not None


def test_gaussian_takes_a_noise_level():
    card = DeviceCard.load("gaussian:0.1")
    assert card.name == "gaussian:0.1"
    assert card.title.startswith("Gaussian noise of 10 % of the largest weight")
    assert card.programming.pieces[0].coefficients == (2.5,)
    assert DeviceCard.load("gaussian:0.05").programming == DeviceCard.load("gaussian").programming


def test_noise_levels_that_differ_have_names_that_differ():
    names = [f"gaussian:{level}" for level in ("0.1234567", "0.1234568", "1e-07", "0", "1")]
    assert [DeviceCard.load(name).name for name in names] == names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gaussian:", "has no valid noise level: write a number between 0 and 1"),
        ("gaussian:much", "has no valid noise level"),
        ("gaussian:nan", "has no valid noise level"),
        ("gaussian:-0.1", "has no valid noise level"),
        ("gaussian:2", "has no valid noise level"),
        ("pcm-hermes-2:1d", 'takes no noise level: only gaussian does, as in "gaussian:0.05".'),
        ("pcm-hermes2", "Did you mean 'pcm-hermes-2'? Available: gaussian, ideal"),
        ("", "Unknown device ''. Available: gaussian, ideal"),
        ("x" * 5000, "Unknown device 'xxx"),
        ("no/such.toml", "does not exist: give the path of a TOML file."),
        ("./", "is a folder: give the path of a TOML file."),
        ("a\0b.toml", ""),
    ],
)
def test_unknown_names_and_levels_are_errors(name, words):
    assert words in error_of(name)


_RANGE = 'g_max = "25 uS"\nmap'
# Text of a valid card, its replacement, and words of the resulting error.
WRONG = [
    (_RANGE, "g_max = 25\nmap", 'conductance.g_max has no unit: write it as "25 uS"'),
    (_RANGE, 'g_max = "25"\nmap', 'conductance.g_max has no unit: write it as "25 uS"'),
    (_RANGE, 'g_max = "25 Ohm"\nmap', 'conductance.g_max has the unknown unit "Ohm"'),
    (_RANGE, 'g_max = "lots"\nmap', "conductance.g_max is 'lots', which cannot be read"),
    (_RANGE, "g_max = true\nmap", "conductance.g_max is True, which is not a quantity"),
    (_RANGE, "g_max = nan\nmap", "conductance.g_max is nan, which cannot be read"),
    (_RANGE, 'g_max = "-25 uS"\nmap', "conductance.g_max is '-25 uS': it should be finite"),
    (_RANGE, 'g_max = "1e999 uS"\nmap', "conductance.g_max is '1e999 uS': it should be"),
    (_RANGE, "map", "conductance.g_max is missing"),
    ('g_min = "0 uS"', 'g_min = "30 uS"', "conductance.g_max is 25 uS and g_min 30 uS"),
    ('mapping = "pair"', 'mapping = "trio"', "conductance.mapping is 'trio': it should be 'pair'"),
    ("[tile]", "[tiles]", 'tiles is not a known key (did you mean "tile"?)'),
    ("rows = 512", '"\\n" = 512', r"tile.'\n' is not a known key"),
    ("rows = 512", "row = 512", 'tile.row is not a known key (did you mean "rows"?)'),
    ("rows = 512", 'rows = "512"', "tile.rows is '512': it should be a valid integer"),
    ("rows = 512", "rows = 512.0", "tile.rows is 512.0: it should be a valid integer"),
    ("rows = 512", "rows = 0", "tile.rows is 0: it should be greater than or equal to 1"),
    ("rows = 512", "rows = true", "tile.rows is True: it should be a valid integer"),
    ('technology = "PCM"', 'technology = "DRAM"', "technology is 'DRAM': it should be"),
    ('technology = "PCM"', "", "technology is missing: it is required"),
    ('doi = "10.1109', 'doi = "http://doi.org/10.1109', "source.doi is 'http://doi.org"),
    ("0.26348", "-0.5", "programming gives a negative standard deviation at 0 uS"),
    ("-1.1731", "-3.0", "programming gives a negative standard deviation at 25 uS"),
    ("0.26348", "1e5", "programming gives a standard deviation above ten times g_max"),
    ("0.26348", "nan", "programming.coefficients[0] is nan: it should be a finite number"),
    ("0.26348", '"0.26"', "programming.coefficients[0] is '0.26': it should be a valid number"),
    ("[0.26348, 1.9650, -1.1731]", "0.26348", "programming.coefficients is 0.26348: it should be"),
    ("[0.26348, 1.9650, -1.1731]", "[]", "programming.coefficients is []: Tuple should have"),
    ('unit = "uS"\nref', "ref", "programming.unit is missing"),
    (
        'reference_g_max = "25 uS"',
        'reference_g_max = "0 uS"',
        "reference_g_max is '0 uS': it should be",
    ),
    (
        "min = 0.049\nmax = 0.1",
        "min = 11\nmax = 12",
        "drift.nu_mean gives a drift exponent above 10",
    ),
    ('unit = "uS"\nref', 'unit = "mS"\nref', "programming.unit is 'mS': it should be 'uS'"),
    ("[0.0088, -0.65]", "[-0.0088, -0.65]", "read.q gives a negative standard deviation"),
    ("[0.0088, -0.65]", "[0.0088]", "read.q.coefficients has 1 numbers: a power has 2"),
    ("[0.0088, -0.65]", "[0.0088, -9.0]", "read.q.coefficients has the exponent -9"),
    ("max = 0.1\n", "max = 0.01\n", "drift.nu_mean.max is 0.01, below min = 0.049"),
    ('model = "power-law"', 'model = "linear"', "drift.model is unknown: it should be one of"),
    ('model = "power-law"', "", "drift.model is missing"),
    ('t0 = "20 s"\n\n[drift.nu_mean]', "[drift.nu_mean]", "drift.t0 is missing"),
    ('t0 = "20 s"\n\n[drift.nu_mean]', "t0 = 20\n[drift.nu_mean]", "drift.t0 has no unit"),
    ("output_range = 12.0\n", "", "converters has adc_bits but no output_range"),
    ("dac_bits = 8", "dac_bits = 40", "converters.dac_bits is 40: it should be less than or equal"),
    ("[tile]", "[[tile]]", "tile is [{"),
    ("[programming]", "[programming", "is not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_an_invalid_card_is_an_error_with_its_key(tmp_path, old, new, words):
    assert old in GOOD
    assert words in error_of(write(tmp_path, GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("clip = 0", "mapping.clip is 0: it should be greater than 0"),
        ("clip = inf", "mapping.clip is inf: it should be a finite number"),
        ('clip = "most"', "mapping.clip is 'most': it should be a number or \"least-error\""),
        ("calibrate = 101", "mapping.calibrate is 101: it should be less than or equal to 100"),
        ('output_ranges = "9"', "mapping.output_ranges is '9': it should be a number or"),
        ("rescale = 2", "mapping.rescale is 2: it should be less than or equal to 1"),
        ('first_token = "both"', "mapping.first_token is 'both': it should be 'analog' or"),
        ("clips = 1", 'mapping.clips is not a known key (did you mean "clip"?)'),
    ],
)
def test_an_invalid_mapping_is_an_error_with_its_key(tmp_path, stated, words):
    assert words in error_of(write(tmp_path, f"{GOOD}\n[mapping]\n{stated}"))


def test_a_std_of_no_nonlinearity_is_an_error_with_its_key(tmp_path):
    stated = "\n[circuit]\nnonlinearity_std = 0.1"
    words = "circuit has nonlinearity_std 0.1, relative to a nonlinearity of 0: give a"
    assert words in error_of(write(tmp_path, GOOD + stated))


def test_a_card_states_how_layers_are_mapped(tmp_path):
    stated = 'rescale = 0.5\nclip = 2\ncalibrate = "least-error"\noutput_ranges = 99.9\n'
    card = DeviceCard.load(write(tmp_path, f"{GOOD}\n[mapping]\n{stated}"))
    assert card.mapping == LayerMapping(
        rescale=0.5, clip=2.0, calibrate="least-error", output_ranges=99.9, first_token="analog"
    )
    assert card.with_(adc_bits=6).mapping == card.mapping
    assert card.without("mapping") == DeviceCard.load("pcm-nandakumar2019")


SYMMETRIC = 'variable = "u"\nform = "polynomial"\ncoefficients = [1.25]'
ODD = 'variable = "g"\nform = "polynomial"\ncoefficients = [1.0, 0.1]'
TWICE = '[programming]\nvariable = "u"\nform = "polynomial"\nunit = "uS"\ncoefficients=[1]\n[tile]'


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("pcm-hermes-2", "below = 0.16", 'below = "x"', "read.q.pieces[0].below is 'x'"),
        ("pcm-hermes-2", "below = 0.16, ", "", "read.q.pieces should have"),
        ("rram-wan2022", "[0.701,", "[-9.0,", "drift.table[1] gives a negative standard"),
        ("rram-wan2022", "[0.348,", "[nan,", "drift.table[0].coefficients[0]"),
        ("rram-wan2022", '"1 d"', '"3 d"', "in the order of its times"),
        ("rram-wan2022", "[tile]", TWICE, "programming is stated twice"),
        ("gaussian", 'g_min = "0 uS"', 'g_min = "1 uS"', 'conductance.mapping is "signed" but'),
        ("gaussian", SYMMETRIC, ODD, "programming gives a negative standard deviation at -25 uS"),
    ],
)
def test_errors_of_other_cards_name_their_key(tmp_path, name, old, new, words):
    text = (cards_folder() / f"{name}.toml").read_text()
    assert old in text
    assert words in error_of(write(tmp_path, text.replace(old, new, 1)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[drift]\nmodel = []",
        b"drift = 3\nprogramming = [1]",
        b"[drift]\ntable = [[]]",
        b"[programming]\ncoefficients = [" + b"1,\n" * 80_000 + b"]",
    ],
    ids=range(5),
)
def test_hostile_files_raise_a_short_sentence(tmp_path, content):
    assert len(error_of(write(tmp_path, content))) < 400


def test_a_card_is_frozen():
    with pytest.raises(ValidationError):
        DeviceCard.load("ideal").name = "other"


def test_a_device_is_a_name_a_path_or_a_card():
    card = DeviceCard.load("pcm-hermes-2")
    assert DeviceCard.load(card) is card
    assert DeviceCard.load(cards_folder() / "pcm-hermes-2.toml") == card
    for device in (card.at("1d"), "pcm-hermes-2@24h", f"{cards_folder()}/pcm-hermes-2.toml@86400"):
        assert DeviceAtTime.parse(device) == (card, 86_400.0)
    assert DeviceAtTime.parse("gaussian:0.02@1h").card.name == "gaussian:0.02"
    with pytest.raises(ValueError, match="'pcm-hermes-2' has no drift time"):
        DeviceAtTime.parse("pcm-hermes-2")


MEASURED = """
name = "my-device"
technology = "RRAM"
title = "A device measured at home"
valid_range = "1 to 50 uS, first hour"
not_modelled = "drift"
source = { citation = "own measurement", location = "notebook 3, page 12" }
conductance = { g_min = "1 uS", g_max = "50 uS", mapping = "pair" }
tile = { rows = 64, columns = 64 }
[programming]
variable = "g"
unit = "uS"
form = "points"
points = [
%s
]
"""


@pytest.mark.parametrize("count", [2, 300, 5000])
def test_an_own_measurement_of_any_length_needs_no_doi(tmp_path, count):
    g = np.linspace(1.0, 50.0, count)
    rows = "\n".join(f"    [{x:.4f}, {0.5 + 0.01 * x:.6f}]," for x in g)
    card = DeviceCard.load(write(tmp_path, MEASURED % rows))
    assert (card.source.citation, card.source.doi) == ("own measurement", None)
    targets = torch.full((200, 500), 20.0)
    std = CardNoiseModel(card).apply_programming_noise_to_conductance(targets).std()
    assert float(std) == pytest.approx(0.7, rel=0.01)


def test_without_switches_off_the_named_effects_only():
    card = DeviceCard.load("pcm-hermes-2")
    alone = card.without("programming", "read", "converters")
    assert (alone.programming, alone.read, alone.converters) == (None, None, None)
    assert alone.drift == card.drift
    assert card.programming is not None
    with pytest.raises(ValueError, match="Unknown effect 'gravity'"):
        card.without("gravity")


def test_converters_tile_and_range_change():
    card = DeviceCard.load("pcm-hermes-2").with_(
        dac_bits=6, adc_bits=10, output_noise=0.1, tile_size=(128, 64), g_max="10 uS"
    )
    c = card.converters
    assert (c.dac_bits, c.adc_bits, c.output_noise, c.output_range) == (6, 10, 0.1, 12.0)
    c = card.with_(output_range=7.0, input_scaling="none").converters
    assert (c.adc_bits, c.output_range, c.input_scaling) == (10, 7.0, "none")
    assert (card.tile.rows, card.tile.columns) == (128, 64)
    assert card.conductance.g_max == 10.0
    exact = card.with_(dac_bits=0, adc_bits=0).converters
    assert (exact.dac_bits, exact.adc_bits) == (None, None)
    ideal = DeviceCard.load("ideal").with_(tile_size=32, g_max=12.5)
    assert (ideal.tile.columns, ideal.conductance.g_max) == (32, 12.5)
    ideal = ideal.with_(dac_bits=8, adc_bits=8, output_noise=0.04)
    assert ideal.converters == DeviceCard.load("pcm-hermes-2").converters


def test_changes_may_be_scalars_of_numpy_and_lists():
    card = DeviceCard.load("pcm-hermes-2")
    given = card.with_(
        adc_bits=np.int64(6),
        g_max=np.float64(30.0),
        stuck_off=np.float64(0.5),
        tile_size=[np.int64(3), 5],
    )
    assert given == card.with_(adc_bits=6, g_max=30.0, stuck_off=0.5, tile_size=(3, 5))
    assert card.with_(tile_size=np.int64(7)) == card.with_(tile_size=7)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_change_gives_the_same_card_without_faults(name):
    card = DeviceCard.load(name)
    assert card.with_() == card
    assert card.with_().model_fields_set == card.model_fields_set
    assert (card.die_to_die, card.stuck) == (None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dac_bits": 40}, "converters.dac_bits is 40: it should be less than or equal to 16"),
        ({"output_noise": -1.0}, "converters.output_noise is -1.0: it should be greater"),
        ({"tile_size": 0}, "tile.rows is 0: it should be greater than or equal to 1"),
        ({"tile_size": (3,)}, "tile_size is (3,): weights per side, or rows and columns, are"),
        ({"tile_size": [3, 4, 5]}, "tile_size is [3, 4, 5]: weights per side, or"),
        ({"tile_size": (3, "4")}, "tile.columns is '4': it should be a valid integer"),
        ({"g_max": -5.0}, "conductance.g_max is '-5.0 uS': it should be finite and not negative"),
        ({"g_max": "5 Ohm"}, 'conductance.g_max has the unknown unit "Ohm"'),
        ({"stuck_off": 1.5}, "stuck.off is 1.5: it should be less than or equal to 1"),
        ({"stuck_off": 0.6, "stuck_on": 0.6}, "stuck has off + on = 1.2: together"),
        ({"die_to_die": float("nan")}, "die_to_die.mean is nan: it should be"),
    ],
)
def test_an_invalid_change_is_an_error_with_its_key(changes, words):
    with pytest.raises(CardError) as caught:
        DeviceCard.load("pcm-hermes-2").with_(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith('Device card "pcm-hermes-2": ')


def test_an_unknown_change_is_an_error():
    with pytest.raises(TypeError, match="Unknown change 'colour'"):
        DeviceCard.load("ideal").with_(colour="red")


def test_a_negative_std_after_a_change_of_range_is_an_error():
    with pytest.raises(CardError, match="programming gives a negative standard deviation at 100"):
        DeviceCard.load("pcm-joshi2020").with_(g_max=100.0)


def test_cards_and_their_moments_need_neither_torch_nor_numba():
    code = """
import sys
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import conductance_moments, weight_std
for name in DeviceCard.names():
    card = DeviceCard.load(name)
    conductance_moments(card, [0.5], 86400.0), weight_std(card, [0.5], 86400.0)
print({"torch", "numba", "aihwkit", "scipy", "transformers"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            '[drift]\nmodel = "relaxation"\nunit = "uS"\nmean = [0.0, 0.0]\nstd = [1.0, 0.1]',
            'drift.model is "relaxation", which clips conductances at g_min, but conductance.map',
        ),
        (
            '[read]\nmodel = "logarithmic"\nunit = "uS"\nk = 0.1\nt_read = "1 us"',
            'read.model is "logarithmic", which has no value below 0, but conductance.mapping is',
        ),
    ],
    ids=["relaxation", "logarithmic"],
)
def test_signed_conductances_have_no_noise_of_positive_ones(tmp_path, section, words):
    text = (cards_folder() / "gaussian.toml").read_text()
    assert words in error_of(write(tmp_path, f"{text}\n{section}"))
    pair = text.replace('mapping = "signed"', 'mapping = "pair"')
    assert DeviceCard.load(write(tmp_path, f"{pair}\n{section}")).conductance.mapping == "pair"


@pytest.fixture
def stated():
    """Return the content of a card with drift and read noise."""
    return tomllib.loads((cards_folder() / "pcm-nandakumar2019.toml").read_text())


@pytest.mark.parametrize("coefficients", [[600.0], [0.0, -1.0, 0.0, 1.0]])
def test_a_shift_far_beyond_the_largest_conductance_is_an_error(stated, coefficients):
    curve = {"variable": "g", "form": "polynomial", "coefficients": coefficients, "unit": "uS"}
    stated["programming"]["shift"] = curve
    with pytest.raises(CardError, match=r"programming\.shift gives a shift above ten times g_max"):
        DeviceCard.from_data(stated, "The card")


def test_a_card_with_read_noise_and_without_drift_data_depends_on_time(stated):
    del stated["drift"]
    with_read = DeviceCard.from_data(stated, "The card").beyond_data(1.0)
    assert "has no drift data: only its read noise depends on the time" in with_read
    del stated["read"]
    without = DeviceCard.from_data(stated, "The card").beyond_data(1.0)
    assert "has no drift data: it is read at all times as at 0s" in without


def test_a_card_alone_is_no_device_at_a_time():
    with pytest.raises(ValueError, match="has no drift time: write a device and a time"):
        DeviceAtTime.parse(DeviceCard.load("ideal"))
