"""The second stage of training in a study: on the run's own devices, named in its report."""

import inspect

import pytest

from analog_grasp import tune_noise_weight
from analog_grasp.devices.ages import parse_ages
from analog_grasp.study import trained_adapters
from analog_grasp.study.api import compare
from analog_grasp.study.config import ONE_STAGE, resolve
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.study.progress import silent
from analog_grasp.study.provenance import adapter_hash, open_run, read_run
from analog_grasp.study.trained_adapters import distil_adapter, new_adapter, train_adapter

FEW = {"adapters": ("grasp",), "devices": ("pcm-hermes-2",), "times": ("1d", "0s"), "repeats": 1}
STAGE = {"then": "devices", "then_steps": 2}


def test_without_a_second_stage_nothing_is_distilled():
    assert resolve({"then": "none"}).second_stage() == ()
    assert resolve({"adapters": ("runs/mine",)}).second_stage() == ()
    for empty in ("", ",", ()):
        with pytest.raises(ValueError, match="The setting then is empty"):
            resolve({"then": empty})


def test_train_and_tune_have_a_second_stage_only_where_one_is_asked_for():
    named = {"devices": "ideal", "times": "0s"}
    assert resolve(named, defaults=ONE_STAGE).second_stage() == ()
    asked = resolve(named | {"then": "devices"}, defaults=ONE_STAGE)
    assert [str(each) for each in asked.second_stage()] == ["ideal@0s"]
    assert inspect.signature(tune_noise_weight).parameters["then"].default == ("none",)


def test_the_devices_of_the_run_are_those_of_its_settings():
    config = resolve({"devices": "ideal,pcm-hermes-2", "times": "1d,1y,0s"})
    assert config == config.replace(then="devices")
    assert [str(each) for each in config.second_stage()] == ["ideal@0s..1y", "pcm-hermes-2@0s..1y"]
    changed = config.replace(devices="pcm-hermes-2", adc_bits=5).second_stage()[0].card
    assert changed.converters.adc_bits == 5


def test_the_second_stage_has_the_learning_rates_of_the_settings(settings, task, monkeypatch):
    given = {"learning_rate": 5e-3, "shift_lr_ratio": 0.2}
    asked = []
    monkeypatch.setattr(trained_adapters, "distil", lambda *_, **rates: asked.append(rates))
    config = resolve(settings | FEW | STAGE | given)
    model = new_adapter(config, task, "grasp")
    distil_adapter(model, config, task)
    assert [{name: rates[name] for name in given} for rates in asked] == [given]


def test_devices_at_times_are_those_named():
    asked = "pcm-hermes-2@1h..1y,rram-wan2022@1d x1.5"
    assert resolve({"then": asked}).second_stage() == parse_ages(asked)
    assert [
        each.card.converters.adc_bits
        for each in resolve(
            {"then": "pcm-hermes-2@1h,rram-wan2022@1d x2", "adc_bits": 5}
        ).second_stage()
    ] == [5, 5]


@pytest.mark.parametrize("change", [{"clip": 1.5}, {"adc_bits": 3}, {"rescale": 0.5}])
def test_the_chip_that_selects_the_epoch_is_mapped_as_measured_ones(
    settings, task, monkeypatch, change
):
    chips = []

    def recorded(self, *args, **given):
        chips.append(put_on_chip(self, *args, **given))
        return chips[-1]

    put_on_chip = HardwareSettings.deploy
    monkeypatch.setattr(HardwareSettings, "deploy", recorded)
    config = resolve(settings | FEW | change | {"evaluate_on": "pcm-hermes-2@1d"})
    train_adapter(new_adapter(config, task, "grasp"), config, task, "", silent)
    (chip,) = chips
    assert chip.card.converters.adc_bits == change.get("adc_bits", 8)
    assert chip._settings.clip == change.get("clip")
    rescaled = [layer.input_scale is not None for layer in chip.layers.values()]
    assert rescaled == ["rescale" in change] * len(rescaled)


def test_devices_of_training_have_the_changes_of_the_settings(settings, task, monkeypatch):
    given = {
        "converters": "pcm-hermes-2",
        "injection": "pcm-hermes-2@1d",
        "tile_size": 128,
        "adc_bits": 3,
    }
    found = {}
    monkeypatch.setattr(trained_adapters, "train", lambda *_, **arguments: found.update(arguments))
    config = resolve(settings | FEW | given)
    train_adapter(new_adapter(config, task, "grasp"), config, task, "", silent)
    cards = [found["converters"], found["injection"][0].card]
    assert [(card.tile.rows, card.converters.adc_bits) for card in cards] == [(128, 3)] * 2


@pytest.mark.parametrize("change", [{"clip": 1.5}, {"rescale": 0.5}, {"calibrate": 90.0}])
def test_simulated_chips_are_mapped_as_measured_ones(settings, tmp_path, change):
    found = []
    for name, given in (("plain", {}), ("changed", change)):
        run = compare(tmp_path / name, **settings | FEW | STAGE | given)
        found.append(adapter_hash(run.directory / "adapters/grasp"))
    assert found[0] != found[1]


def test_adapters_are_distilled_on_the_devices_of_the_run(settings, tmp_path):
    asked = settings | FEW
    own = compare(tmp_path / "own", **asked | STAGE)
    named = compare(tmp_path / "named", **asked | STAGE | {"then": "pcm-hermes-2@0s..1d"})
    plain = compare(tmp_path / "plain", **asked)
    hashes = [adapter_hash(run.directory / "adapters/grasp") for run in (own, named, plain)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert own.measurements == named.measurements != plain.measurements
    log = (own.directory / "run.log").read_text()
    assert "training grasp, on simulated chips" in log
    for file in ("summary.md", "report.html"):
        text = (own.directory / file).read_text()
        assert "distilled on simulated chips, on glue/stsb" in text
        assert "in 2 steps, on simulated chips, none of them measured, of pcm-hermes-2@0s..1d" in (
            text.replace("\\", "")
        )
        assert "simulated chips" not in (plain.directory / file).read_text()


def test_a_run_grows_but_not_beyond_what_its_adapters_were_distilled_on(task, tmp_path):
    config = resolve(FEW | STAGE)
    open_run(tmp_path, config, task)
    assert read_run(tmp_path)[0] == config
    more = open_run(tmp_path, config.replace(repeats=2, times=("1h",)), task)
    assert more.run.times == ("1d", "0s", "1h")
    for change in ({"times": ("1y",)}, {"devices": ("ideal",)}):
        with pytest.raises(ValueError, match=r"trained for pcm-hermes-2@0s..1d: .* with drift"):
            open_run(tmp_path, config.replace(**change), task)


def test_a_model_that_is_trained_whole_has_the_first_stage_alone(settings, tmp_path):
    whole = {"adapters": ("full",), "placement": "folded", "groups": None}
    with pytest.warns(UserWarning, match="full trains the whole model, .* second stage"):
        compare(tmp_path / "run", **settings | FEW | STAGE | whole)
