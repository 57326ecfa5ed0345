"""Training one adapter."""

import sys

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file
from small_models import same_bits

from analog_grasp.cli import runs
from analog_grasp.study import trained_adapters
from analog_grasp.training import AdapterTrainer


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


def test_train_writes_into_the_folder_that_it_runs_in(ag, tiny, tmp_path, monkeypatch):
    folders = [tmp_path / "mine", tmp_path / "other" / "sub"]
    for folder, out in zip(folders, (".", ".."), strict=True):
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        ended = ag("train", "--adapter", "head", *tiny, "--epochs", "1", "--out", out)
        assert ended.status == (0 if out == "." else 2), ended.err
    assert PeftConfig.from_pretrained(str(folders[0])).peft_type == "LORA"
    assert f"The output {tmp_path / 'other'} is not empty" in ended.err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other"}


def test_train_writes_into_a_folder_that_is_a_link(ag, tiny, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to("own")
    ended = ag("train", "--adapter", "head", *tiny, "--epochs", "1", "--out", tmp_path / "link")
    assert ended.status == 0, ended.err
    assert PeftConfig.from_pretrained(str(tmp_path / "own")).peft_type == "LORA"
    assert {path.name for path in tmp_path.iterdir()} == {"own", "link"}


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

    monkeypatch.setattr(runs, "save_adapter", full)
    out = tmp_path / "mine"
    ended = ag("train", "--adapter", "head", *tiny, "--epochs", "1", "--out", out)
    assert ended.status == 1
    assert "disk is full" in ended.err
    assert list(out.rglob("*")) == []
    # What was learned is not lost: the same command resumes from the last checkpoint.
    assert {path.name for path in tmp_path.iterdir()} == {"mine", ".mine.training"}
    monkeypatch.undo()
    ended = ag("train", "--adapter", "head", *tiny, "--epochs", "1", "--out", out)
    assert ended.status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_interrupted_training_is_reported(ag, tiny, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_adapter", stopped)
    ended = ag("train", "--adapter", "head", *tiny, "--out", tmp_path / "mine")
    assert ended.status == 1
    assert ended.err == (
        f"Interrupted: checkpoints are kept in {tmp_path / '.mine.training'}; the same command "
        "resumes from the last.\n"
    )


def test_the_same_command_resumes_an_interrupted_training(
    ag, error_of, tiny, tmp_path, monkeypatch
):
    asked = ["--adapter", "stochgrasp", *tiny, "--batch-size", "8", "--epochs", "3"]
    asked += ["--groups", "4", "--injection", "pcm-hermes-2@1d", "--converters", "pcm-hermes-2"]
    assert ag("train", *asked, "--out", tmp_path / "whole").status == 0
    saved = AdapterTrainer._save_checkpoint

    def killed_after_the_second(trainer, *args):
        saved(trainer, *args)
        if trainer.state.global_step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(AdapterTrainer, "_save_checkpoint", killed_after_the_second)
    given = [*asked, "--out", tmp_path / "mine"]
    assert ag("train", *given, "--save-steps", "3").status == 1
    monkeypatch.undo()
    assert "whose groups is 4 and not 8" in error_of("train", *given, "--groups", "8")
    seen = []
    stepped = AdapterTrainer.training_step
    monkeypatch.setattr(
        AdapterTrainer,
        "training_step",
        lambda *args, **more: seen.append(1) or stepped(*args, **more),
    )
    assert ag("train", *given).status == 0
    assert len(seen) == 12 - 6
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "mine")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "mine"}


def test_a_model_trained_whole_is_the_teacher(ag, error_of, tiny, tmp_path, monkeypatch):
    given = [*tiny, "--batch-size", "8", "--epochs", "1"]
    teacher = tmp_path / "teacher"
    assert ag("train", "--adapter", "full", *given, "--out", teacher).status == 0
    asked = ["--adapter", "lora", *given, "--teacher", teacher, "--out"]
    saved = AdapterTrainer._save_checkpoint

    def killed(trainer, *args):
        saved(trainer, *args)
        raise KeyboardInterrupt

    assert ag("train", *asked, tmp_path / "whole").status == 0
    monkeypatch.setattr(AdapterTrainer, "_save_checkpoint", killed)
    assert ag("train", *asked, tmp_path / "mine", "--save-steps", "1").status == 1
    monkeypatch.undo()
    weights = (teacher / "model.safetensors").read_bytes()
    (teacher / "model.safetensors").write_bytes(weights[:-4] + bytes(4))
    assert "holds another training, with other content of the teacher" in error_of(
        "train", *asked, tmp_path / "mine"
    )
    (teacher / "model.safetensors").write_bytes(weights)
    assert ag("train", *asked, tmp_path / "mine").status == 0
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "mine")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_best_epoch_on_a_device_is_kept(ag, tiny, tmp_path):
    given = ["--evaluate-on", "pcm-hermes-2@1d", "--gradient-accumulation-steps", "2", "--bf16"]
    given += ["--groups", "4", "--epochs", "2", "--batch-size", "8", "--out", tmp_path / "mine"]
    assert ag("train", "--adapter", "grasp", *tiny, *given).status == 0


