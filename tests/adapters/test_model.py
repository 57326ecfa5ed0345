"""GRASP and StochGRASP as PEFT methods, on real architectures."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear

K = 5
LAYERS = {"bert": 13, "roberta": 12, "gpt2": 8}  # all linear layers but the head
CONFIGS = {"grasp": GraspConfig, "stochgrasp": StochGraspConfig}


@pytest.fixture(params=sorted(CONFIGS))
def config(request):
    return CONFIGS[request.param](task_type="SEQ_CLS", groups=K)


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_trainable_numbers_are_two_or_four_k_a_layer(model, config):
    layers = LAYERS[model.config.model_type]
    adapted = get_peft_model(model, config)
    trainable = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    of_adapter = sum(p.numel() for n, p in trainable.items() if "grasp_" in n)
    each = 4 * K if isinstance(config, StochGraspConfig) else 2 * K
    assert of_adapter == each * layers
    others = [n for n in trainable if "grasp_" not in n]
    assert others
    assert all("modules_to_save" in n for n in others)


def test_saves_and_loads_in_a_fresh_process(bert, config, batch, shaken, tmp_path):
    bert.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(bert, config)
    shaken(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert {p.name for p in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
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


def test_several_adapters_on_one_model(model, config, batch, shaken):
    adapted = get_peft_model(model, config)
    first = logits(adapted, batch)
    adapted.add_adapter("second", CONFIGS[config.peft_type.lower()](task_type="SEQ_CLS", groups=2))
    adapted.set_adapter("second")
    shaken(adapted)
    assert not torch.allclose(logits(adapted, batch), first)
    assert {n.split(".")[-1] for n, p in adapted.named_parameters() if p.requires_grad} <= {
        "second",
        "weight",
        "bias",
    }


def test_disabled_adapter_gives_the_frozen_model(model, config, batch, shaken):
    frozen = logits(model, batch)
    adapted = get_peft_model(model, config)
    shaken(adapted)
    assert not torch.allclose(logits(adapted, batch), frozen)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted, batch), frozen)


def test_merge_and_unmerge_on_the_whole_model(model, config, batch, shaken):
    adapted = get_peft_model(model, config)
    shaken(adapted)
    before = {n: p.clone() for n, p in adapted.named_parameters() if "base_layer" in n}
    expected = logits(adapted, batch)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted, batch), expected, atol=1e-5, rtol=1e-4)
    adapted.unmerge_adapter()
    assert all(torch.equal(p, before[n]) for n, p in adapted.named_parameters() if n in before)


def test_merge_and_unload_leaves_a_plain_model(model, config, batch, shaken):
    adapted = get_peft_model(model, config)
    shaken(adapted)
    expected = logits(adapted, batch)
    plain = adapted.merge_and_unload()
    assert not any(isinstance(m, GraspLinear) for m in plain.modules())
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("target", "count"), [(["query", "value"], 4), (r".*layer\.1\..*dense", 3), ("all-linear", 13)]
)
def test_target_modules_as_peft_has_them(bert, target, count):
    adapted = get_peft_model(
        bert, GraspConfig(groups=2, target_modules=target, task_type="SEQ_CLS")
    )
    assert len(list(adapted.base_model.modulated_layers())) == count


def test_sampling_in_evaluation_is_asked_for(bert, batch):
    adapted = get_peft_model(bert, StochGraspConfig(task_type="SEQ_CLS", groups=K))
    means = logits(adapted, batch)
    with adapted.base_model.sampling():
        assert not torch.allclose(logits(adapted, batch), means)
    torch.testing.assert_close(logits(adapted, batch), means)


def test_groups_above_the_features_are_refused(bert):
    with pytest.raises(ValueError, match=r"groups is 33.*32 input features"):
        get_peft_model(bert, GraspConfig(groups=33))


def test_an_adapter_of_another_model_is_refused(bert, make_model, tmp_path):
    get_peft_model(bert, GraspConfig(groups=2)).save_pretrained(tmp_path)
    bert.config.num_hidden_layers = 1
    smaller = type(bert)(bert.config)
    with pytest.raises(ValueError, match=r"made for another model.*6 layers that this one has not"):
        PeftModel.from_pretrained(smaller, tmp_path)


def test_an_adapter_for_other_widths_is_refused(bert, tmp_path):
    get_peft_model(bert, GraspConfig(groups=2)).save_pretrained(tmp_path)
    bert.config.intermediate_size = 64
    with pytest.raises(ValueError, match=r"made for another model.*takes 70 features.*takes 64"):
        PeftModel.from_pretrained(type(bert)(bert.config), tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": 0}, "groups is 0"),
        ({"grouping": "random"}, "contiguous, strided"),
        ({"sampling": "layer"}, "feature, group, weight"),
        ({"noise_loss": "l1"}, "l2, kl"),
        ({"init_sigma": 0.0}, "init_sigma is 0.0"),
        ({"noise_weight": -1.0}, "noise_weight is -1.0"),
        ({"noise_target": 0.0}, "noise_target is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        StochGraspConfig(**settings)


def test_a_peft_that_refuses_is_named(monkeypatch):
    def refuse(**_):
        raise KeyError("There is already PEFT method called 'grasp'")

    monkeypatch.setattr(registration, "register_peft_method", refuse)
    monkeypatch.setattr(registration, "PeftType", SimpleNamespace(__members__={}))
    monkeypatch.setattr(registration, "extend_enum", lambda *_: None)
    with pytest.raises(ImportError, match="refuses grasp as a method"):
        registration.register()
