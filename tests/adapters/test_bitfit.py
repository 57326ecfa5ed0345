"""BitFit as a PEFT method."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from small_models import move
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel
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


def test_the_gradient_is_that_of_the_bias(layer, x):
    layer.base_layer.bias.requires_grad_(True)
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.bitfit_bias["default"].grad, layer.base_layer.bias.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_keeps_the_outputs_and_unmerging_restores_the_bias(layer, x, dtype):
    before, frozen = layer(x), layer.base_layer.bias.clone()
    layer.merge(safe_merge=True)
    torch.testing.assert_close(layer.base_layer(x), before)
    torch.testing.assert_close(layer(x), before)
    layer.to(dtype)
    layer.unmerge()
    assert torch.equal(layer.base_layer.bias, frozen.to(dtype))
    torch.testing.assert_close(layer(x.to(dtype)).float(), before)


def test_several_adapters_add_up_and_mix_in_a_batch(layer, x):
    frozen, one = layer.base_layer(x), layer(x)
    layer.update_layer("second", BitFitConfig())
    nn.init.constant_(layer.bitfit_bias["second"], 2.0)
    mixed = layer(x, adapter_names=["default", "second", "__base__", "second", "default"])
    expected = torch.stack([one[0], frozen[1] + 2, frozen[2], frozen[3] + 2, one[4]])
    torch.testing.assert_close(mixed, expected)
    layer.set_adapter(["default", "second"])
    torch.testing.assert_close(layer(x), one + 2)


def test_a_disabled_adapter_leaves_the_frozen_layer(layer, x):
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_a_bias_that_is_not_finite_is_not_merged(layer):
    layer.bitfit_bias["default"].data[0] = torch.nan
    with pytest.raises(ValueError, match="a bias is not finite"):
        layer.merge(safe_merge=True)


def test_layers_can_be_chosen(bert):
    adapted = get_peft_model(bert, BitFitConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert sum("bitfit_" in name for name, _ in adapted.named_parameters()) == 2


def test_the_name_of_a_layer_may_be_the_ending_of_another(x, tmp_path):
    def nested():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))

    adapted = move(get_peft_model(nested(), BitFitConfig()))
    assert adapted.get_nb_trainable_parameters()[0] == 8
    adapted.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(nested(), tmp_path)(x), adapted(x))
    adapted.add_adapter("other", BitFitConfig())
    adapted.set_adapter("other")
    torch.testing.assert_close(adapted(x), nested()(x))


def test_a_layer_without_a_bias_raises(bert):
    with pytest.raises(ValueError, match="A Embedding has no bias to train with BitFit"):
        get_peft_model(bert, BitFitConfig(target_modules=["word_embeddings"]))


def test_a_model_without_biases_raises():
    tiny = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9,
                       num_attention_heads=2)  # fmt: skip
    with pytest.raises(ValueError, match="LlamaForCausalLM has no biases for BitFit to train"):
        get_peft_model(LlamaForCausalLM(tiny), BitFitConfig(task_type="CAUSAL_LM"))


def test_layers_that_are_read_and_never_called_are_not_adapted():
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    model = get_peft_model(SiglipVisionModel(config), BitFitConfig())
    learned = [name for name, module in model.named_modules() if isinstance(module, BitFitLayer)]
    assert any("self_attn.out_proj" in name for name in learned)
    assert not any("attention.out_proj" in name for name in learned)
