"""A teacher in a study: a saved adapter or model, part of the recipe, checked before training."""

import json
import shutil

import pytest
from huggingface_hub import constants

from analog_grasp.study.api import compare
from analog_grasp.study.checks import teacher_folder
from analog_grasp.study.config import resolve
from analog_grasp.study.provenance import adapter_hash, open_run, read_run
from analog_grasp.tasks import load_base_model
from analog_grasp.tasks.models import tokenizer_for

FEW = {"adapters": ("grasp",), "devices": ("pcm-hermes-2",), "times": ("0s",), "repeats": 1}


@pytest.fixture
def folder(finished_run, tmp_path):
    """The folder of a saved adapter that may be changed."""
    return shutil.copytree(finished_run / "adapters" / "stochgrasp", tmp_path / "teacher")


def test_adapters_of_a_study_learn_from_its_teacher(settings, folder, tmp_path):
    asked = settings | FEW | {"then": "none"}
    hashes = []
    for name, given in (("plain", {}), ("taught", {"teacher": str(folder)})):
        run = compare(tmp_path / name, **asked | given)
        hashes.append(adapter_hash(run.directory / "adapters" / "grasp"))
    assert hashes[0] != hashes[1]
    assert str(folder) in (tmp_path / "taught" / "report.html").read_text()


@pytest.fixture
def parts(task, bert_folder, tmp_path):
    """The folder of a model for the task, whose weights are in several files."""
    model = load_base_model(task, str(bert_folder))
    for whole in (model, tokenizer_for(model)):
        whole.save_pretrained(tmp_path / "parts", max_shard_size=9999)
    return tmp_path / "parts"


def test_a_teacher_may_have_several_files_of_weights(settings, parts, tmp_path):
    run = compare(tmp_path / "run", **settings | FEW | {"then": "none", "teacher": str(parts)})
    assert run.measurements
    first = adapter_hash(parts)
    sorted(parts.glob("model-*.safetensors"))[-1].unlink()
    assert adapter_hash(parts) != first


def test_a_teacher_may_be_a_model_of_the_hub(settings, parts, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--someone--teacher"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abc")
    snapshot = shutil.copytree(parts, cached / "snapshots" / "0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    taught = settings | FEW | {"then": "none", "teacher": "someone/teacher"}
    assert compare(tmp_path / "run", **taught).measurements
    assert teacher_folder("someone/teacher") == snapshot
    assert read_run(tmp_path / "run")[1]["hashes"]["teacher_hash"] == adapter_hash(parts)
    with pytest.raises(FileNotFoundError, match="teacher 'someone/other' is neither a folder nor"):
        compare(tmp_path / "other", **taught | {"teacher": "someone/other"})


def test_a_run_does_not_resume_with_another_teacher(folder, task, tmp_path):
    config = resolve(FEW | {"teacher": str(folder)})
    open_run(tmp_path / "run", config, task)
    assert read_run(tmp_path / "run")[1]["hashes"]["teacher_hash"] == adapter_hash(folder)
    moved = config.replace(teacher=str(shutil.move(folder, tmp_path / "moved" / "teacher")))
    open_run(tmp_path / "run", moved, task)
    with pytest.raises(ValueError, match="another run, whose teacher is 'teacher' and not None"):
        open_run(tmp_path / "run", config.replace(teacher=None), task)
    file = tmp_path / "moved" / "teacher" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"groups": 2}))
    with pytest.raises(ValueError, match="another run, with other content of the teacher"):
        open_run(tmp_path / "run", moved, task)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda folder, _: folder / "none",
            FileNotFoundError,
            "none holds no adapter: .*config.*, or config.json and model.safetens",
        ),
        (lambda folder, _: folder.parent, FileNotFoundError, "no adapter itself: give .*/teacher"),
        (
            lambda _, model: model,
            ValueError,
            "does not fit the task glue/stsb: 2 of its parameters",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_raises_before_the_folder_is_created(
    settings, folder, bert_folder, tmp_path, make, error, sentence
):
    with pytest.raises(error, match=sentence) as caught:
        compare(tmp_path / "run", **settings | FEW | {"teacher": str(make(folder, bert_folder))})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
