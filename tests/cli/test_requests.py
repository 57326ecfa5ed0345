"""Each wrong request ends with status 2 and one sentence that names what is wrong with it."""

import errno

import pytest

from analog_grasp.cli import runs
from analog_grasp.study import api as studies


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--task", "reviewz"], "'reviews'"),
        (["--devices", "pcm-hermes-3"], "pcm-hermes-2"),
        (["--devices", "cards/mine.toml"], "cards/mine.toml"),
        (["--devices", ""], "devices"),
        (["--devices", "ideal,ideal"], "ideal"),
        (["--adapters", "grisp"], "'grasp'"),
        (["--adapters", "no/such/adapter"], "no/such/adapter"),
        (["--placement", "floating"], "'digital', 'folded' or 'programmed'"),
        (["--programming-error", "learned"], "programmed"),
        (["--times", "1parsec"], "parsec"),
        (["--times", "-3s"], "negative"),
        (["--repeats", "0"], "repeats"),
        (["--groups", "17"], "groups is 17"),
        (["--groups", "0"], "groups"),
        (["--seed", "-1"], "seed"),
        (["--engine", "abacus"], "'local' or 'ray'"),
        (["--ray-address", "auto"], "engine ray"),
        (["--workers", "0"], "workers"),
        (["--until-ci", "0"], "until_ci"),
        (["--repeats-limit", "7"], "until_ci"),
        (["--quiet", "--verbose"], "--quiet"),
        (["--target-modules", "qwerty"], "qwerty"),
        (["--noise-target", "pcm-hermes-2"], "pcm-hermes-2@1d"),
        (["--noise-target", "nan"], "noise_target"),
        (["--sampling", "coin"], "sampling"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--modle", "x"], "--model"),
    ],
)
def test_wrong_requests_of_compare(error_of, tiny, tmp_path, options, named):
    out = tmp_path / "run"
    assert named in error_of("compare", *tiny, "--out", out, *options)
    assert not out.exists()


def test_data_that_is_not_there(error_of, model_folder, tmp_path):
    asked = ["--model", model_folder, "--task", "glue/sst2", "--data-dir", tmp_path]
    assert "train.tsv" in error_of("compare", *asked, "--out", tmp_path / "run")


def test_folder_of_another_run(error_of, small_run, finished):
    sentence = error_of(*small_run, "--seed", "3", "--out", finished)
    assert str(finished) in sentence
    assert "seed is 0 and not 3" in sentence


def test_folders_that_cannot_be_used(error_of, small_run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    for folder in (tmp_path, tmp_path / "thesis.tex" / "run"):
        assert str(folder) in error_of(*small_run, "--out", folder)


@pytest.mark.parametrize(
    ("text", "named"),
    [("repeats = ", "not valid TOML"), ("repeat = 3", "'repeat'"), ("repeats = 0", "repeats")],
)
def test_config_file_that_is_wrong(error_of, small_run, tmp_path, text, named):
    config = tmp_path / "run.toml"
    config.write_text(text)
    given = small_run[: small_run.index("--repeats")]
    assert named in error_of(*given, "--config", config, "--out", tmp_path / "run")


def test_config_file_that_is_not_there(error_of, tmp_path):
    assert "my.toml" in error_of("compare", "--config", tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ("deploy no/adapter", "no/adapter holds no adapter: it should hold adapter_config.json"),
        ("drift no/adapter", "no/adapter holds no adapter: it should hold adapter_config.json"),
        ("deploy", "ADAPTER_FOLDER"),
        ("train", "--adapter"),
        ("train --adapter grisp", "'grasp'"),
        ("report no/run", "no/run holds no run: it should hold run.toml"),
        ("devices rram-wan", "rram-wan2022"),
        ("comparee", "'compare'"),
        ("adapters more", "Extra argument: more. See analog-grasp adapters --help."),
        ("compare --repeats many", "repeats is 'many': it should be a valid integer."),
        ("compare --model", "'--model' requires an argument. See analog-grasp compare --help."),
    ],
)
def test_wrong_requests(error_of, tmp_path, monkeypatch, request_, named):
    monkeypatch.chdir(tmp_path)
    assert named in error_of(*request_.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", "{"),
        ("adapter_config.json", "{}"),
        ("adapter_model.safetensors", ""),
    ],
)
def test_damaged_adapter(error_of, finished, tiny, tmp_path, file, content):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for source in (finished / "adapters" / "grasp").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / file).write_text(content)
    assert str(folder / file) in error_of("deploy", folder, *tiny)


def test_train_writes_over_nothing(error_of, tiny, finished):
    assert str(finished) in error_of("train", "--adapter", "grasp", *tiny, "--out", finished)


def test_debug_shows_where(ag):
    ended = ag("devices", "rram-wan", "--debug")
    assert ended.status == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")


def test_unexpected_error_is_named(ag, finished, monkeypatch):
    def broken(*_):
        raise KeyError("gone")

    monkeypatch.setattr(studies, "report", broken)
    ended = ag("report", finished)
    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert "KeyError" in line
    assert "--debug" in line


def test_full_disk_before_the_run_is_no_wrong_request(ag, small_run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "run.toml")

    monkeypatch.setattr(runs, "prepare", full)
    ended = ag(*small_run, "--out", tmp_path / "run")
    assert ended.status == 1
    assert "disk is full" in ended.err