@pytest.mark.parametrize(
    ("adapter", "option", "value", "sentence"),
    [
        ("grasp", "injection", "pcm-hermes-2", "injection is 'pcm-hermes-2': "),
        ("grasp", "injection", "-1", "injection is"),
        ("grasp", "evaluate-on", "pcm-hermes-2@soon", "soon"),
        ("grasp", "evaluate-on", "hermes@1d", "hermes"),
        ("grasp", "injection", "pcm-hermes-2@1y..1h", "reversed range of ages"),
        ("grasp", "then", "pcm-hermes-2@1y..1h", "then is 'pcm-hermes-2@1y..1h': "),
        ("grasp", "then", "pcm-hermes-2@1h,hermes@1h", "Unknown device 'hermes'"),
        ("grasp", "then", "devices", "then is devices, of which train has none: name them"),
        ("grasp", "start-from", "/nothing", "/nothing holds no adapter"),
        ("lora", "teacher", "/nothing", "/nothing holds no adapter"),
        ("grasp", "converters", "ideal", "converters is 'ideal', a device whose card states no"),
        ("lora", "sampling", "weight", "which has no effect on lora: it applies to"),
        ("lora", "groups", "4", "which has no effect on lora: it applies to"),
        ("lora", "noise-weight", "2", "which has no effect on lora: it applies to"),
        ("full", "then", "ideal@0s", "has no adapter to distil"),
    ],
)
def test_wrong_settings_are_found_before_the_training(
    error_of, tiny, tmp_path, adapter, option, value, sentence
):
    asked = ["--adapter", adapter, *tiny, "--out", tmp_path / "mine", f"--{option}", value]
    assert sentence in error_of("train", *asked)
    assert not (tmp_path / "mine").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="locks of another kind")
def test_a_folder_into_which_another_process_trains(error_of, tiny, tmp_path):
    import fcntl

    checkpoints = tmp_path / ".mine.training"
    checkpoints.mkdir()
    asked = ["train", "--adapter", "head", *tiny, "--epochs", "1", "--out", tmp_path / "mine"]
    with (checkpoints / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "Another process is training into" in error_of(*asked)
        assert not any((tmp_path / "mine").iterdir())


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture
def trained(ag, tiny, tmp_path):
    """Return a function that trains an adapter into a folder by the command."""

    def train(name, *given, adapter="grasp", epochs="1"):
        out = tmp_path / name
        asked = ["--adapter", adapter, *tiny, "--epochs", epochs, "--batch-size", "8"]
        ended = ag("train", *asked, *given, "--out", out)
        assert ended.status == 0, ended.err
        return out

    return train


def test_a_second_stage_resumes_after_the_first(ag, tiny, trained, tmp_path, monkeypatch):
    given = ["--groups", "4", "--then", "pcm-hermes-2@0s..1y,rram-wan2022@1d", "--then-steps", "4"]
    whole, first = trained("whole", *given), trained("first", "--groups", "4")
    assert not same_bits(weights(whole), weights(first))

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trained_adapters, "distil", stopped)
        asked = ["--adapter", "grasp", *tiny, "--epochs", "1", "--batch-size", "8", *given]
        assert ag("train", *asked, "--out", tmp_path / "mine").status == 1
    assert same_bits(weights(trained("mine", *given)), weights(whole))


def test_injection_may_vary_from_batch_to_batch(trained):
    varied = trained("varied", "--groups", "4", "--injection", "pcm-hermes-2@1h..1y x1.5,ideal@0s")
    again = trained("again", "--groups", "4", "--injection", "pcm-hermes-2@1h..1y x1.5,ideal@0s")
    assert same_bits(weights(varied), weights(again))
    assert not same_bits(weights(varied), weights(trained("fixed", "--groups", "4")))


def test_stochgrasp_starts_from_a_trained_grasp(trained, error_of, tiny, tmp_path):
    first = trained("first", "--groups", "4")
    # A learning rate at which nothing is learned shows the start.
    still = ["--learning-rate", "1e-12", "--start-from", first, "--groups"]
    second = weights(trained("second", *still, "4", adapter="stochgrasp"))
    for name, value in weights(first).items():
        torch.testing.assert_close(second[name.replace(".grasp_", ".stochgrasp_")], value)
    asked = ["--adapter", "stochgrasp", *tiny, "--out", tmp_path / "third", *still, "2"]
    assert "has groups 4 and cannot start one with 2" in error_of("train", *asked)


def test_the_second_stage_of_train_may_have_the_devices_of_a_file(trained, tmp_path):
    config = tmp_path / "best.toml"
    config.write_text('devices = ["ideal"]\ntimes = ["0s"]\nthen = ["devices"]\nthen_steps = 2')
    own = weights(trained("own", "--config", config))
    assert same_bits(own, weights(trained("named", "--then", "ideal@0s", "--then-steps", "2")))
