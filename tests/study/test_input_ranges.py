"""Input ranges that are learned in training, in studies: saved, used and checked."""

import pytest

from analog_grasp.crossbar.forward_hooks import hooks_of
from analog_grasp.study.api import compare, drift_sweep
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.training.input_ranges import load_ranges, save_ranges

ONE = {"devices": "pcm-hermes-2", "times": "0s", "repeats": 1}
USED = ONE | {"calibrate": "learned"}
LEARNED = {"adapters": "grasp", "converters": "pcm-hermes-2", "learn_ranges": True}


def test_a_study_trains_saves_and_uses_ranges(settings, tmp_path):
    # Ranges that are learned are used, unless a percentile is given.
    run = compare(tmp_path / "run", **(settings | LEARNED | ONE))
    folder = tmp_path / "run" / "adapters" / "grasp"
    ranges = load_ranges(folder)
    assert len(ranges) == 7

    def again(name):
        saved = {key: settings[key] for key in ("model", "task", "data_dir", "seed")}
        found = drift_sweep([str(folder)], tmp_path / name, **saved, **USED)
        return [m.value for m in found.measurements]

    assert again("same") == [m.value for m in run.measurements]
    save_ranges(dict.fromkeys(ranges, 0.01), folder)
    assert again("other") != [m.value for m in run.measurements]
    (folder / "input_ranges.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no input_ranges\.safetensors: train the adapter"):
        again("none")


@pytest.mark.parametrize("given", [{"calibrate": 99.0}, {"output_ranges": 99.0}, LEARNED])
def test_devices_without_converters_have_no_ranges(settings, tmp_path, given):
    asked = ONE | {"devices": ("gaussian:0.02", "pcm-hermes-2"), "adapters": "grasp"} | given
    on = {"evaluate_on": "gaussian@0s", "then": "devices", "then_steps": 1}
    run = compare(tmp_path / "run", **(settings | asked | on))
    assert {cell.device for cell in run.measurements} == {"gaussian:0.02", "pcm-hermes-2"}


def test_ranges_are_learned_but_not_used_where_inputs_are_scaled(settings, tmp_path):
    scaled = LEARNED | ONE | {"input_scaling": "abs_max"}
    run = compare(tmp_path / "run", **(settings | scaled))
    folder = tmp_path / "run" / "adapters" / "grasp"
    save_ranges(dict.fromkeys(load_ranges(folder), 0.01), folder)
    saved = {key: settings[key] for key in ("model", "task", "data_dir", "seed")}
    found = drift_sweep([str(folder)], tmp_path / "again", **saved, **ONE)
    assert [m.value for m in found.measurements] == [m.value for m in run.measurements]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"calibrate": "learned"}, "no ranges are learned: give --learn-ranges"),
        (LEARNED | {"calibrate": "learned", "rescale": 0.5}, "inputs are rescaled on pcm-hermes-2"),
        (LEARNED | {"placement": "folded"}, "ranges are learned, but the placement is 'folded'"),
        ({"learn_ranges": True}, "learn_ranges is True, which has no effect without converters"),
    ],
)
def test_ranges_that_are_not_learned_are_rejected(settings, tmp_path, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare(tmp_path / "run", **(settings | given))


def test_the_second_stage_is_on_chips_with_the_learned_ranges(settings, tmp_path, monkeypatch):
    chips = []

    def recorded(*args, **given):
        chips.append(put_on_chip(*args, **given))
        return chips[-1]

    put_on_chip = HardwareSettings.deploy
    monkeypatch.setattr(HardwareSettings, "deploy", recorded)
    second = {"then": "devices", "then_steps": 1}
    run = compare(tmp_path / "run", **(settings | LEARNED | ONE | second))
    ranges = load_ranges(tmp_path / "run" / "adapters" / "grasp")
    assert len(chips) >= 2  # that of the second stage, and that of the measurements
    for chip in chips:
        assert hooks_of(chip.model).input_ranges == ranges
    assert len(run.measurements) == 2
