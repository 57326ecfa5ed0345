"""GRASP and StochGRASP on transformers models, and training from a saved adapter on."""

import math
import subprocess
import sys
import warnings
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from small_models import logits, move

from analog_grasp.adapters import base as registration
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.adapters.model import start_from
from analog_grasp.adapters.registry import adapt
from analog_grasp.devices.card import DeviceCard

K = 5
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 20,
        "num_attention_heads": 2}  # fmt: skip


@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
def test_saves_and_loads_in_a_fresh_process(bert, config, batch, tmp_path):
    bert.save_pretrained(tmp_path / "base")
    adapted = move(get_peft_model(bert, config(task_type="SEQ_CLS", groups=K)))
    adapted.save_pretrained(tmp_path / "adapter")
    torch.save(batch, tmp_path / "batch.pt")
    script = f"""
import torch, analog_grasp
from peft import PeftModel
from transformers import AutoModelForSequenceClassification as Auto
root = {str(tmp_path)!r}
model = PeftModel.from_pretrained(Auto.from_pretrained(root + "/base"), root + "/adapter").eval()
with torch.no_grad():
    logits = model(**torch.load(root + "/batch.pt", weights_only=True)).logits
torch.save(logits, root + "/logits.pt")
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    loaded = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(loaded, logits(adapted, batch))


# Architectures without biases: with a setting for all of them, for some of them, for none.
NO_BIASES = {
    "llama": (hf.LlamaForSequenceClassification, hf.LlamaConfig(**TINY, pad_token_id=0)),
    "qwen2": (hf.Qwen2ForSequenceClassification, hf.Qwen2Config(**TINY, num_key_value_heads=2,
                                                                pad_token_id=0)),
    "t5": (hf.T5ForSequenceClassification, hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1,
                                                       num_heads=2, vocab_size=20,
                                                       decoder_start_token_id=0)),
}  # fmt: skip


def save_and_reload(plain, folder, batch):
    plain.save_pretrained(folder)
    return logits(type(plain).from_pretrained(folder), batch)


@pytest.mark.parametrize(
    ("name", "targets", "kept"),
    [
        ("llama", ["q_proj", "o_proj"], True),
        ("llama", ["up_proj", "down_proj"], True),
        ("llama", "all-linear", True),
        ("qwen2", ["q_proj"], True),
        ("qwen2", ["o_proj"], False),
        ("t5", ["q", "wo"], False),
    ],
)
@pytest.mark.parametrize("merged", [False, True])
def test_merged_shifts_survive_saving_or_are_warned_of(name, targets, kept, merged, tmp_path):
    made, settings = NO_BIASES[name]
    torch.manual_seed(0)
    adapted = get_peft_model(made(settings), GraspConfig(groups=4, target_modules=targets))
    batch = {"input_ids": torch.tensor([[3, 4, 5, 1]])}
    expected = logits(move(adapted), batch)
    if merged:
        adapted.merge_adapter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain = adapted.merge_and_unload()
    lost = [str(w.message) for w in caught if "learn_shift=False" in str(w.message)]
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-5, rtol=1e-4)
    assert bool(lost) != kept
    if kept:
        reloaded = save_and_reload(plain, tmp_path, batch)
        torch.testing.assert_close(reloaded, expected, atol=1e-5, rtol=1e-4)


def test_scales_alone_merge_into_layers_without_biases(tmp_path):
    made, settings = NO_BIASES["t5"]
    torch.manual_seed(0)
    config = GraspConfig(groups=4, target_modules=["q", "wo"], learn_shift=False)
    adapted = move(get_peft_model(made(settings), config))
    batch = {"input_ids": torch.tensor([[3, 4, 5, 1]])}
    expected = logits(adapted, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = adapted.merge_and_unload()
    reloaded = save_and_reload(plain, tmp_path, batch)
    torch.testing.assert_close(reloaded, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"target_modules": ["query", "value"]}, 4),
        ({"target_modules": r".*layer\.1\..*dense"}, 3),
        ({"target_modules": "all-linear"}, 13),
        ({"target_modules": "all-linear", "exclude_modules": ["query"]}, 11),
        ({"target_modules": ["query", "value"], "layers_to_transform": 1}, 2),
        ({"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": "layer"}, 1),
        ({"target_modules": ["query"], "layers_to_transform": (1,)}, 1),
        ({"target_modules": ["query"], "layers_to_transform": range(2)}, 2),
    ],
)
def test_layers_are_chosen_as_in_peft(bert, settings, count):
    adapted = get_peft_model(bert, GraspConfig(groups=2, task_type="SEQ_CLS", **settings))
    assert len(list(adapted.base_model.modulated_layers())) == count


def test_sampling_in_evaluation_is_enabled_by_a_context(bert, batch):
    adapted = get_peft_model(bert, StochGraspConfig(task_type="SEQ_CLS", groups=K))
    means = logits(adapted, batch)
    with adapted.base_model.sampling():
        with adapted.base_model.sampling():
            assert not torch.allclose(logits(adapted, batch), means)
        assert not torch.allclose(logits(adapted, batch), means)
    torch.testing.assert_close(logits(adapted, batch), means)


def test_groups_above_the_features_raise_and_leave_the_model_as_it_was(bert):
    modules = [name for name, _ in bert.named_modules()]
    with pytest.raises(ValueError, match=r"groups is 33; .* 32 input features"):
        get_peft_model(bert, GraspConfig(groups=33))
    assert [name for name, _ in bert.named_modules()] == modules


CHANGES = {
    "num_hidden_layers": (1, "6 layers that this model lacks, such as bert.encoder.layer.1"),
    "intermediate_size": (64, "has 70 features, and here 64"),
}


@pytest.mark.parametrize("setting", CHANGES)
def test_an_adapter_of_another_model_raises_and_leaves_nothing(bert, setting, tmp_path):
    get_peft_model(bert, GraspConfig(groups=2)).save_pretrained(tmp_path)
    value, message = CHANGES[setting]
    setattr(bert.config, setting, value)
    other = type(bert)(bert.config)
    with pytest.raises(ValueError, match=f"made for another model: it.*{message}"):
        PeftModel.from_pretrained(other, tmp_path)
    assert not any("grasp" in name for name, _ in other.named_parameters())
    adapted = get_peft_model(type(bert)(bert.config), GraspConfig(groups=3))
    with pytest.raises(ValueError, match="made for another model"):
        adapted.load_adapter(tmp_path, "other")
    assert list(adapted.peft_config) == ["default"]
    assert not any(name.endswith(".other") for name in adapted.state_dict())


def test_the_heads_are_listed_once(make_model, tmp_path):
    adapted = get_peft_model(make_model("roberta"), GraspConfig(task_type="SEQ_CLS", groups=2))
    adapted.add_adapter("second", GraspConfig(task_type="SEQ_CLS", groups=2))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("roberta"), tmp_path)
    for saved in (tmp_path, tmp_path / "second"):
        assert sorted(PeftConfig.from_pretrained(str(saved)).modules_to_save) == [
            "classifier",
            "score",
        ]
    assert sorted(loaded.active_peft_config.modules_to_save) == ["classifier", "score"]


def test_the_head_of_a_token_classifier_is_listed_once(tmp_path):
    made = hf.BertForTokenClassification(hf.BertConfig(**TINY))
    adapted = get_peft_model(made, GraspConfig(task_type="TOKEN_CLS", groups=2))
    adapted.add_adapter("second", GraspConfig(task_type="TOKEN_CLS", groups=2))
    adapted.save_pretrained(tmp_path)
    for config in (*adapted.peft_config.values(), PeftConfig.from_pretrained(str(tmp_path))):
        assert sorted(config.modules_to_save) == ["classifier", "score"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": 0}, "groups is 0"),
        ({"grouping": "blocks"}, "contiguous, strided, random"),
        ({"grouping_seed": 0.5}, "grouping_seed is 0.5"),
        ({"form": "divide"}, "affine, normalize"),
        ({"form": "normalize", "sampling": "weight"}, "sampling is 'weight', .* 'normalize'"),
        ({"sampling": "layer"}, "feature, group, weight, token"),
        ({"noise_loss": "l1"}, "l2, kl"),
        ({"init_sigma": 0.0}, "init_sigma is 0.0"),
        ({"noise_weight": -1.0}, "noise_weight is -1.0"),
        ({"noise_target": 0.0}, "noise_target is 0.0"),
        ({"init_sigma": 11.0}, "init_sigma is 11.0: .* at most 10"),
        ({"init_sigma": "x"}, "init_sigma is 'x': a number"),
        ({"noise_weight": math.inf}, "noise_weight is inf: a finite number from 0 on"),
        ({"noise_weight": "1"}, "noise_weight is '1': a finite number"),
        ({"noise_target": math.inf}, "noise_target is inf: a finite number above 0"),
        ({"noise_target": None}, "noise_target is None: a number above 0 or a device at a time"),
        ({"noise_target": [0.1]}, r"noise_target is \[0.1\]: a number above 0 or a device"),
        ({"noise_target": DeviceCard.load("ideal")}, "noise_target is DeviceCard.*: a number"),
        ({"groups": True}, "groups is True: a whole number of at least 1 is accepted"),
        ({"grouping_seed": "1"}, "grouping_seed is '1': a whole number"),
        ({"layers_to_transform": [-1]}, "layers_to_transform is .-1.: an index"),
        ({"layers_to_transform": [0, True]}, "layers_to_transform is .0, True.: an index"),
        ({"layers_to_transform": "1"}, "layers_to_transform is '1': an index"),
        ({"layers_to_transform": []}, r"layers_to_transform is \[\]: an index"),
        ({"layers_to_transform": 1}, "target_modules to be a list of names"),
        ({"layers_pattern": "h", "target_modules": ["q"]}, "requires layers_to_transform"),
    ],
)
def test_settings_out_of_range_raise(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        StochGraspConfig(**settings)


def test_numbers_of_numpy_are_saved(tmp_path):
    values = {"groups": np.int64(4), "init_sigma": np.float32(0.5), "noise_target": np.float32(0.5)}
    settings = {"target_modules": ["q"], "layers_to_transform": [np.int64(1)]}
    StochGraspConfig(**values, **settings).save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert {name: getattr(loaded, name) for name in values} == values
    assert loaded.layers_to_transform == [1]


def test_a_noise_target_given_as_a_card_is_saved_by_its_name(tmp_path):
    card = DeviceCard.load("pcm-hermes-2")
    StochGraspConfig(noise_target=card.at("1d")).save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)).noise_target == "pcm-hermes-2@1d"


@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
def test_help_lists_every_setting(config):
    own = {field.name for field in fields(config)} - {field.name for field in fields(PeftConfig)}
    assert len(own) >= 9
    for name in own:
        assert f"\n        {name} (`" in GraspConfig.__doc__ + config.__doc__, name


def test_a_peft_that_does_not_accept_a_method_is_named(monkeypatch):
    def reject(**_):
        raise KeyError("There is already PEFT method called 'grasp'")

    monkeypatch.setattr(registration, "register_peft_method", reject)
    monkeypatch.setattr(registration, "PeftType", SimpleNamespace(__members__={}))
    monkeypatch.setattr(registration, "extend_enum", lambda *_: None)
    with pytest.raises(ImportError, match="does not accept grasp as a method"):
        registration.register("grasp", GraspConfig, object)


@pytest.fixture
def adapted(make_model):
    """Return a function that builds a tiny classifier with an adapter."""

    def make(config=GraspConfig, name="mine/bert", head=0.0, **settings):
        model = make_model("bert")
        model.config._name_or_path = model.name_or_path = name
        model.classifier.weight.data += head
        return get_peft_model(model, config(**{"task_type": "SEQ_CLS", "groups": 4} | settings))

    return make


@pytest.fixture
def saved(adapted, tmp_path):
    """Return the folder of a GRASP adapter with drawn parameters, and the adapter."""
    model = adapted(head=1.0)
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, GraspLinear):
            for mean in layer.means("default"):
                mean.data = torch.rand(mean.shape, generator=generator)
    model.save_pretrained(str(tmp_path / "grasp"), save_embedding_layers=False)
    return tmp_path / "grasp", model


def means(model):
    layers = [m for m in model.modules() if isinstance(m, GraspLinear)]
    return torch.stack([torch.stack(layer.means("default")) for layer in layers])


@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
def test_means_and_head_are_those_of_the_saved_adapter(adapted, saved, batch, config):
    folder, first = saved
    model = adapted(config)
    start_from(model, folder)
    assert torch.equal(means(model), means(first))
    with torch.no_grad():
        expected, found = first.eval()(**batch).logits, model.eval()(**batch).logits
    assert torch.equal(found, expected)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in adapted(config).named_parameters() if p.requires_grad}


def test_groups_without_a_number_start_from_as_many(adapted, tmp_path):
    saved = adapted(groups=None, target_modules=["query"])
    saved.save_pretrained(str(tmp_path), save_embedding_layers=False)
    # One group per feature of the model, which has 32.
    start_from(adapted(groups=32, target_modules=["query"]), tmp_path)
    with pytest.raises(ValueError, match="method, layers, groups and task must be the same"):
        start_from(adapted(groups=8, target_modules=["query"]), tmp_path)


def test_standard_deviations_stay_at_their_start(adapted, saved):
    model = adapted(StochGraspConfig, init_sigma=0.03)
    start_from(model, saved[0])
    for layer in model.modules():
        if isinstance(layer, StochGraspLinear):
            for sigma in layer.relative_sigmas("default"):
                torch.testing.assert_close(sigma, torch.full((4,), 0.03))


def test_stochgrasp_starts_from_stochgrasp_with_its_deviations(adapted, tmp_path):
    first = adapted(StochGraspConfig, init_sigma=0.2)
    first.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = adapted(StochGraspConfig)
    start_from(model, tmp_path)
    layer = next(m for m in model.modules() if isinstance(m, StochGraspLinear))
    torch.testing.assert_close(layer.relative_sigmas("default")[0], torch.full((4,), 0.2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "of the model 'mine/bert' and cannot start one of the model 'other'"),
        (
            {"name": "other/bert"},
            "or, if that has moved, correct base_model_name_or_path in .*json",
        ),
        ({"groups": 8}, "has groups 4 and cannot start one with 8"),
        ({"grouping": "strided"}, "has grouping contiguous and cannot start"),
        ({"target_modules": ["query"]}, "method, layers, groups and task must be the same"),
    ],
)
def test_an_adapter_that_does_not_fit_raises_one_sentence(adapted, saved, changes, message):
    with pytest.raises(ValueError, match=message):
        start_from(adapted(**changes), saved[0])


@pytest.mark.parametrize(
    "changed", [{"lora_alpha": 16}, {"use_rslora": True}, {"alpha_pattern": {"query": 8}}]
)
def test_an_adapter_with_another_factor_raises_one_sentence(make_model, changed, tmp_path):
    def lora(**settings):
        given = {"task_type": "SEQ_CLS", "lora_alpha": 32, "target_modules": ["query"]}
        return get_peft_model(make_model("bert"), LoraConfig(**given | settings))

    lora().save_pretrained(str(tmp_path), save_embedding_layers=False)
    start_from(lora(), tmp_path)
    with pytest.raises(ValueError, match=f"has {next(iter(changed))} .* and cannot start one with"):
        start_from(lora(**changed), tmp_path)


def test_a_model_is_the_same_by_any_path_of_its_folder(adapted, tmp_path, monkeypatch):
    for name in ("a/bert", "b/bert"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a/bert")
    monkeypatch.chdir(tmp_path)
    first = adapted(name=str(tmp_path / "a/bert"))
    first.save_pretrained("grasp", save_embedding_layers=False)
    for name in ("a/bert", "./a/bert/", "link"):
        start_from(adapted(name=name), "grasp")
    with pytest.raises(ValueError, match="cannot start one of the model 'b/bert'"):
        start_from(adapted(name="b/bert"), "grasp")


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CONFIG, b'{"a" 1}', "is not one that peft wrote .*delimiter.*train the adapter again"),
        (CONFIG, b"{}", "it states no peft_type"),
        (CONFIG, b"[]", "is not one that peft wrote"),
        (CONFIG, b'{"peft_type": "NONE"}', "is not one that peft wrote"),
        (CONFIG, b'{"peft_type": "GRASP", "base_model_name_or_path": 1}', "is no text"),
        (WEIGHTS, b"", "is damaged .*train the adapter again"),
        (WEIGHTS, b"damaged" * 9, "is damaged .*train the adapter again"),
    ],
)
def test_damaged_files_raise_one_sentence(adapted, saved, file, content, message):
    (saved[0] / file).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        start_from(adapted(), saved[0])
    assert f"The file {saved[0] / file} " in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "whole model", "no weights"])
def test_folders_without_an_adapter_raise_without_the_hub(
    adapted, saved, make_model, kind, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("peft.config.hf_hub_download", fail)
    monkeypatch.setattr("peft.utils.save_and_load.file_exists", fail)
    folder = tmp_path / "model"
    if kind == "whole model":
        make_model("bert").save_pretrained(folder)
    elif kind == "no weights":
        folder = saved[0]
        (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} holds no adapter: .*{CONFIG}"):
        start_from(adapted(), folder)


def test_an_adapter_of_another_method_raises_one_sentence(adapted, saved, make_model, tmp_path):
    adapted(StochGraspConfig).save_pretrained(str(tmp_path / "s"), save_embedding_layers=False)
    with pytest.raises(ValueError, match="method STOCHGRASP and cannot start one with GRASP"):
        start_from(adapted(), tmp_path / "s")
    model = make_model("bert")
    model.config._name_or_path = model.name_or_path = "mine/bert"
    with pytest.raises(ValueError, match="method GRASP and cannot start one with BITFIT"):
        start_from(adapt(model, "bitfit"), saved[0])
