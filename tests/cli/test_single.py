"""Training one adapter, and deploying it."""

import pytest
from peft import PeftConfig

from analog_grasp.cli import single


@pytest.fixture(scope="session")
def adapter(finished):
    return finished / "adapters" / "grasp"


def test_train_writes_a_folder_that_peft_reads(ag, tiny, tmp_path, model_folder):
    out = tmp_path / "adapters" / "mine"
    given = ["--groups", "4", "--epochs", "1", "--batch-size", "8"]
    ended = ag("train", "--adapter", "stochgrasp", *tiny, *given, "--out", out)
    assert ended.status == 0
    config = PeftConfig.from_pretrained(str(out))
    assert config.base_model_name_or_path == str(model_folder)
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert "stochgrasp: 112 adapter parameters, 34 of the task head" in ended.out
    assert "digital: accuracy (%)" in ended.out
    assert f"wrote {out}" in ended.out
    assert ag("deploy", out, *tiny[2:], "--device", "ideal").status == 0


def test_train_takes_a_config_file(ag, tiny, tmp_path):
    config = tmp_path / "my.toml"
    config.write_text('groups = 2\nepochs = 1\nadapters = ["stochgrasp"]\n')
    out = tmp_path / "mine"
    assert ag("train", "--adapter", "grasp", *tiny, "--config", config, "--out", out).status == 0
    assert PeftConfig.from_pretrained(str(out)).groups == 2


def test_training_that_fails_leaves_no_half_of_a_folder(ag, tiny, tmp_path, monkeypatch):
    def full(_, folder):
        folder.mkdir()
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(single, "save_adapter", full)
    out = tmp_path / "mine"
    ended = ag("train", "--adapter", "head", *tiny, "--epochs", "1", "--out", out)
    assert ended.status == 1
    assert "disk is full" in ended.err
    assert list(tmp_path.rglob("*")) in ([], [out])


def test_interrupted_training_says_so(ag, tiny, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(single, "train_adapter", stopped)
    ended = ag("train", "--adapter", "head", *tiny, "--out", tmp_path / "mine")
    assert ended.status == 1
    assert ended.err == "Interrupted: the command did not finish.\n"


def test_deploy_shows_scores_tiles_and_errors(ag, adapter, tiny):
    ended = ag("deploy", adapter, *tiny, "--device", "pcm-hermes-2", "--time", "1d", "--seed", "3")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert lines[0].startswith("digital: accuracy (%) ")
    assert lines[1].startswith("on pcm-hermes-2 at 1d, chip 3: accuracy (%) ")
    assert lines[2].startswith("tiles: 7 of 256 x 256 weights, ")
    assert "bert.encoder.layer.0.attention.self.query" in ended.out


def test_deploy_is_the_same_for_the_same_chip(ag, adapter, tiny):
    given = ["deploy", adapter, *tiny, "--time", "30d", "--seed", "3"]
    assert ag(*given).out == ag(*given).out


def test_ideal_chip_has_the_digital_score_and_no_error(ag, adapter, tiny):
    lines = ag("deploy", adapter, *tiny, "--device", "ideal", "--time", "10y").out.splitlines()
    assert lines[0].rpartition(" ")[2] == lines[1].rpartition(" ")[2]
    table = [line for line in lines if "bert." in line]
    assert len(table) == 7
    assert all("0.00%" in line for line in table)


def test_deploy_folded(ag, adapter, tiny):
    assert ag("deploy", adapter, *tiny, "--placement", "folded").status == 0


def test_adapter_of_another_model(refused, adapter, tiny):
    model = ["--model", "sentence-transformers/all-MiniLM-L6-v2"]
    assert "another model" in refused("deploy", adapter, *tiny[2:], *model)
