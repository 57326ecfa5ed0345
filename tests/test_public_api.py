"""Public names, registration with PEFT, and the Python example of the documentation."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import analog_grasp as ag
from analog_grasp.tasks import load_base_model, register_task, registry
from analog_grasp.tasks.reviews import reviews as generate_reviews

NAMES = {
    "GraspConfig",
    "StochGraspConfig",
    "DeviceCard",
    "deploy",
    "Deployment",
    "train",
    "recalibrate",
    "costs",
    "load_base_model",
    "load_task",
    "compare",
    "drift_sweep",
    "tune_noise_weight",
}


@pytest.fixture(scope="module")
def task():
    return generate_reviews(train=24, validation=16)


@pytest.fixture
def base_model(bert_folder, task):
    return load_base_model(task, str(bert_folder))


def test_the_names_are_there_and_documented():
    assert set(ag.__all__) >= NAMES
    assert set(dir(ag)) >= NAMES
    for name in ag.__all__:
        assert inspect.getdoc(getattr(ag, name)), name


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(ag.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {name: f"analog_grasp.{module}" for name, module in ag._MODULES.items()}


def test_another_name_raises():
    with pytest.raises(AttributeError, match="module 'analog_grasp' has no attribute 'tune_noise'"):
        _ = ag.tune_noise


def run_python(*lines):
    """Run lines in a fresh process, which has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


LOAD = (
    "from peft import PeftModel",
    "from transformers import AutoModelForSequenceClassification as Base",
    "model = PeftModel.from_pretrained(Base.from_pretrained({base!r}), {adapter!r})",
    "assert type(model.peft_config['default']).__name__ == 'GraspConfig'",
    "model.save_pretrained({adapter!r} + '/again')",
)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(
            "import sys, analog_grasp; assert not {'torch', 'peft', 'aihwkit'} & {*sys.modules}",
            id="ours first",
        ),
        pytest.param(
            "import analog_grasp, peft.tuners.lora",
            id="ours first, then a part of peft",
            marks=pytest.mark.slow,
        ),
        pytest.param("import peft, analog_grasp", id="peft first", marks=pytest.mark.slow),
        pytest.param(
            "import analog_grasp, peft, importlib; importlib.reload(analog_grasp)",
            id="ours again",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "from analog_grasp.adapters.layer import GraspLinear\n"
            "from analog_grasp.adapters import config, layer\n"
            "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs\n"
            "assert configs['GRASP'] is config.GraspConfig and layer.GraspLinear is GraspLinear",
            id="a module of ours first",
        ),
    ],
)
def test_peft_knows_grasp_once_both_are_imported(base_model, bert_folder, tmp_path, first):
    from peft import get_peft_model

    model = get_peft_model(base_model, ag.GraspConfig(task_type="SEQ_CLS", groups=4))
    model.save_pretrained(tmp_path)
    run_python(first, *(x.format(base=str(bert_folder), adapter=str(tmp_path)) for x in LOAD))


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
    # The caller's model stays digital, without noise.
    assert (task.predict(model) == task.predict(model)).all()
    assert (task.predict(deployment.model) != task.predict(model)).any()


def test_an_adapter_of_the_example_saves_loads_and_merges(base_model, bert_folder, task, tmp_path):
    from peft import PeftModel, get_peft_model

    model = get_peft_model(base_model, ag.GraspConfig(task_type="SEQ_CLS", groups=4))
    ag.train(model, task, epochs=1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_base_model(task, str(bert_folder)), tmp_path)
    assert (task.predict(loaded) == task.predict(model)).all()
    merged = loaded.merge_and_unload()
    assert task.predict(merged) == pytest.approx(task.predict(model), abs=1e-4)


def test_a_comparison_and_a_drift_sweep_of_its_adapters(bert_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {
        "model": str(bert_folder),
        "devices": ("pcm-hermes-2",),
        "times": ("0s", "1y"),
        "repeats": 2,
    }
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    register_task("few-sentences", lambda _: generate_reviews(24, 16))
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
    assert header == "task,metric,adapter,training,placement,device,time_s,repeat,seed,value"
    assert len(rows) == len(compared.measurements) == 2 * 2 * 2

    swept = ag.drift_sweep(["out/adapters/stochgrasp"], "swept", task="few-sentences", **small)
    assert swept.measurements == [m for m in compared.measurements if m.adapter == "stochgrasp"]
    of_training = ("| epochs | 1.0 |", "| groups | 4 |", "| injection | 0.04 |")
    trained, saved = ((run.directory / "summary.md").read_text() for run in (compared, swept))
    assert all(row in trained for row in of_training)
    assert not any(row in saved for row in of_training)
    assert saved.count("| – |") == 1


def test_a_drift_sweep_over_a_folder_without_an_adapter_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter: it should hold adapter_config"):
        ag.drift_sweep([tmp_path], tmp_path / "swept")
