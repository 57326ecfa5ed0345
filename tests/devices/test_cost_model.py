"""Cost models: derived figures recomputed from their sources, units and errors."""

import pytest

from analog_grasp.costs import CostModel
from analog_grasp.devices.cost_model import Accelerator, _folder

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
    # Reads of these models include their converters.
    assert list(model.read_energy()) == ["tile reads"]
    assert model.read_energy()["tile reads"][1] == pytest.approx(nanojoules * 1e-9, rel=1e-3)
    time = model.read_time()
    assert time == (None if nanoseconds is None else pytest.approx(nanoseconds * 1e-9, rel=1e-3))


@pytest.mark.parametrize(
    ("name", "devices"),
    # 64 cores of 256 x 256 cells of four devices, 34 tiles of 512 x 512 of four, and 48 cores of
    # 256 x 256 devices.
    [
        ("hermes-1phase", 16_777_216),
        ("hermes-4phase", 16_777_216),
        ("ibm-34-tile", 35_651_584),
        ("neurram", 3_145_728),
    ],
)
def test_a_chip_has_the_published_number_of_devices(name, devices):
    model = CostModel.load(name)
    weights = model.tile.tiles_per_chip * model.tile.rows * model.tile.columns
    assert weights * model.programming.devices_per_weight == devices


@pytest.mark.parametrize(("name", "density"), [("hermes-1phase", 1.55), ("hermes-4phase", 0.4)])
def test_area_of_a_tile_follows_from_the_quoted_throughput_per_area(name, density):
    tile = CostModel.load(name).tile
    assert tile.area.value == pytest.approx(tile.tops.value / 64 / density, rel=1e-3)


def test_ranges_enclose_the_stated_value():
    low, value, high = CostModel.load("ibm-34-tile").read_energy()["tile reads"]
    # 20 TOPS/W of the tile alone, 6.94 TOPS/W of the system.
    assert (low, high) == (pytest.approx(26.2e-9, rel=1e-3), pytest.approx(75.5e-9, rel=1e-3))
    assert low < value < high


def test_neurram_states_its_converters_apart():
    parts = CostModel.load("neurram").read_energy()
    # 127 samples and integrations, 1 to 128 ADC steps, one shift-add, 256 columns.
    assert parts["tile reads"][1] == pytest.approx(256 * (127 * 0.25e-12 + 0.1e-12))
    assert parts["DAC"][1] == pytest.approx(256 * 127 * 1.2e-12)
    assert parts["ADC"] == pytest.approx([256 * n * 0.3e-12 for n in (1, 64.5, 128)])
    # The column with the most steps is the last.
    assert CostModel.load("neurram").read_time() == pytest.approx(127 * 0.27e-6 + 128 * 0.3e-6)


def test_neurram_pulses_follow_from_voltage_resistance_and_time():
    programming = CostModel.load("neurram").programming
    assert programming.pulse_energy.value == pytest.approx(1.75**2 / 250e3 * 1e-6)
    device = programming.pulse_energy.value * programming.pulses_per_device.value
    assert device == pytest.approx(0.10e-9, rel=0.05)


def test_pcm_pulses_follow_from_current_voltage_and_time():
    pulse = CostModel.load("hermes-1phase").programming.pulse_energy.value
    assert pulse == pytest.approx(450e-6 * 2.0 * 50e-9)


def test_memory_of_14_nm_models_is_that_of_a_megabyte_in_45_nm():
    memory = CostModel.load("ibm-34-tile").digital.memory_energy
    assert memory.value == pytest.approx(100e-12 / 8)


def test_accelerators_follow_from_throughput_and_power():
    chip, tpu, gpu = (each.tops_per_watt.range for each in Accelerator.shipped())
    assert chip[1] == pytest.approx(1 / 0.11, rel=0.05)
    assert tpu == pytest.approx((275 / 192, 275 / 170, 275 / 170), rel=2e-3)
    assert gpu[1] == pytest.approx(1979 / 700, rel=2e-3)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rows = 256", "rows = 0", "tile.rows is 0"),
        ("rows = 256", "row = 256", 'tile.row is not a known key (did you mean "rows"?)'),
        ('value = "45 pJ"', 'value = "45 ns"', 'has the unknown unit "ns": use one of fJ, pJ'),
        ('value = "45 pJ"', 'value = "45"', 'has no unit: write it as "45 pJ"'),
        (
            'value = "45 pJ"',
            'value = "-45 pJ"',
            "is '-45 pJ': it should be finite and not negative",
        ),
        ('value = "45 pJ"', 'value = "0 pJ"', "greater than 0"),
        ('value = "0.636 mm2"', 'value = "0.636 mm"', 'has the unknown unit "mm"'),
        ("value = 9.76", "value = -9.76", "greater than 0"),
        ("low = 5.0", "low = 6.5", "has the range 6.5 to 7, which excludes 6"),
        ('basis = "projected", source = "14', 'basis = "guessed", source = "14', "guessed"),
        ("tiles_per_chip = 64", "", "states tops without tiles_per_chip"),
        (
            "\n[digital]",
            '\nread_time = { value = "1 us", basis = "measured", source = "own" }\n[digital]',
            "states more than one of read_time, tops and column: state one of them",
        ),
        ("[programming]", "[programing]", "programing is not a known key"),
        (
            "\n[digital]",
            '\nadc_energy = { value = "1 pJ", basis = "measured", source = "own" }\n[digital]',
            "states adc_energy, which its reads include already",
        ),
    ],
)
def test_invalid_files_raise_one_sentence(tmp_path, old, new, sentence):
    text = (_folder() / "hermes-1phase.toml").read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="Cost model") as caught:
        CostModel.load(file)
    assert sentence in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_converters_of_ones_own_hardware_are_parts_of_their_own(tmp_path):
    text = (_folder() / "hermes-1phase.toml").read_text()
    stated = 'dac_energy = { value = "2 pJ", basis = "measured", source = "own" }\n'
    text = text.replace('includes = ["DAC", "ADC", ', "includes = [").replace(
        "tops_per_watt = { value = 9.76", f"{stated}tops_per_watt = {{ value = 9.76"
    )
    file = tmp_path / "mine.toml"
    file.write_text(text)
    parts = CostModel.load(file).read_energy()
    assert parts["DAC"] == pytest.approx([256 * 2e-12] * 3)
    # Neither included nor stated: missing, not 0.
    assert parts["ADC"] is None


def test_unknown_names_raise_with_a_suggestion():
    with pytest.raises(ValueError, match=r"Unknown cost model 'hermes-1fase'. Did you mean"):
        CostModel.load("hermes-1fase")
