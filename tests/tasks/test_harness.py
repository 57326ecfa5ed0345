"""Tasks of lm-eval, from a local task file."""

import json

import numpy as np
import pytest

from analog_grasp import GraspConfig, compare, deploy
from analog_grasp.adapters.registry import adapt
from analog_grasp.study.config import check_task
from analog_grasp.study.sections import TaskSettings
from analog_grasp.tasks import harness_task, load_base_model, load_task, register_task, registry

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "hill"]
ROWS = [
    {"question": "the cat sat on", "choices": ["a mat", "the hill"], "answer": i % 2}
    for i in range(6)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: "{{{{choices}}}}"
metric_list:
{metrics}
"""
ACCURACY = """\
  - metric: acc
    higher_is_better: true
  - metric: acc_norm
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 300)))
    return path


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """Folder with two task files: one with accuracies, one with an error alone."""
    path = tmp_path_factory.mktemp("tasks")
    data = path / "rows.json"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    for name, metrics in (
        ("where_sat", ACCURACY),
        ("how_wrong", ACCURACY.replace("true", "false")),
    ):
        file = path / f"{name}.yaml"
        file.write_text(TASK.format(name=name, data=data, metrics=metrics))
    return path


@pytest.fixture(scope="module")
def task(task_files, text):
    return harness_task(["where_sat"], text, include_path=task_files)


def test_scores_are_those_of_the_harness(task, llama_folder, task_files):
    model = load_base_model(task, str(llama_folder))
    scores = task.scores(model)
    assert list(scores) == ["where_sat/acc", "where_sat/acc_norm"] == list(task.metrics)
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    expected = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=task.tokenizer_of(model)),
        tasks=["where_sat"],
        task_manager=TaskManager(include_path=str(task_files)),
        bootstrap_iters=0,
    )["results"]["where_sat"]
    assert scores["where_sat/acc"] == expected["acc,none"]
    assert scores["where_sat/acc_norm"] == expected["acc_norm,none"]
    # The question is the same in each row and the answers alternate.
    assert scores["where_sat/acc"] == 0.5


def test_a_deployed_adapter_is_measured_on_the_chip(task, llama_folder):
    adapted = adapt(
        load_base_model(task, str(llama_folder)), "grasp", task_type="CAUSAL_LM", groups=2,
        target_modules="all-linear",
    )  # fmt: skip
    assert isinstance(adapted.active_peft_config, GraspConfig)
    deployment = deploy(adapted, "pcm-hermes-2").program(0)
    assert 0 <= task.evaluate(deployment.model) <= 1
    report = deployment.report()
    assert not report.unread
    calibrated = deployment.calibrate(lambda each: task.subset(train=2).scores(each, "train"))
    assert calibrated.keys() == deployment.layers.keys()


def test_a_comparison_from_training_to_page(
    task, task_files, text, llama_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    register_task(
        "where", lambda data_dir: harness_task(["where_sat"], data_dir, include_path=task_files)
    )
    results = compare(
        tmp_path / "run",
        task="where",
        data_dir=str(text.parent),
        model=str(llama_folder),
        adapters=("grasp", "lora"),
        devices=("pcm-hermes-2",),
        times=("0s",),
        repeats=2,
        epochs=0.5,
        groups=4,
        max_length=32,
        workers=1,
    )
    table = results.to_pandas()
    assert set(table["metric"]) == {"where_sat/acc", "where_sat/acc_norm"}
    assert "where_sat/acc" in (tmp_path / "run" / "report.html").read_text()


def test_a_name_with_the_prefix_is_a_task_of_the_harness(text):
    check_task(TaskSettings(task="lm-eval/arc_easy", data_dir=str(text)))
    with pytest.raises(ValueError, match="lm-eval has no task 'arc_eazy'"):
        load_task("lm-eval/arc_eazy", text)
    with pytest.raises(ValueError, match="No task of lm-eval is named"):
        load_task("lm-eval/", text)
    with pytest.raises(FileNotFoundError, match="text nowhere does not exist"):
        check_task(TaskSettings(task="lm-eval/arc_easy", data_dir="nowhere"))


def test_errors_alone_are_no_scores(task_files, text):
    with pytest.raises(ValueError, match="how_wrong have no metric of which higher is better"):
        harness_task(["how_wrong"], text, include_path=task_files)


def test_a_missing_package_is_named(monkeypatch, text):
    monkeypatch.setattr("analog_grasp.tasks.harness.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install analog-grasp\[lm-eval\]"):
        load_task("lm-eval/arc_easy", text)
