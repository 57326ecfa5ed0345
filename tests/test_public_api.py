"""The public names, and the example of the design as it is written there."""

import inspect

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import analog_grasp as ag
from analog_grasp.tasks import builtin, load_base_model, register_task, tokenizer_for

NAMES = {
    "GraspConfig",
    "StochGraspConfig",
    "DeviceCard",
    "deploy",
    "Deployment",
    "train",
    "load_task",
    "compare",
    "drift_sweep",
}


@pytest.fixture(scope="module")
def task():
    return builtin.reviews(train=24, validation=16)


@pytest.fixture(scope="module")
def model_folder(task, tmp_path_factory):
    """A tiny model of random weights that reads with the built-in model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizer_for(load_base_model(None, task))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base_model(model_folder, task):
    return load_base_model(str(model_folder), task)


def test_the_names_are_there_and_documented():
    assert set(ag.__all__) >= NAMES
    for name in ag.__all__:
        assert inspect.getdoc(getattr(ag, name)), name


def test_the_example_of_the_design(base_model, task):
    from peft import get_peft_model

    config = ag.StochGraspConfig(
        task_type="SEQ_CLS",
        groups=16,
        target_modules="all-linear",
        noise_weight=1.0,
        noise_target="pcm-hermes-2@1d",
    )
    model = get_peft_model(base_model, config)
    ag.train(model, task, injection=0.04)

    card = ag.DeviceCard.load("rram-wan2022")
    deployment = ag.deploy(model, card, placement="digital")
    deployment.program(seed=0)
    deployment.drift_to("30d")
    score = task.evaluate(deployment.model)

    assert isinstance(deployment, ag.Deployment)
    assert deployment.time_s == 30 * 86_400
    assert 0 <= score <= 1
    # The caller's model stays digital: what it computes is free of noise.
    assert (task.predict(model) == task.predict(model)).all()
    assert (task.predict(deployment.model) != task.predict(model)).any()


def test_an_adapter_of_the_example_saves_loads_and_merges(base_model, model_folder, task, tmp_path):
    from peft import PeftModel, get_peft_model

    model = get_peft_model(base_model, ag.GraspConfig(task_type="SEQ_CLS", groups=4))
    ag.train(model, task, epochs=1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_base_model(str(model_folder), task), tmp_path)
    assert (task.predict(loaded) == task.predict(model)).all()
    merged = loaded.merge_and_unload()
    assert task.predict(merged) == pytest.approx(task.predict(model), abs=1e-4)


def test_a_comparison_and_a_drift_sweep_of_its_adapters(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {
        "model": str(model_folder),
        "devices": ("pcm-hermes-2",),
        "times": ("0s", "1y"),
        "repeats": 2,
    }
    register_task("few-sentences", lambda _: builtin.reviews(24, 16))
    compared = ag.compare("out", task="few-sentences", epochs=1, groups=4, **small)
    assert {path.name for path in compared.directory.iterdir()} >= {
        "run.toml",
        "results.sqlite",
        "results.csv",
        "summary.md",
        "accuracy_vs_drift.png",
        "accuracy_vs_drift.svg",
        "report.html",
        "adapters",
    }
    header, *rows = (compared.directory / "results.csv").read_text().splitlines()
    assert header == "task,metric,adapter,placement,device,time_s,repeat,seed,value"
    assert len(rows) == len(compared.measurements) == 2 * 2 * 2

    swept = ag.drift_sweep(["out/adapters/stochgrasp"], "swept", task="few-sentences", **small)
    assert swept.measurements == [m for m in compared.measurements if m.adapter == "stochgrasp"]


def test_a_drift_sweep_over_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter: it should hold adapter_config"):
        ag.drift_sweep([tmp_path], tmp_path / "swept")
