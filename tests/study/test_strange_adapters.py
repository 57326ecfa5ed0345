"""Adapter folders from strangers: what is not read, and that nothing of them is run or believed."""

import json
import shutil
from pathlib import Path

import pytest

from analog_grasp.study.adapters import load_adapter, new_adapter, save_adapter
from analog_grasp.study.config import resolve
from analog_grasp.study.folder import claim
from analog_grasp.tuning.tune import with_values


@pytest.fixture(scope="module")
def lora(task, asked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "lora"
    save_adapter(new_adapter(resolve(asked), task, "lora"), folder)
    return folder


@pytest.fixture
def changed(lora, tmp_path):
    """A copy of the adapter whose configuration says other things."""

    def make(**changes) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(lora, folder)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return make


def test_a_pickle_is_not_read(lora, tmp_path, asked, task):
    shutil.copy(lora / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"should hold .*adapter_model\.safetensors"):
        load_adapter(tmp_path, asked["model"], task)


@pytest.mark.parametrize(
    "kind",
    [
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2},
        {"peft_type": "XLORA", "adapters": {"0": "/somewhere"}, "hidden_size": 16},
    ],
    ids=str,
)
def test_kinds_that_read_other_files_are_refused(changed, asked, task, kind):
    folder = changed(**kind)
    with pytest.raises(ValueError, match=r"of the kind .*one that adapts layers, such as LoRA\."):
        load_adapter(folder, asked["model"], task)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # A matrix of a petabyte, for which no memory is asked before the file is looked at.
        ({"r": 10**13}, "does not fit the model"),
        ({"target_modules": 3}, "does not fit the model"),
        ({"megatron_config": {}, "target_modules": "(", "megatron_core": "os"}, "does not fit"),
        ({"base_model_name_or_path": ["a"]}, "is not one that peft wrote"),
        ({"peft_type": "MINE"}, "is not one that peft wrote"),
        ({"task_type": "#" * (1 << 20)}, "is larger than 1 MiB"),
    ],
    ids=range(6),
)
def test_a_configuration_of_nonsense_gets_one_sentence(changed, asked, task, change, words):
    folder = changed(**change)
    with pytest.raises(ValueError, match=words) as refusal:
        load_adapter(folder, asked["model"], task)
    assert "\n" not in str(refusal.value)


def test_a_configuration_nested_without_end(lora, tmp_path, asked, task):
    shutil.copytree(lora, tmp_path / "deep")
    (tmp_path / "deep" / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not one that peft wrote"):
        load_adapter(tmp_path / "deep", asked["model"], task)


def test_no_file_allows_remote_code(tmp_path):
    config = tmp_path / "theirs.toml"
    config.write_text("trust_remote_code = true")
    with pytest.raises(ValueError, match="which no file can: leave it out, and give --trust"):
        resolve({}, config)


def test_that_remote_code_may_run_is_said_for_this_run_alone(tmp_path):
    asked = resolve({"trust_remote_code": True})
    assert asked.model.trust_remote_code
    assert with_values(asked, {"groups": 2}).model.trust_remote_code
    claim(tmp_path / "run", asked)
    assert "trust" not in (tmp_path / "run" / "run.toml").read_text()
    # Whoever goes on with the run says it again, or not.
    claim(tmp_path / "run", resolve({}))
