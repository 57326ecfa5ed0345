"""Each wrong request ends with status 2 and one sentence that names what is wrong with it."""

import errno
import json
import subprocess
import sys

import pytest

from analog_grasp.cli import runs
from analog_grasp.cli.main import COMMANDS
from analog_grasp.study import api as studies
from analog_grasp.study.config import ADAPTER_FILES
from analog_grasp.tuning.search_space import RANGES

HEAVY = {
    *("aihwkit", "datasets", "matplotlib", "numba", "optuna", "pandas", "peft", "scipy", "torch"),
    "transformers",
}
ANSWERED = [
    *("--help", "--version", "devices", "devices pcm-hermes-2", "adapters"),
    *(f"{command} --help" for command in COMMANDS),
]
# Requests, and a part of the sentence that names what is wrong with each.
WRONG = {
    "comparee": "'compare'",
    "adapters more": "Extra argument: more. See analog-grasp adapters --help.",
    "devices rram-wan": "rram-wan2022",
    "compare --model": "'--model' requires an argument. See analog-grasp compare --help.",
    "compare --modle x": "--model",
    "compare --quiet --verbose": "--quiet",
    "compare --out adapter/adapter_config.json": "files that do not belong to a run: name an empty",
    "compare --out .": "The output . holds files that do not belong to a run",
    "compare --config no/such.toml": "no/such.toml",
    "compare --config .": "is a folder: give the path of a TOML file.",
    "compare --layers ''": "layers is (): it should have at least 1 item.",
    "compare --layers ,": "layers is (): it should have",
    "compare --clip most": "clip is 'most': it should be a valid number or 'least-error'.",
    "compare --model no/such/folder": "no/such/folder",
    "compare --task reviewz": "'reviews'",
    "compare --data-dir no/such": "no/such",
    "compare --devices pcm-hermes-3": "pcm-hermes-2",
    "compare --devices cards/mine.toml": "cards/mine.toml",
    "compare --devices ''": "devices",
    "compare --devices ideal,ideal": "ideal",
    "compare --adapters grisp": "'grasp'",
    "compare --adapters no/such/adapter": "no/such/adapter",
    "compare --adapters lora --groups 4": "no effect on lora",
    "compare --placement floating": "'digital', 'folded' or 'programmed'",
    "compare --placement programmed --adapters head": "placement 'programmed'",
    "compare --placement programmed --form normalize": "the form 'normalize', which divides by",
    "compare --placement programmed --sampling weight": "is sampled by weight",
    "compare --programming-error learned": "programmed",
    "compare --adc-bits 1": "adc_bits",
    "compare --times 1parsec": "parsec",
    "compare --times -3s": "negative",
    "compare --repeats 0": "repeats",
    "compare --repeats many": "repeats is 'many': it should be a valid integer.",
    "compare --repeats-limit 7": "until_ci",
    "compare --until-ci 0": "until_ci",
    "compare --until-ci 2 --repeats 5 --repeats-limit 4": "begins with repeats = 5: give 5 or more",
    "compare --trainings 3 --until-ci 2 --trainings-limit 2": "begins with trainings = 3",
    "compare --until-ci 2 --repeats 1 --repeats-limit 1": "repeats_limit is 1, but until_ci",
    "compare --devices gaussian --calibrate 99": "none of the devices has converters",
    "compare --recalibrate 8,8": "8 is listed more than once",
    "compare --then ,": "then",
    "compare --groups 0": "groups",
    "compare --seed -1": "seed",
    "compare --engine abacus": "'local' or 'ray'",
    "compare --ray-address auto": "engine ray",
    "compare --workers 0": "workers",
    "compare --noise-target pcm-hermes-2": "pcm-hermes-2@1d",
    "compare --noise-target pcm-hermes-2@1h..1y": "more than one device at one time",
    "compare --noise-target nan": "noise_target",
    "compare --noise-target -1": "noise_target is -1.0: it should be greater than 0",
    "compare --noise-weight-schedule cosine": "'constant' or 'linear'",
    "compare --sigma-lr-ratio 0": "sigma_lr_ratio",
    "compare --sampling coin": "sampling",
    "compare --noise-loss l1": "noise_loss",
    "compare --init-sigma 0": "init_sigma",
    "tune --search then_steps": "then_steps",
    "compare --text-column body": "text_column is 'body', which has no effect without the task csv",
    "compare --task reviews --data-dir .": "no effect without a task other than reviews",
    "compare --placement programmed --programming-error learned": "of grasp are not learned",
    "compare --beams 4": "beams is 4, which has no effect without a task that generates text",
    "compare --task e2e --stride 8": "without a task that measures perplexity, such as lm",
    "compare --model ''": "model is ''",
    "compare --model adapter": "The model folder adapter has no config.json",
    "compare --learning-rate nan": "learning_rate",
    "train": "--adapter",
    "train --adapter grisp": "'grasp'",
    "train --adapter lora --noise-weight 2": "no effect on lora",
    "train --adapter grasp --injection nope@1d": "injection",
    "train --adapter grasp --converters ideal": "converters",
    "train --adapter grasp --task nope": "'nope'",
    "train --adapter stochgrasp --sampling token --form normalize": "sampling is 'token'",
    "deploy": "ADAPTER_FOLDER",
    "deploy no/adapter": "no/adapter holds no adapter: it should hold adapter_config.json",
    "deploy adapter --device nope": "'nope'",
    "deploy adapter --time soon": "soon",
    "deploy adapter --out adapter/adapter_config.json": "is a file: name a folder.",
    "deploy adapter --placement programmed --export a": "--export has no effect on an adapter",
    "deploy adapter --export no/such/chip.safetensors": "no/such",
    "recalibrate adapter --examples ,": "--examples is ','",
    "recalibrate adapter --examples 16,1": "--examples is '16,1': give whole numbers of at least 2",
    "recalibrate adapter --placement folded": "only a digital adapter can be recalibrated",
    "drift no/adapter": "no/adapter holds no adapter: it should hold adapter_config.json",
    "drift adapter --devices nope": "'nope'",
    "tune --adapter nope": "'nope'",
    "tune --devices nope": "'nope'",
    "tune --adapter grasp": "The adapter grasp has no noise_weight to search",
    "tune --search epochs": ", ".join(RANGES),
    "tune --search ''": "search is empty",
    "tune --ranges noise_weight": "noise_weight=0.01:10",
    "tune --ranges noise_weight=1": "noise_weight=0.01:10",
    "tune --ranges noise_weight=2:1": "the lower first",
    "tune --trials 0": "--trials is '0': it should be greater than or equal to 1.",
    "tune --held-out=0": "--held-out is '0': it should be greater than or equal to 1.",
    "tune --out adapter/adapter_config.json": "is a file: name a folder.",
    "inspect no/such": "no/such",
    "report no/run": "no/run holds no run: it should hold run.toml",
}
CHILD = """
import io, json, shlex, sys
from contextlib import redirect_stderr, redirect_stdout
from analog_grasp.cli import main
for request in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(shlex.split(request))
    print(json.dumps([status, out.getvalue(), err.getvalue(), sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    """Return status, output, errors and loaded packages of each request, made one by one."""
    folder = tmp_path_factory.mktemp("requests")
    (folder / "adapter").mkdir()
    for name in ADAPTER_FILES:
        (folder / "adapter" / name).write_text("{}")
    requests = [*ANSWERED, *WRONG]
    command = [sys.executable, "-c", CHILD, json.dumps(requests)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["adapter"]
    return dict(zip(requests, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("asked", ANSWERED)
def test_help_and_lists_need_no_heavy_package(answers, asked):
    status, out, err, loaded = answers[asked]
    assert (status, err) == (0, "")
    assert out
    assert not HEAVY.intersection(loaded)


@pytest.mark.parametrize("asked", WRONG)
def test_a_wrong_request_is_answered_at_once_and_writes_nothing(answers, asked):
    status, out, err, loaded = answers[asked]
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith((".", "?"))
    assert WRONG[asked] in line
    assert not HEAVY.intersection(loaded)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--groups", "17"], "groups is 17"),
        (["--target-modules", "qwerty"], "target_modules 'qwerty':"),
    ],
)
def test_settings_that_do_not_fit_the_model(error_of, tiny, tmp_path, options, named):
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
