"""Adapters of a study: collapse warnings, loading, and adapter folders from untrusted sources."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from analog_grasp import deploy
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.provenance import open_run
from analog_grasp.study.study import prepare
from analog_grasp.study.trained_adapters import (
    adapter_names,
    load_adapter,
    new_adapter,
    save_adapter,
    train_adapter,
)
from analog_grasp.tasks import load_base_model


@pytest.fixture(scope="module")
def lora(task, settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "lora"
    save_adapter(new_adapter(resolve(settings), task, "lora"), folder)
    return folder


@pytest.fixture
def changed(lora, tmp_path):
    """Return a function that copies the adapter with other values in its configuration."""

    def make(**changes) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(lora, folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return make


def test_a_pickle_is_not_read(lora, tmp_path, settings, task):
    shutil.copy(lora / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"should hold .*adapter_model\.safetensors"):
        load_adapter(tmp_path, settings["model"], task)


@pytest.mark.parametrize(
    "kind",
    [
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2},
        {"peft_type": "XLORA", "adapters": {"0": "/somewhere"}, "hidden_size": 16},
    ],
    ids=str,
)
def test_kinds_that_read_other_files_raise(changed, settings, task, kind):
    folder = changed(**kind)
    with pytest.raises(ValueError, match=r"of the kind .*one that adapts layers, such as LoRA\."):
        load_adapter(folder, settings["model"], task)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # A matrix of a petabyte, for which no memory is allocated before the file is read.
        ({"r": 10**13}, "does not fit the model"),
        ({"target_modules": 3}, "does not fit the model"),
        ({"megatron_config": {}, "target_modules": "(", "megatron_core": "os"}, "does not fit"),
        ({"base_model_name_or_path": ["a"]}, "is not one that peft wrote"),
        ({"peft_type": "MINE"}, "is not one that peft wrote"),
        ({"task_type": "#" * (1 << 20)}, "is larger than 1 MiB"),
    ],
    ids=range(6),
)
def test_an_invalid_configuration_raises_one_sentence(changed, settings, task, change, words):
    folder = changed(**change)
    with pytest.raises(ValueError, match=words) as raised:
        load_adapter(folder, settings["model"], task)
    assert "\n" not in str(raised.value)


def test_a_configuration_nested_without_end(lora, tmp_path, settings, task):
    shutil.copytree(lora, tmp_path / "deep")
    (tmp_path / "deep" / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not one that peft wrote"):
        load_adapter(tmp_path / "deep", settings["model"], task)


@pytest.mark.parametrize(
    ("change", "problem"), [("drop", "it lacks base"), ("add", "it has 1 layers that")]
)
def test_an_adapter_with_other_layers_than_the_model_raises(
    config, finished_run, tmp_path, change, problem
):
    folder = tmp_path / "partial"
    shutil.copytree(finished_run / "adapters" / "grasp", folder)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "attention" in name)
    if change == "drop":
        del weights[name]
    else:
        weights[name.replace("layer.0", "layer.1")] = weights[name].clone()
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"partial does not fit the model .*{problem}"):
        prepare(config.replace(adapters=(str(folder),)), tmp_path / "run")


def test_an_adapter_for_another_task_raises(config, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit the model .* with the task reviews"):
        prepare(config.replace(task="reviews", data_dir=None), tmp_path / "run")


def test_a_loaded_adapter_is_ready_to_be_measured(finished_run, settings, task):
    again = replace(task, name="again")
    model = load_adapter(finished_run / "adapters" / "stochgrasp", settings["model"], again)
    assert isinstance(model, PeftModel)
    assert not model.training
    assert again.scores(model) == again.scores(model)


@pytest.mark.parametrize("adapter", ["grasp", "stochgrasp"])
def test_settings_reach_the_saved_configuration(settings, task, tmp_path, adapter):
    given = {"form": "normalize", "grouping": "strided"}
    if adapter == "stochgrasp":
        given |= {"noise_loss": "l2", "init_sigma": 0.2, "noise_target": 0.3}
    asked = {"plain": settings, "given": settings | given}
    saved = {}
    for name, each in asked.items():
        save_adapter(new_adapter(resolve(each), task, adapter), tmp_path / name)
        saved[name] = json.loads((tmp_path / name / "adapter_config.json").read_text())
    assert saved["given"] == saved["plain"] | given
    assert (saved["plain"]["form"], saved["plain"]["grouping"]) == ("affine", "contiguous")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"form": "normalize"}, "has the form 'normalize', which divides by values"),
        ({"sampling": "weight"}, "is sampled by weight, so that its parameters are in the folded"),
    ],
)
def test_a_saved_adapter_that_devices_cannot_store_raises(
    settings, task, tmp_path, given, sentence
):
    """Found before the run is made, as for an adapter that is yet to be trained."""
    saved = str(tmp_path / "saved")
    save_adapter(new_adapter(resolve(settings | given), task, "stochgrasp"), Path(saved))
    asked = {k: v for k, v in settings.items() if k in ("model", "task", "data_dir")}
    config = resolve(asked | {"adapters": (saved,), "placement": "programmed"})
    with pytest.raises(ValueError, match=sentence):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_adapter_starts_from_the_same_parameters(settings, task):
    # LoRA draws one of its matrices at random.
    first, second = (new_adapter(resolve(settings), task, "lora") for _ in range(2))
    found = [dict(model.named_parameters()) for model in (first, second)]
    name = next(name for name in found[0] if "lora_A" in name)
    assert found[0][name].abs().sum() > 0
    assert found[0][name].equal(found[1][name])


@pytest.mark.parametrize("task", ["reviews", "glue/stsb"])
def test_a_collapse_to_a_constant_prediction_warns(settings, task):
    data_dir = None if task == "reviews" else settings["data_dir"]
    little = {"epochs": 1, "learning_rate": 1e-12}
    config = resolve({**settings, **little, "task": task, "data_dir": data_dir})
    data = config.task.load()
    model = new_adapter(config, data, "grasp")
    head = model.get_base_model().classifier.modules_to_save["default"]
    torch.nn.init.zeros_(head.weight)
    text = rf"grasp predicts the same for \d+ training sentences of {task}: .* here 1e-12\)\."
    with pytest.warns(UserWarning, match=text):
        train_adapter(model, config, data, "training grasp", silent)
    # Where predictions differ there is no warning, however poor they are.
    torch.nn.init.normal_(head.weight, std=1e4)
    head.bias.data -= torch.from_numpy(np.median(data.predict(model, "train"), axis=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train_adapter(model, config, data, "training grasp", silent)


def test_no_file_allows_remote_code(tmp_path):
    config = tmp_path / "theirs.toml"
    config.write_text("trust_remote_code = true")
    with pytest.raises(ValueError, match="which no file may: remove it, and use --trust"):
        resolve({}, config)


def test_permission_for_remote_code_is_given_for_each_command(task, tmp_path):
    config = resolve({"trust_remote_code": True})
    assert config.replace(groups=2).model.trust_remote_code
    open_run(tmp_path / "run", config, task)
    assert "trust" not in (tmp_path / "run" / "run.toml").read_text()
    # A command that resumes the run may give it again, or not.
    open_run(tmp_path / "run", resolve({}), task)


def outputs(model, task):
    with torch.no_grad():
        return torch.as_tensor(task.predict(model, "validation"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", ["grasp", "lora", "head"])
def test_an_adapter_of_a_model_in_half_precision_loads_and_deploys(
    settings, task, tmp_path, dtype, adapter
):
    adapted = new_adapter(resolve(settings), task, adapter).to(dtype)
    save_adapter(adapted, tmp_path / "half")
    loaded = load_adapter(tmp_path / "half", settings["model"], task)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    expected = outputs(loaded, task)
    torch.testing.assert_close(expected, outputs(adapted.float(), task), atol=0.05, rtol=0.05)
    ideal = deploy(loaded, "ideal").program(0)
    torch.testing.assert_close(outputs(ideal.model, task), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian"])
def test_lora_that_starts_from_the_base_weights_loads(settings, task, tmp_path, start):
    base = load_base_model(task, settings["model"])
    before = outputs(base, task)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        target_modules=["value", "intermediate.dense"],
        r=4,
        init_lora_weights=start,
        modules_to_save=["classifier"],
    )
    adapted = get_peft_model(base, lora).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.add_(3.0)
    save_adapter(adapted, tmp_path / "lora")
    loaded = load_adapter(tmp_path / "lora", settings["model"], task)
    expected = outputs(adapted, task)
    torch.testing.assert_close(outputs(loaded, task), expected, atol=5e-6, rtol=0)
    assert (expected - before).abs().max() > 5e-5
    # The configuration states another rank than the file has.
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**13}))
    with pytest.raises(ValueError, match="does not fit the model"):
        load_adapter(tmp_path / "lora", settings["model"], task)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"has no layer that grasp can adapt \(No modules match\): use another model"),
        ({"target_modules": "all-linear"}, "has no layer that grasp can adapt"),
        ({"target_modules": ("qwerty",)}, "matches the target_modules 'qwerty'.*all-linear"),
    ],
)
def test_all_linear_is_only_suggested_where_it_was_not_used(
    settings, task, monkeypatch, given, sentence
):
    def adapt(*_, **__):
        raise NoMatchingPeftModuleError("No modules match")

    monkeypatch.setattr("analog_grasp.study.trained_adapters.adapt", adapt)
    with pytest.raises(ValueError, match=sentence):
        new_adapter(resolve(settings | given), task, "grasp")


def test_a_layer_that_is_not_linear_is_named(settings, task):
    config = resolve(settings | {"target_modules": ["word_embeddings"]})
    with pytest.raises(ValueError, match="Embedding cannot be modulated: target_modules must name"):
        new_adapter(config, task, "grasp")


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        ("runs/grasp-training-1", "has the name of a training of grasp, which is among the ada"),
        ("runs/mine+scheduled", r"mine\+scheduled ends in that of a treatment: rename its folder"),
        ("runs/mine+recalibrated-64", "ends in that of a treatment"),
        ("runs/grasp", "have the same name"),
    ],
)
def test_a_saved_adapter_with_a_name_of_this_run_raises(saved, sentence):
    with pytest.raises(ValueError, match=sentence):
        adapter_names(["grasp", saved])


def test_trainings_of_a_saved_run_can_be_compared():
    names = ["runs/grasp", "runs/grasp-training-1"]
    assert list(adapter_names(names)) == ["grasp", "grasp-training-1"]
