"""Tasks of lm-eval, from a local task file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from peft import PromptTuningConfig, get_peft_model

from analog_grasp import GraspConfig, compare, deploy
from analog_grasp.adapters.registry import adapt
from analog_grasp.study.checks import check_task
from analog_grasp.study.sections import TaskSettings
from analog_grasp.tasks import harness_task, load_base_model, load_task, register_task, registry
from analog_grasp.tasks.base import tuning_task
from analog_grasp.training import train
from analog_grasp.utils import errors

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
METRICS = ("acc", "acc_norm")
ACCURACY = """\
  - metric: acc
    higher_is_better: true
  - metric: acc_norm
    higher_is_better: true
"""


FILTERS = """
output_type: generate_until
doc_to_choice: null
doc_to_target: "a mat"
generation_kwargs:
  until: ["."]
  max_gen_toks: 2
filter_list:
  - name: strict-match
    filter:
      - function: regex
        regex_pattern: "(never)"
      - function: take_first
  - name: flexible-extract
    filter:
      - function: regex
        regex_pattern: "(never)"
        fallback: a mat
      - function: take_first
"""
MATCH = """\
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
"""
GROUP = """
group: {name}
task: [{tasks}]
aggregate_metric_list:
  - metric: {metric}
    aggregation: mean
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 300)))
    return path


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """Folder with files of tasks and groups, named after what is special in them."""
    path = tmp_path_factory.mktemp("tasks")
    data = path / "rows.json"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    for name, metrics, settings in (
        ("where_sat", ACCURACY, ""),
        ("who_sat", ACCURACY, ""),
        ("how_wrong", ACCURACY.replace("true", "false"), ""),
        ("what_text", MATCH, FILTERS),
        ("what_words", MATCH, FILTERS),
        ("rolling", "  - metric: word_perplexity", ROLLING),
        ("no_metric", "  - metric: acuracy", ""),
        ("no_function", MATCH.replace("exact_match", "exact_mtach"), FILTERS),
    ):
        task = TASK.format(name=name, data=data, metrics=metrics)
        # The settings replace those of the same name.
        replaced = {line.partition(":")[0] for line in settings.splitlines() if line[:1].isalpha()}
        lines = [line for line in task.splitlines() if line.partition(":")[0] not in replaced]
        (path / f"{name}.yaml").write_text("\n".join(lines) + "\n" + settings)
    for name, tasks, metric in (
        ("all_sat", "where_sat, who_sat", "acc"),
        ("all_texts", "what_text, what_words", "exact_match"),
        ("everyone", "all_sat, rolling", "acc"),
    ):
        (path / f"{name}.yaml").write_text(GROUP.format(name=name, tasks=tasks, metric=metric))
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


def test_contexts_are_as_long_as_the_positions_of_the_model(task, llama_folder, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    lengths = []

    class Recorded(HFLM):
        def __init__(self, **given):
            super().__init__(**given)
            lengths.append(self.max_length)

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM", Recorded)
    model = load_base_model(task, str(llama_folder))
    assert replace(task, max_length=4).scores(model) == task.scores(model)
    assert lengths == [model.config.max_position_embeddings] * 2


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


def test_a_prompt_is_not_measured_without_its_effect(task, llama_folder):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(load_base_model(task, str(llama_folder)), prompt)
    with pytest.raises(ValueError, match="adapter is a PROMPT_TUNING, whose prompt the task"):
        task.scores(model)


@pytest.mark.slow
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


def test_the_aggregate_of_a_group_is_the_primary_score(task_files, text, llama_folder):
    task = harness_task(["all_sat"], text, include_path=task_files)
    leaves = [f"{name}/{metric}" for name in ("where_sat", "who_sat") for metric in METRICS]
    assert task.metrics == ("all_sat/acc", *leaves)
    scores = task.scores(load_base_model(task, str(llama_folder)))
    assert list(scores) == list(task.metrics)
    assert scores["all_sat/acc"] == (scores["where_sat/acc"] + scores["who_sat/acc"]) / 2
    # The order is that of the request.
    task = harness_task(["what_text", "all_sat"], text, include_path=task_files)
    assert task.metrics[0] == "what_text/exact_match/strict-match"
    assert "all_sat/acc" in task.metrics
    assert replace(task, metric="all_sat/acc").metrics[0] == "all_sat/acc"
    with pytest.raises(ValueError, match="has no metric 'acc'; it should be one of what_text/"):
        replace(task, metric="acc")


def test_each_filter_is_a_score(task_files, text, llama_folder):
    task = harness_task(["all_texts"], text, include_path=task_files)
    assert len(task.metrics) == 6
    scores = task.scores(load_base_model(task, str(llama_folder)))
    for name in ("all_texts", "what_text", "what_words"):
        assert scores[f"{name}/exact_match/strict-match"] == 0.0
        assert scores[f"{name}/exact_match/flexible-extract"] == 1.0


def test_a_task_of_errors_alone_is_not_skipped_silently(task_files, text):
    with pytest.raises(ValueError, match="lm-eval tasks rolling have no metric of which higher"):
        harness_task(["where_sat", "rolling"], text, include_path=task_files)
    with pytest.warns(UserWarning, match="tasks rolling have no metric .*, and are not scored"):
        task = harness_task(["everyone"], text, include_path=task_files)
    assert task.metrics[:2] == ("everyone/acc", "all_sat/acc")


def test_an_unknown_metric_of_a_task_file_is_named(task_files, text, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("evaluate.load", offline)
    for name, message in (
        ("no_metric", "tasks no_metric cannot be loaded: lm-eval has no metric acuracy"),
        ("no_function", "task no_function has the metric exact_mtach, which neither"),
    ):
        with pytest.raises(ValueError, match=message):
            harness_task([name], text, include_path=task_files)
    with pytest.raises(ValueError, match="cannot be loaded: ValueError, Duplicate task 'who_sat'"):
        harness_task(["all_sat", "who_sat"], text, include_path=task_files)


def test_a_metric_that_is_not_computed_is_named(task):
    with pytest.raises(ValueError, match="lm-eval has not computed where_sat/acc_norm of the"):
        task._score({"where_sat": {"name": "where_sat", "acc,none": 0.5}}, "validation")


def test_a_missing_package_is_named(monkeypatch, text):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .analog-grasp\[lm-eval\]"):
        load_task("lm-eval/arc_easy", text)


def test_the_rows_of_the_harness_are_not_held_out(task, llama_folder):
    assert len(task.subset(train=2).train) == 2
    with pytest.raises(ValueError, match="rows of lm-eval, none of which can be held out"):
        tuning_task(task, 0)
    with pytest.raises(ValueError, match="'lm-eval/where_sat' is measured on the rows of lm-eval"):
        task.subset(validation=2)
    model = adapt(load_base_model(task, str(llama_folder)), "lora-all-linear")
    with pytest.raises(ValueError, match="tune and select epochs on another task"):
        train(model, task, evaluate_on="pcm-hermes-2@1d")


def test_the_text_for_training_has_no_primary_metric(task, llama_folder):
    model = load_base_model(task, str(llama_folder))
    with pytest.raises(ValueError, match="not measured on the train rows: scores returns perpl"):
        task.evaluate(model, "train")


def test_a_stride_has_no_effect_on_tasks_of_the_harness(task, monkeypatch):
    monkeypatch.setitem(registry._LOADERS, "where", lambda data_dir: task)
    with pytest.raises(ValueError, match=r"stride is 8, but the task .* measures no perplexity"):
        TaskSettings(task="where", stride=8).load()
