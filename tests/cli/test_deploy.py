"""Deploying one adapter, and showing what adapters have learned."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import analog_grasp
from analog_grasp.cli.runs import _sensitivity_table
from analog_grasp.crossbar.export import read_chip
from analog_grasp.crossbar.write_tolerance import (
    learned_tolerances,
    mean_pulses,
    set_write_tolerances,
)
from analog_grasp.study.trained_adapters import load_adapter
from analog_grasp.tasks import load_task

CARDS = Path(__file__).parents[2] / "device_models"


@pytest.fixture(scope="session")
def adapter(finished):
    return finished / "adapters" / "grasp"


@pytest.fixture
def deploy(ag, adapter, tiny, tmp_path):
    """Deploys the adapter, and returns how it ended with what deployment.json holds."""

    def run(*arguments):
        ended = ag("deploy", adapter, *tiny, "--out", tmp_path, *arguments)
        assert ended.status == 0, ended.err
        return ended, json.loads((tmp_path / "deployment.json").read_text())

    return run


def test_scores_tiles_and_errors_are_shown(deploy):
    ended, _ = deploy("--device", "pcm-hermes-2", "--time", "1d", "--seed", "3")
    lines = ended.out.splitlines()
    assert lines[0].startswith("digital: accuracy (%) ")
    assert lines[1].startswith("on pcm-hermes-2 at 1d, chip 3: accuracy (%) ")
    assert lines[2].startswith("tiles: 7 of 256 x 256 weights, ")
    assert "of the weights are on tiles; digital: bert.embeddings.position_embeddings" in lines[3]
    assert "error at 0s" in ended.out
    assert "error at 1d" in ended.out
    assert "bert.encoder.layer.0.attention.self.query" in ended.out


def test_the_file_holds_what_is_shown(deploy):
    _, written = deploy("--device", "pcm-nandakumar2019", "--time", "1y", "--adc-bits", "6")
    assert written["device"] == "pcm-nandakumar2019"
    assert written["time_s"] == 365 * 86400
    assert written["settings"] == {"adc_bits": 6}
    assert set(written["scores"]) == set(written["digital"]) == {"accuracy"}
    assert len(written["layers"]) == 7
    for layer in written["layers"]:
        assert 0 < layer["programmed_error"] < layer["weight_error"]
        assert 0 < layer["use"] <= 1
    assert written["sensitivity"] is None
    on_tiles = sum(layer["cells"] for layer in written["layers"])
    digital = sum(module["weights"] for module in written["digital_modules"])
    assert written["share_on_tiles"] == on_tiles / (on_tiles + digital)


def test_costs_are_shown_and_written(deploy):
    ended, written = deploy("--costs", "hermes-1phase", "--tiles", "3")
    assert "IBM HERMES Project Chip" in ended.out
    assert "3 of 7 tiles: " in ended.out
    rows = {row["quantity"]: row for row in written["costs"]}
    assert rows["tiles"]["value"] == 7
    assert rows["energy, tile reads"]["value"] > 0
    # HERMES's sources do not state the time to rewrite its tiles.
    assert rows["latency"]["value"] is None


def test_the_costs_of_a_published_chip_are_the_default(deploy, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('costs = ["neurram"]\ntiles = 3\n')
    assert "IBM HERMES Project Chip" in deploy()[0].out
    assert "3 of 7 tiles: " in deploy("--config", file)[0].out


def test_the_device_and_the_time_of_a_config_file_are_used(
    deploy, error_of, adapter, tiny, tmp_path
):
    file = tmp_path / "mine.toml"
    file.write_text('devices = ["rram-wan2022"]\ntimes = ["1y"]\n')
    assert "on rram-wan2022 at 1y, chip 0" in deploy("--config", file)[0].out
    assert "on ideal at 1y, chip 0" in deploy("--config", file, "--device", "ideal")[0].out
    file.write_text('devices = ["ideal", "rram-wan2022"]\ntimes = ["1d", "1y"]\n')
    asked = ("deploy", adapter, *tiny, "--config", file)
    assert "states 2 devices, ideal, rram-wan2022, and a deployment has one" in error_of(*asked)
    assert "states 2 times, 1d, 1y, " in error_of(*asked, "--device", "ideal")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--write-tolerance", "0.1", "--no-programming-noise"], "without programming noise"),
        (["--placement", "programmed", "--programming-error", "learned", "--no-programming-noise"],
         "which has no effect without programming noise"),
        (["--sensitivity", "analog", "--placement", "programmed", "--weights", "digital"],
         "--sensitivity has no effect with weights digital"),
    ],
)  # fmt: skip
def test_options_without_effect_are_errors(error_of, adapter, tiny, options, sentence):
    assert sentence in error_of("deploy", adapter, *tiny, "--device", "rram-wan2022", *options)


def test_a_model_whose_costs_cannot_be_estimated_is_measured(deploy, monkeypatch):
    def fails(*_):
        raise ValueError("The inputs of the T5 are those of an encoder and a decoder.")

    monkeypatch.setattr("analog_grasp.cli.runs.sequence_costs", fails)
    ended, written = deploy()
    assert (ended.status, written["costs"]) == (0, [])
    assert "note: The costs of this model cannot be estimated: The inputs of the T5" in ended.err


def test_the_same_chip_gives_the_same(deploy):
    given = ["--time", "30d", "--seed", "3"]
    assert deploy(*given)[1] == deploy(*given)[1]


def test_an_ideal_chip_has_the_digital_score_and_no_error(deploy):
    _, written = deploy("--device", "ideal", "--time", "10y")
    assert written["scores"] == written["digital"]
    assert all(layer["weight_error"] == 0 for layer in written["layers"])


def test_the_fast_precision_rounds_the_weights(deploy):
    _, written = deploy("--device", "ideal", "--precision", "fast")
    assert all(0 < layer["weight_error"] < 2**-9 for layer in written["layers"])


@pytest.mark.parametrize("placement", ["folded", "programmed"])
def test_every_placement(deploy, placement):
    assert deploy("--placement", placement)[1]["placement"] == placement


def test_effects_can_be_switched_off(deploy):
    off = ("--no-programming-noise", "--no-drift", "--no-read-noise")
    _, written = deploy("--device", "pcm-hermes-2", "--time", "1y", *off)
    # What is left is the converters' noise in the read-out of the drift compensation.
    assert all(layer["weight_error"] < 0.01 for layer in written["layers"])
    assert written["settings"] == {"programming_noise": False, "drift": False, "read_noise": False}


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        (("--tile-size", "8"), lambda w: w["tile"] == [8, 8]),
        (("--stuck-off", "0.2"), lambda w: w["layers"][0]["programmed_error"] > 0.1),
        (("--die-to-die", "0.1"), lambda w: w["settings"] == {"die_to_die": 0.1}),
        (("--output-noise", "0.5"), lambda w: w["settings"] == {"output_noise": 0.5}),
        (("--g-max", "10"), lambda w: w["settings"] == {"g_max": 10.0}),
        (("--drift-compensation", "none"), lambda w: True),
        (("--calibrate", "99"), lambda w: w["settings"] == {"calibrate": 99.0}),
        (("--precision", "fast"), lambda w: w["settings"] == {"precision": "fast"}),
        (("--rescale", "0.5"), lambda w: w["settings"] == {"rescale": 0.5}),
        (("--clip", "2.5"), lambda w: w["settings"] == {"clip": 2.5}),
        (("--clip", "least-error"), lambda w: w["settings"] == {"clip": "least-error"}),
        (("--calibrate", "least-error"), lambda w: w["settings"] == {"calibrate": "least-error"}),
        (("--output-ranges", "99.9"), lambda w: w["settings"] == {"output_ranges": 99.9}),
        (("--first-token", "digital"), lambda w: w["settings"] == {"first_token": "digital"}),
        (("--layers", "query,value"), lambda w: len(w["layers"]) == 2),
    ],
)
def test_the_hardware_can_be_changed(deploy, given, differs):
    assert differs(deploy("--device", "pcm-hermes-2", *given)[1])


@pytest.mark.parametrize("alone", ["analog", "digital"])
def test_sensitivity_is_one_score_a_layer(deploy, alone):
    ended, written = deploy("--sensitivity", alone)
    names = {layer["name"] for layer in written["layers"]}
    assert set(written["sensitivity"]["scores"]) == names
    assert "Each layer alone" in ended.out


@pytest.mark.parametrize(
    ("alone", "metric", "first"),
    [
        ("analog", "accuracy", "low"),
        ("digital", "accuracy", "high"),
        ("analog", "perplexity", "high"),
        ("digital", "perplexity", "low"),
    ],
)
def test_the_layer_that_costs_most_is_the_first(alone, metric, first):
    scores = {"middle": 0.5, "low": 0.2, "high": 0.8}
    table = _sensitivity_table({"alone": alone, "metric": metric, "scores": scores})
    assert [row[0] for row in table.rows][::2] == [first, "low" if first == "high" else "high"]


@pytest.mark.parametrize("placement", ["digital", "folded"])
def test_an_exported_chip_is_the_model(deploy, tmp_path, data_dir, placement):
    path = tmp_path / "chip.safetensors"
    given = ("--device", "rram-wan2022", "--placement", placement)
    _, written = deploy(*given, "--export", path)
    task = load_task("glue/sst2", data_dir)
    again = read_chip(path)
    assert task.scores(again) == written["digital"]
    with safe_open(path, "pt") as file:
        assert "rram-wan2022" in file.metadata()["card"]


@pytest.fixture
def deploy_learned(ag, finished, tiny, tmp_path):
    """Deploys the StochGRASP adapter with an export; returns the output, the file and tensors."""

    def run(*arguments):
        given = ("--device", "rram-wan2022", "--out", tmp_path, *arguments)
        chip = tmp_path / "chip.safetensors"
        folder = finished / "adapters" / "stochgrasp"
        ended = ag("deploy", folder, *tiny, *given, "--export", chip)
        assert ended.status == 0, ended.err
        written = json.loads((tmp_path / "deployment.json").read_text())
        tensors = {n: t for n, t in load_file(chip).items() if n.endswith(".tolerance.weight")}
        return ended.out, written, tensors

    return run


def test_learned_write_tolerances_are_programmed_and_exported(
    deploy_learned, finished, tiny, data_dir
):
    out, written, exported = deploy_learned("--write-tolerance", "learned")
    task = load_task("glue/sst2", data_dir)
    chip = analog_grasp.deploy(
        load_adapter(finished / "adapters" / "stochgrasp", tiny[1], task), "rram-wan2022"
    )
    expected = learned_tolerances(chip)
    set_write_tolerances(chip, expected).program(0)
    assert {f"{name}.tolerance.weight" for name in expected} == exported.keys()
    for name, tolerance in expected.items():
        torch.testing.assert_close(exported[f"{name}.tolerance.weight"], tolerance)
    pulses = mean_pulses(chip)
    assert written["write_tolerance"] == "learned"
    assert written["pulses_per_device"] == pytest.approx(pulses)
    assert f"write tolerance learned: {pulses:.2f} pulses per device" in out
    errors = [layer["programmed_error"] for layer in written["layers"]]
    assert errors == pytest.approx([layer.weight_error for layer in chip.report()])


def test_one_write_tolerance_for_all_weights(deploy_learned):
    given = ("--placement", "folded", "--costs", "neurram")
    out, written, exported = deploy_learned("--write-tolerance", "0.1", *given)
    assert "write tolerance 0.1: 2.25 pulses per device" in out
    rows = {row["quantity"]: row["value"] for row in written["costs"]}
    assert (
        rows["pulses per device"] == written["pulses_per_device"] == pytest.approx(2.25, abs=0.01)
    )
    assert (written["write_tolerance"], len(exported)) == (0.1, 7)
    assert all(tolerance == torch.tensor(0.1) for tolerance in exported.values())
    _, plain, none = deploy_learned("--placement", "folded")
    assert (plain["write_tolerance"], plain["pulses_per_device"], none) == (None, None, {})
    pairs = zip(written["layers"], plain["layers"], strict=True)
    assert all(loose["programmed_error"] > tight["programmed_error"] for loose, tight in pairs)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--device", "pcm"), "pcm-joshi2020"),
        (("--time", "soon"), "soon"),
        (("--placement", "floating"), "'digital', 'folded' or 'programmed'"),
        (("--model", "no/such/folder"), "no/such/folder"),
        (("--model", "sentence-transformers/all-MiniLM-L6-v2"), "another model"),
        (("--sensitivity", "both"), "'both' is not one of 'analog', 'digital'"),
        (("--placement", "programmed", "--programming-error", "learned"), "StochGRASP"),
        (("--adc-bits", "1"), "adc_bits"),
        (("--export", "/no/such/chip.safetensors"), "/no/such of the export"),
        (("--export", "/"), "is a folder"),
        (("--calibrate", "0"), "calibrate"),
        (("--clip", "most"), "clip"),
        (("--rescale", "1.5"), "rescale"),
        (("--layers", "nothing"), "matches no frozen linear layer"),
        (("--clip", "2", "--export", "chip.safetensors"), "clip has no effect on an exported chip"),
        (("--costs", "hermes"), "Unknown cost model 'hermes'. Did you mean 'hermes-"),
        (("--costs", "neurram,hermes-1phase"), "names 2 cost models for 1 device:"),
        (("--tiles", "4", "--costs", ""), "no effect without costs"),
        (("--write-tolerance", "tight"), "--write-tolerance is 'tight': give learned, or a number"),
        (("--write-tolerance", "0"), "--write-tolerance is '0'"),
        (("--write-tolerance", "nan"), "--write-tolerance is 'nan'"),
        (("--write-tolerance", "0.1"), "pcm-hermes-2, whose card states no program-and-verify"),
        (
            ("--write-tolerance", "learned", "--device", "rram-wan2022"),
            "has no StochGRASP layer on tiles",
        ),
        (
            ("--write-tolerance", "1", "--placement", "programmed", "--weights", "digital"),
            "no effect with weights digital",
        ),
        (("--precision", "int8"), "precision"),
        (("--stuck-off", "0.7", "--stuck-on", "0.7"), "stuck"),
    ],
)
def test_what_cannot_be_deployed_is_an_error(error_of, adapter, tiny, given, sentence, tmp_path):
    assert sentence in error_of("deploy", adapter, *tiny, "--out", tmp_path / "new", *given)


def test_the_mapping_of_a_card_can_be_switched_off(deploy, error_of, adapter, tiny, tmp_path):
    card = (CARDS / "ideal.toml").read_text().replace('"ideal"', '"mine"')
    device = tmp_path / "mine.toml"
    device.write_text(f"{card}\n[mapping]\nclip = 1.0\n")
    given = ("--device", device, "--export", tmp_path / "chip")
    assert "states clip (section mapping)" in error_of("deploy", adapter, *tiny, *given)
    assert deploy(*given, "--no-mapping")[1]["settings"] == {"mapping": False}
    assert (tmp_path / "chip").is_file()


def test_a_card_with_a_comma_in_its_path(ag, adapter, tiny, tmp_path):
    card = (CARDS / "ideal.toml").read_text().replace('"ideal"', '"mine"')
    (tmp_path / "mine,1.toml").write_text(card)
    device = tmp_path / "mine,1.toml"
    out = tmp_path / "run"
    assert ag("deploy", adapter, *tiny, "--device", device, "--out", out).status == 0
    few = ["--devices", f"{device},gaussian", "--times", "0s", "--repeats", "1"]
    assert ag("drift", adapter, *tiny, *few, "--out", out / "drift").status == 0
    with (out / "drift" / "results.csv").open() as file:
        assert {row["device"] for row in csv.DictReader(file)} == {"mine", "gaussian"}


@pytest.fixture(scope="module")
def learned(finished):
    return [finished / "adapters" / name for name in ("grasp", "stochgrasp")]


def test_trained_adapters_are_shown_side_by_side(ag, learned, tmp_path):
    out = tmp_path / "shown"
    ended = ag("inspect", *learned, "--out", out)
    assert (ended.status, ended.err) == (0, "")
    for text in ("grasp, K = 4", "stochgrasp, K = 4", "sigma of the shift", "attention.self.query"):
        assert text in ended.out
    assert ended.out.count("all layers ") >= 4
    written = {line.removeprefix("wrote ") for line in ended.out.splitlines() if "wrote " in line}
    assert written == {str(path) for path in out.iterdir()}
    assert len(written) == 5


def test_nothing_is_written_unless_asked(ag, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ag("inspect", learned[0]).status == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_without_an_adapter_is_an_error(error_of, tmp_path):
    assert "holds no adapter" in error_of("inspect", tmp_path)
