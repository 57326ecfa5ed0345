"""Frozen layers, task heads and folding."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import logits, move
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from analog_grasp.adapters.bitfit import BitFitConfig
from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.frozen import base_name, fold, frozen_layers, head_names, save_head
from analog_grasp.adapters.registry import ADAPTERS, adapt

EXPECTED = {"bert": 13, "roberta": 12, "gpt2": 8}


def test_the_same_layers_are_frozen_with_and_without_an_adapter(model):
    count = EXPECTED[model.config.model_type]
    bare = [base_name(path) for path, _ in frozen_layers(model)]
    adapted = get_peft_model(model, GraspConfig(task_type="SEQ_CLS", groups=2))
    wrapped = [base_name(path) for path, _ in frozen_layers(adapted)]
    assert len(bare) == count
    assert wrapped == bare


def test_the_matrices_of_another_adapter_are_not_frozen_layers(bert):
    adapted = get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert not any("lora" in path for path, _ in frozen_layers(adapted))


def test_the_output_embedding_is_no_frozen_layer():
    tiny = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10, bos_token_id=1, eos_token_id=2)
    assert "lm_head" not in [path for path, _ in frozen_layers(GPT2LMHeadModel(tiny))]


@pytest.mark.parametrize(
    ("pattern", "count"), [(["query"], 2), (r".*layer\.0\..*", 6), (["pooler.dense"], 1)]
)
def test_patterns_choose_layers(bert, pattern, count):
    assert len(list(frozen_layers(bert, pattern))) == count


def test_a_pattern_without_a_match_raises(bert):
    with pytest.raises(ValueError, match="'quary' matches no frozen linear layer"):
        list(frozen_layers(bert, "quary"))


_TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8, "vocab_size": 10}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (lambda: hf.BertModel(hf.BertConfig(**_TINY)), []),
        (lambda: hf.BertForMaskedLM(hf.BertConfig(**_TINY)), []),
        (lambda: hf.BertForQuestionAnswering(hf.BertConfig(**_TINY)), ["qa_outputs"]),
        (lambda: hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**_TINY)),
         ["pooler", "classifier"]),
        (lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**_TINY)), ["score"]),
        (lambda: hf.T5ForSequenceClassification(
            hf.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=10)),
         ["classification_head"]),
        (lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**_TINY, projection_dim=4)), []),
        (lambda: hf.BertForNextSentencePrediction(hf.BertConfig(**_TINY)), []),
        (lambda: nn.Sequential(nn.Linear(2, 2)), []),
    ],
)  # fmt: skip
def test_the_head_is_what_follows_the_body(model, head):
    made = model()
    assert head_names(made) == head
    assert not [path for path, _ in frozen_layers(made) if path.partition(".")[0] in head]


@pytest.mark.parametrize("config", [GraspConfig, LoraConfig, BitFitConfig])
def test_the_head_is_saved_with_any_adapter(config):
    asked = config(task_type="SEQ_CLS", target_modules=["q_lin"])
    tiny = hf.DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, vocab_size=10)
    model = hf.DistilBertForSequenceClassification(tiny)
    save_head(asked, model)
    save_head(asked, model)
    assert asked.modules_to_save == ["pre_classifier", "classifier"]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_folded_model_computes_the_same(model, name, batch):
    adapted = move(adapt(model, name, groups=4), std=0.05)
    expected, names = logits(adapted, batch), set(type(model)(model.config).state_dict())
    folded = fold(adapted)
    assert not isinstance(folded, PeftModel)
    # A layer that had no bias may have one now: the folded shift.
    assert set(folded.state_dict()) >= names
    assert not any("base_layer" in n or "modules_to_save" in n for n in folded.state_dict())
    torch.testing.assert_close(logits(folded, batch), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_that_is_not_finite_is_not_folded(bert):
    adapted = adapt(bert, "bitfit")
    next(p for n, p in adapted.named_parameters() if "bitfit_" in n).data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        fold(adapted)


def test_error_of_a_model_without_linear_layers_does_not_suggest_all_linear():
    with pytest.raises(ValueError, match=r"^The Sequential has no frozen linear layer: use a "):
        list(frozen_layers(nn.Sequential(nn.LayerNorm(4)), "all-linear"))


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (["query", "quary"], "'quary' matches"),
        (["all-linear", "nope"], "'nope' matches"),
        (["quary", "query", "nope"], "'quary', 'nope' matches"),
        (["quary"], "'quary' matches"),
    ],
)
def test_each_name_of_a_pattern_must_match(bert, pattern, named):
    sentence = f"^The layer pattern {named} no frozen linear layer of .*: use 'all-linear' or names"
    with pytest.raises(ValueError, match=sentence):
        list(frozen_layers(bert, pattern))


def test_a_name_may_match_fused_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    assert [path for path, _ in frozen_layers(model, ["0", "in_proj_weight"])] == ["0"]


def test_routers_are_frozen_layers_only_if_they_are_named():
    block = nn.ModuleDict({"gate": nn.Linear(4, 2), "experts": nn.ModuleList([nn.Linear(4, 4)])})
    dense = nn.ModuleDict({"gate": nn.Linear(4, 4), "shared_expert_gate": nn.Linear(4, 1)})
    router = nn.ModuleDict({"router": nn.Sequential(nn.Linear(4, 2))})
    model = nn.ModuleDict({"block": block, "dense": dense, "other": router})
    assert [path for path, _ in frozen_layers(model)] == ["block.experts.0", "dense.gate"]
    named = [path for path, _ in frozen_layers(model, ["all-linear", "block.gate", "router.0"])]
    assert named == ["block.gate", "block.experts.0", "dense.gate", "other.router.0"]


@pytest.mark.parametrize("name", ["lora", "grasp"])
def test_each_target_of_an_adapter_must_match(bert, name):
    before = [path for path, _ in bert.named_modules()]
    with pytest.raises(ValueError, match=r"^The target 'quary' of the adapter matches no layer of"):
        adapt(bert, name, target_modules=["query", "quary"])
    with pytest.raises(ValueError, match="'quary' of the adapter matches no layer"):
        get_peft_model(bert, GraspConfig(target_modules=["query", "quary"]))
    assert [path for path, _ in bert.named_modules()] == before
