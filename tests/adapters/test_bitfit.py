"""BitFit as a PEFT method: the bias learned beside the frozen one."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.bitfit import BitFitConfig, BitFitLayer

LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv1d": lambda: Conv1D(4, 6),
    "norm": lambda: nn.LayerNorm(6),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    wrapped = BitFitLayer(LAYERS[request.param](), "default", BitFitConfig())
    nn.init.normal_(wrapped.bitfit_bias["default"])
    return wrapped


@pytest.fixture
def x():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(2))


def test_the_learned_bias_is_added(layer, x):
    torch.testing.assert_close(layer(x), layer.base_layer(x) + layer.bitfit_bias["default"])


def test_its_gradient_is_that_of_the_bias(layer, x):
    layer.base_layer.bias.requires_grad_(True)
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.bitfit_bias["default"].grad, layer.base_layer.bias.grad)


def test_merged_and_unmerged_it_is_the_same(layer, x):
    before, frozen = layer(x), layer.base_layer.bias.clone()
    layer.merge(safe_merge=True)
    torch.testing.assert_close(layer.base_layer(x), before)
    torch.testing.assert_close(layer(x), before)
    layer.unmerge()
    assert torch.equal(layer.base_layer.bias, frozen)
    torch.testing.assert_close(layer(x), before)


def test_several_adapters_add_up(layer, x):
    one = layer(x) - layer.base_layer(x)
    layer.update_layer("second", BitFitConfig())
    nn.init.constant_(layer.bitfit_bias["second"], 2.0)
    layer.set_adapter(["default", "second"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) + one + 2)


def test_disabled_it_is_the_frozen_layer(layer, x):
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_a_bias_that_is_not_finite_is_not_merged(layer):
    layer.bitfit_bias["default"].data[0] = torch.nan
    with pytest.raises(ValueError, match="a bias that it learned is not finite"):
        layer.merge(safe_merge=True)


def test_chosen_layers_alone(bert):
    adapted = get_peft_model(bert, BitFitConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert sum("bitfit_" in name for name, _ in adapted.named_parameters()) == 2


def test_a_layer_without_a_bias_is_refused(bert):
    with pytest.raises(ValueError, match="A Embedding has no bias that BitFit could train"):
        get_peft_model(bert, BitFitConfig(target_modules=["word_embeddings"]))


def test_a_model_without_biases_is_refused():
    tiny = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9,
                       num_attention_heads=2)  # fmt: skip
    with pytest.raises(ValueError, match="LlamaForCausalLM has no biases for BitFit to train"):
        get_peft_model(LlamaForCausalLM(tiny), BitFitConfig(task_type="CAUSAL_LM"))
