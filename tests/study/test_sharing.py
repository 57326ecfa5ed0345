"""Adapters of one pre-trained model hold it once, and compute what they did."""

import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model

from analog_grasp import GraspConfig
from analog_grasp.study.evaluator import Bench
from analog_grasp.study.sharing import share_frozen


@pytest.fixture
def adapted(make_model):
    """GRASP on every layer and LoRA on some, each on a model of its own, as they are loaded."""
    common = {"task_type": "SEQ_CLS"}
    configs = {
        "grasp": GraspConfig(groups=4, target_modules="all-linear", **common),
        "lora": LoraConfig(r=2, target_modules=["query"], **common),
    }
    return {
        name: get_peft_model(make_model("bert"), config).eval().requires_grad_(False)
        for name, config in configs.items()
    }


def numbers(*models):
    """Numbers held, each once."""
    held = {id(p): p.numel() for model in models for p in model.parameters()}
    return sum(held.values())


def test_models_under_other_adapters_share_all_but_these(adapted, batch):
    before = [model(**batch).logits for model in adapted.values()]
    own = [sum(p.numel() for n, p in m.named_parameters() if "grasp_" in n or "lora_" in n)
           for m in adapted.values()]  # fmt: skip
    base = numbers(adapted["grasp"]) - own[0]
    share_frozen(adapted.values())
    assert numbers(*adapted.values()) == base + sum(own)
    for model, logits in zip(adapted.values(), before, strict=True):
        torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)


def test_what_differs_or_is_trained_stays_a_models_own(adapted):
    first, second = adapted.values()
    query = second.get_base_model().bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        query.base_layer.weight[0, 0] += 1
    key = second.get_base_model().bert.encoder.layer[0].attention.self.key
    key.weight.requires_grad_(True)
    share_frozen([first, second])
    layer = first.get_base_model().bert.encoder.layer[0].attention.self
    assert query.base_layer.weight is not layer.query.base_layer.weight
    assert key.weight is not layer.key.base_layer.weight
    assert query.base_layer.bias is layer.query.base_layer.bias


def test_a_bench_goes_to_a_worker_with_one_pre_trained_model(adapted, task):
    bench = pickle.loads(pickle.dumps(Bench(task, adapted, {}, {})))
    one = numbers(adapted["grasp"])
    assert numbers(*bench.models.values()) < 1.2 * one
