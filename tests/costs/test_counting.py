"""Counting of work: layouts, kernels of torch, choices and windows, against values by hand."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMultipleChoice, MistralConfig, MistralForCausalLM

import analog_grasp as ag
from analog_grasp.adapters.registry import adapt
from analog_grasp.costs import costs


class Mixer(nn.Module):
    """A product along the tokens, whose inputs are not contiguous, and a norm."""

    def __init__(self):
        super().__init__()
        self.mix, self.norm = nn.Linear(8, 8), nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(input=self.mix(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("on_tiles", [True, False])
def test_a_product_of_inputs_that_are_not_contiguous_is_no_attention(on_tiles):
    layers = "all-linear" if on_tiles else ()
    deployment = ag.deploy(Mixer(), "ideal", layers=layers)
    work = costs(deployment, inputs={"x": torch.randn(5, 8, 4)}).work
    products = 5 * 4 * 8 * 8
    assert work.attention_macs == 0
    expected = (products, 0) if on_tiles else (0, products)
    assert (work.analog_macs, work.linear_macs) == expected
    # The norm is called by keyword.
    assert work.norm_macs == 4 * 5 * 8 * 4


@pytest.mark.parametrize("batch_first", [True, False])
def test_digital_attention_of_torch_is_counted_apart_from_its_projections(batch_first):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first).eval()
    x = torch.randn(3, 8, 16) if batch_first else torch.randn(8, 3, 16)
    fast = torch.backends.mha.get_fastpath_enabled()
    work = costs(ag.deploy(layer, "ideal", layers=()), inputs={"src": x}).work
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert work.attention_macs == 2 * 3 * 8 * 8 * 16
    assert work.linear_macs == 3 * 8 * (4 * 16**2 + 2 * 16 * 32)
    assert work.norm_macs == 4 * 2 * 3 * 8 * 16


def test_choices_are_sequences():
    config = BertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=10,
    )  # fmt: skip
    deployment = ag.deploy(BertForMultipleChoice(config), "ideal")
    work = costs(deployment, inputs={"input_ids": torch.ones(2, 4, 8, dtype=torch.long)}).work
    assert (work.batch, work.sequence) == (8, 8)
    with pytest.raises(ValueError, match=r"inputs of the BertForMultipleChoice are choices.*give"):
        costs(deployment, sequence=8)


def test_a_window_limits_the_tokens_that_are_read():
    config = MistralConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50, sliding_window=4,
    )  # fmt: skip
    work = costs(ag.deploy(MistralForCausalLM(config), "ideal"), sequence=12).work
    # Keys and values of 2 heads of 8 features in 2 layers, 2 bytes each; of 12 tokens the first
    # three read as many, and the others 4.
    assert work.cache_traffic == 128 * (12 + 1 + 2 + 3 + 9 * 4)


def test_the_standard_deviations_of_an_adapter_are_not_deployed():
    sizes = []
    for kind in ("grasp", "stochgrasp"):
        model = adapt(ag.load_base_model(ag.load_task("reviews")), kind, groups=4)
        sizes.append(costs(ag.deploy(model, "ideal"), sequence=4).work.adapter_bytes)
    assert sizes[0] == sizes[1]
