"""Dropout in training: that of the pre-trained model, and that of the adapter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, TrainerCallback

from analog_grasp.training import train, trainer


class Dropped(TrainerCallback):
    """A callback that records the dropout rates at the first step."""

    def on_step_begin(self, args, state, control, model, **_):
        self.rates = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_that_of_the_model_and_not_of_the_adapter(reader, task, dropout):
    config = LoraConfig(task_type="SEQ_CLS", lora_dropout=0.5, target_modules=["query"])
    model, seen = get_peft_model(reader(), config), Dropped()
    train(model, task, dropout=dropout, max_steps=1, callbacks=[seen])
    adapter = {name: rate for name, rate in seen.rates.items() if "lora_dropout" in name}
    assert set(adapter.values()) == {0.5}
    assert {r for n, r in seen.rates.items() if n not in adapter} == {0.1 if dropout else 0.0}
    rates = {m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.1, 0.5}


def test_rates_without_a_module_of_dropout_are_disabled():
    config = OPTConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5,
        layerdrop=0.5,
    )  # fmt: skip
    model, ids = OPTForCausalLM(config).train(), torch.randint(3, 50, (2, 8))
    with trainer._dropout(model, on=False):
        assert torch.equal(model(ids).logits, model(ids).logits)
    layer = model.model.decoder.layers[0]
    assert (layer.dropout, layer.self_attn.dropout, model.model.decoder.layerdrop) == (0.5,) * 3
