"""Converters in the loop, compared with a deployed model without noise."""

from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.functional import linear
from transformers import Llama4ForCausalLM, Llama4TextConfig
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.adapters.registry import adapt
from analog_grasp.crossbar import deploy
from analog_grasp.devices.card import DeviceCard
from analog_grasp.training import ConverterLoop, WeightNoise, weight_noise

CARD = "pcm-hermes-2"
CONVERTERS = {"programming_noise": False, "drift": False, "read_noise": False}


@pytest.fixture
def quiet_card(tmp_path, monkeypatch):
    """A card with noiseless converters, whose tiles split every layer."""
    card = DeviceCard.load(CARD)
    quiet = card.model_copy(
        update={
            "converters": card.converters.model_copy(update={"output_noise": 0.0}),
            "tile": card.tile.model_copy(update={"rows": 20, "columns": 12}),
        }
    )
    monkeypatch.setattr(DeviceCard, "load", lambda _: quiet)
    return quiet


@pytest.fixture(params=[nn.Linear, Conv1D])
def layer(request):
    torch.manual_seed(0)
    layer = nn.Linear(30, 7) if request.param is nn.Linear else Conv1D(7, 30)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer.requires_grad_(False)


def weight_by_output(layer):
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def test_output_equals_that_of_the_deployed_model(model, batch, quiet_card):
    adapted = get_peft_model(model, GraspConfig(task_type="SEQ_CLS", groups=4)).eval()
    for _, projection in frozen_layers(adapted):
        # Initial weights are too small to affect the logits.
        projection.weight.data.mul_(20)
    chip = deploy(adapted, quiet_card, **CONVERTERS).program(0)
    exact = adapted(**batch).logits
    with ConverterLoop(adapted, CARD).applied():
        converted = adapted(**batch).logits
    torch.testing.assert_close(converted, chip.model(**batch).logits, atol=1e-5, rtol=1e-5)
    assert (converted - exact).abs().max() > 1e-3
    assert torch.equal(adapted(**batch).logits, exact)


@pytest.mark.parametrize("reduced", [True, False])
def test_gradient_is_straight_through(layer, monkeypatch, reduced):
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: reduced)
    x = torch.randn(5, 3, 30, requires_grad=True)
    direction = torch.randn(5, 3, 7)
    with ConverterLoop(nn.Sequential(layer), CARD).applied():
        layer(x).backward(direction)
    tolerance = {"atol": 0.03, "rtol": 2**-8} if reduced else {}
    torch.testing.assert_close(x.grad, direction @ weight_by_output(layer), **tolerance)


def test_trainable_weights_receive_gradients_and_updates(layer, quiet_card):
    layer.requires_grad_(True)
    loop, x = ConverterLoop(nn.Sequential(layer), CARD), torch.randn(4, 30)
    for _ in range(2):
        with loop.applied():
            y = layer(x)
        y.backward(torch.ones_like(y))
        steps = x.abs().max() * weight_by_output(layer).abs().amax(1).max() * 30 / 127
        assert (y - linear(x, weight_by_output(layer), layer.bias)).abs().max() < steps
        layer.weight.data.mul_(3).add_(0.1)
    assert torch.equal(layer.bias.grad, torch.full((7,), 8.0))
    expected = 2 * x.sum(0).expand(7, 30)
    grad = layer.weight.grad.T if isinstance(layer, Conv1D) else layer.weight.grad
    torch.testing.assert_close(grad, expected)


def test_noise_injection_keeps_the_column_scale_of_the_targets(layer, quiet_card):
    stack, x = nn.Sequential(layer), torch.randn(64, 30)
    loop, noise = ConverterLoop(stack, CARD), WeightNoise(stack, 0.2)
    clean = layer(x)
    with loop.applied(), noise.applied():
        noisy, converted = linear(x, weight_by_output(layer), layer.bias), layer(x)
    assert (noisy - clean).abs().mean() > 10 * (converted - noisy).abs().mean() > 0


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt])
def test_layers_are_restored_on_any_exit(layer, ending):
    with pytest.raises(ending), ConverterLoop(nn.Sequential(layer), CARD).applied():
        raise ending
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("reduced", [True, False])
def test_a_forward_of_the_layer_itself_is_restored(layer, monkeypatch, reduced):
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: reduced)
    layer.forward = own = partial(type(layer).forward, layer)
    stack = nn.Sequential(layer)
    for context in (ConverterLoop(stack, CARD), WeightNoise(stack, 0.1, reduced=reduced)):
        with context.applied():
            assert (layer.forward is own) == (isinstance(context, WeightNoise) and not reduced)
        assert layer.forward is own


def test_output_noise_is_seeded_by_torch(layer):
    loop, x, drawn = ConverterLoop(nn.Sequential(layer), CARD), torch.randn(4, 30), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with loop.applied():
            drawn.append(layer(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_autocast_is_off_inside_the_converters(layer, quiet_card):
    x = torch.randn(4, 30).bfloat16()
    with ConverterLoop(nn.Sequential(layer), CARD).applied():
        exact = layer(x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = layer(x)
    torch.testing.assert_close(mixed.float(), exact, atol=0.02, rtol=0.01)


def test_bias_adapters_are_applied(bert, batch):
    adapted = adapt(bert, "bitfit")
    with ConverterLoop(adapted, CARD).applied():
        adapted(**batch).logits.sum().backward()
    biases = [p.grad for n, p in adapted.named_parameters() if "bitfit_bias" in n]
    assert sum(bool(g.any()) for g in biases) > len(biases) / 2


def test_only_frozen_projections_have_converters(bert):
    adapted = adapt(bert, "lora")
    frozen = {id(layer) for _, layer in frozen_layers(adapted)}
    with ConverterLoop(adapted, CARD).applied():
        changed = {id(m) for m in adapted.modules() if "forward" in vars(m)}
    assert changed == frozen


def with_converters(model, pattern):
    with ConverterLoop(model, CARD, pattern).applied():
        return {name for name, module in model.named_modules() if "forward" in vars(module)}


@pytest.mark.parametrize("pattern", ["all-linear", ".*output.*", ["query", "key"]])
def test_the_layers_that_are_deployed_have_converters(bert, pattern):
    assert with_converters(bert, pattern) == set(deploy(bert, CARD, layers=pattern).layers)


def test_fused_weights_and_named_routers_are_computed_as_before():
    torch.manual_seed(0)
    config = Llama4TextConfig(
        hidden_size=16, intermediate_size=24, intermediate_size_mlp=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, vocab_size=40, pad_token_id=0,
        num_local_experts=3, num_experts_per_tok=1,
    )  # fmt: skip
    model, ids = Llama4ForCausalLM(config).eval(), torch.arange(8)[None]
    layers = ["q_proj", "router", "gate_up_proj"]
    assert len(deploy(model, CARD, layers=layers).layers) == 1 + 1 + 3
    assert with_converters(model, layers) == {"model.layers.0.self_attn.q_proj"}
    exact = model(ids).logits
    with ConverterLoop(model, CARD, ["router", "gate_up_proj"]).applied():
        assert torch.equal(model(ids).logits, exact)


def test_device_without_converters_raises(layer):
    with pytest.raises(
        ValueError, match="converters is 'ideal', a device that states no converters"
    ):
        ConverterLoop(nn.Sequential(layer), "ideal")
