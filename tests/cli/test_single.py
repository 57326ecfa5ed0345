"""Training one adapter."""

from peft import PeftConfig

from analog_grasp.cli import single


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
    there = ["--device", "ideal", "--out", tmp_path / "deployment"]
    assert ag("deploy", out, *tiny[2:], *there).status == 0


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
