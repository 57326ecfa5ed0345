"""Untrusted models: their code runs only if it is trusted, and no pickle is read."""

import json
import shutil
import sys

import pytest
from transformers import dynamic_module_utils

from analog_grasp.tasks import load_base_model, tokenizer_for
from analog_grasp.tasks.models import has_remote_code

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path({marker!r}).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path, tiny_folder, monkeypatch):
    """Folder of a model that comes with code, and the file that the code creates when it runs."""
    # transformers copies such code to a cache on the import path.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, marker = tmp_path / "own_model", tmp_path / "ran"
    shutil.copytree(tiny_folder, folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    change_config(
        folder,
        model_type="own",
        architectures=["OwnModel"],
        auto_map={
            "AutoConfig": "own.OwnConfig",
            "AutoModelForSequenceClassification": "own.OwnModel",
        },
    )
    return folder, marker


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_of_a_model_runs_only_if_trusted(own, small_reviews):
    folder, marker = own
    with pytest.raises(ValueError, match=r"its own Python code.* --trust-remote-code"):
        load_base_model(small_reviews, str(folder))
    assert not marker.exists()
    model = load_base_model(small_reviews, str(folder), trust_remote_code=True)
    assert marker.exists()
    assert type(model).__name__ == "OwnModel"
    assert has_remote_code(model)
    assert tokenizer_for(model)("superb")["input_ids"]


def test_code_that_is_not_required_does_not_run(own, small_reviews):
    folder, marker = own
    change_config(folder, model_type="bert")
    model = load_base_model(small_reviews, str(folder))
    assert not marker.exists()
    assert not has_remote_code(model)


def test_compiled_code_from_the_hub_does_not_run(own, small_reviews):
    folder, _ = own
    change_config(folder, model_type="bert", attn_implementation="unknown/kernel")
    with pytest.raises(ValueError, match="its own Python code"):
        load_base_model(small_reviews, str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"dtype": "weird"},
        {"id2label": 7},
        {"num_hidden_layers": 1e300},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"hidden_size": 17},
    ],
    ids=str,
)
def test_an_invalid_config_raises_one_sentence(tmp_path, tiny_folder, small_reviews, changes):
    shutil.copytree(tiny_folder, tmp_path / "odd")
    change_config(tmp_path / "odd", **changes)
    with pytest.raises(ValueError, match=r"^The .*odd' .*\.$") as caught:
        load_base_model(small_reviews, str(tmp_path / "odd"))
    assert "\n" not in str(caught.value)


def test_a_deeply_nested_config(tmp_path, small_reviews):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"should have a known model_type\.$"):
        load_base_model(small_reviews, str(tmp_path))


def test_damaged_weights_and_tokenizers_are_named(tmp_path, tiny_folder, small_reviews):
    shutil.copytree(tiny_folder, tmp_path / "odd")
    model = load_base_model(small_reviews, str(tmp_path / "odd"))
    (tmp_path / "odd" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match="No tokenizer could be loaded from"):
        tokenizer_for(model)
    (tmp_path / "odd" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="cannot be built from its files"):
        load_base_model(small_reviews, str(tmp_path / "odd"))
