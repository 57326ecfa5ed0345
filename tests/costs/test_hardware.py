"""Cost models: derived figures recomputed from their sources, units and errors."""

import pytest

from analog_grasp.costs import CostModel

SHIPPED = CostModel.names()


def test_the_shipped_models():
    assert set(SHIPPED) == {
        "hermes-1phase", "hermes-4phase", "ibm-34-tile", "neurram", "projected-100tops",
    }  # fmt: skip
    assert all(CostModel.load(name).name == name for name in SHIPPED)


@pytest.mark.parametrize(
    ("name", "nanojoules", "nanoseconds"),
    # 2 x 256 x 256 operations at 9.76 and 2.48 TOPS/W, 2 x 512 x 512 at 12.4 and 100; times from
    # 63.1 and 16.1 TOPS of 64 tiles.
    [
        ("hermes-1phase", 13.43, 132.9),
        ("hermes-4phase", 52.85, 521.0),
        ("ibm-34-tile", 42.28, None),
        ("projected-100tops", 5.24, 40.0),
    ],
)
def test_energy_and_time_of_a_read_follow_from_the_quoted_efficiency(name, nanojoules, nanoseconds):
    model = CostModel.load(name)
    assert model.read_energy()[1] == pytest.approx(nanojoules * 1e-9, rel=1e-3)
    time = model.read_time()
    assert time == (None if nanoseconds is None else pytest.approx(nanoseconds * 1e-9, rel=1e-3))


def test_ranges_enclose_the_stated_value():
    low, value, high = CostModel.load("ibm-34-tile").read_energy()
    # 20 TOPS/W of the tile alone, 6.94 TOPS/W of the system.
    assert (low, high) == (pytest.approx(26.2e-9, rel=1e-3), pytest.approx(75.5e-9, rel=1e-3))
    assert low < value < high


def test_neurram_sums_its_components():
    # 127 samples and integrations, 1 to 128 ADC steps, one shift-add, 256 columns.
    expected = [256 * (127 * 1.45e-12 + steps * 0.3e-12 + 0.1e-12) for steps in (1, 64.5, 128)]
    assert CostModel.load("neurram").read_energy() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rows = 256", "rows = 0", "tile.rows is 0"),
        ("rows = 256", "row = 256", 'tile.row is not a known key (did you mean "rows"?)'),
        ('value = "45 pJ"', 'value = "45 ns"', "is not an energy"),
        ('value = "45 pJ"', 'value = "-45 pJ"', "is not an energy"),
        ("value = 9.76", "value = -9.76", "greater than 0"),
        ("low = 5.0", "low = 6.5", "has the range 6.5 to 7, which excludes 6"),
        ('basis = "projected", source = "int8', 'basis = "guessed", source = "int8', "guessed"),
        ("tiles_per_chip = 64", "", "states tops without tiles_per_chip"),
        ("[programming]", "[programing]", "programing is not a known key"),
    ],
)
def test_invalid_files_raise_one_sentence(tmp_path, old, new, sentence):
    from analog_grasp.costs.hardware import _folder

    text = (_folder() / "hermes-1phase.toml").read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="Cost model") as caught:
        CostModel.load(file)
    assert sentence in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_unknown_names_raise_with_a_suggestion():
    with pytest.raises(ValueError, match=r"Unknown cost model 'hermes-1fase'. Did you mean"):
        CostModel.load("hermes-1fase")
