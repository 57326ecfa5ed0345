"""Ranges of converters by least error, and first tokens that are computed digitally."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from analog_grasp import Deployment, DeviceCard, deploy
from analog_grasp.crossbar.forward_hooks import hooks_of
from analog_grasp.devices.schema import LayerMapping

IDS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, vocab_size=40, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def outlying_inputs(outlier):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    x[0, 0] = outlier
    return x


def squared_error(x, size, bits=8):
    step = size / (2 ** (bits - 1) - 1)
    return float((x - (x.clamp(-size, size) / step).round() * step).square().sum())


@pytest.mark.parametrize("outlier", [3.0, 30.0, 1000.0])
def test_the_range_has_the_least_error(outlier):
    x = outlying_inputs(outlier)
    deployment = deploy(nn.Sequential(nn.Linear(8, 4)), "pcm-hermes-2").program(0)
    found = deployment.calibrate(lambda model: model(x), "least-error")["0"]
    candidates = [outlier * 1.05 * 0.97**i for i in range(250)]
    assert squared_error(x, found) < 1.1 * min(squared_error(x, size) for size in candidates)


@pytest.mark.parametrize("outlier", [7, 48])
@pytest.mark.parametrize("percentile", [99.9, 99.0])
def test_a_percentile_of_many_inputs_is_that_of_all_features(outlier, percentile):
    x = torch.randn(64 * 128, 384, generator=torch.Generator().manual_seed(1))
    x[:, outlier] *= 50
    deployment = deploy(nn.Sequential(nn.Linear(384, 4)), "pcm-hermes-2").program(0)
    found = deployment.calibrate(lambda model: model(x), percentile)["0"]
    assert found == pytest.approx(np.percentile(x.abs(), percentile), rel=0.15)


@pytest.mark.parametrize("position", [0, 3])
def test_a_percentile_of_many_inputs_is_that_of_all_positions(position):
    x = torch.randn(32, 96, 64, generator=torch.Generator().manual_seed(1))
    x[:, position] *= 50
    deployment = deploy(nn.Sequential(nn.Linear(64, 4)), "pcm-hermes-2").program(0)
    found = deployment.calibrate(lambda model: model(x), 99.5)["0"]
    assert found == pytest.approx(np.percentile(x.abs(), 99.5), rel=0.02)


@pytest.mark.parametrize("outlier", [7, 20])
def test_a_percentile_of_many_outputs_is_that_of_all_columns_of_a_tile(outlier):
    linear = nn.Linear(12, 24, bias=False)
    linear.weight.data = torch.eye(12).repeat(2, 1)
    linear.weight.data[outlier] = 1.0
    x = torch.rand(24 * 1024, 12, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 1.0
    card = DeviceCard.load("ideal").with_(adc_bits=8)
    deployment = deploy(nn.Sequential(linear), card).program(0)
    [[found]] = deployment.calibrate_outputs(lambda model: model(x), 97.0)["0"]
    assert found == pytest.approx(np.percentile(linear(x).detach().abs(), 97.0), rel=0.02)


def test_an_exact_converter_has_no_least_error():
    card = DeviceCard.load("ideal").with_(adc_bits=8)
    deployment = deploy(nn.Sequential(nn.Linear(8, 4)), card).program(0)
    with pytest.raises(ValueError, match="card ideal has an exact DAC"):
        deployment.calibrate(lambda model: model(torch.ones(2, 8)), "least-error")


def test_a_card_without_converters_has_no_input_ranges():
    deployment = deploy(nn.Sequential(nn.Linear(8, 4)), "ideal").program(0)
    with pytest.raises(ValueError, match=r"card ideal has no converters.*: use a card with conv"):
        deployment.calibrate(lambda model: model(torch.ones(2, 8)))
    with pytest.raises(ValueError, match=r"card ideal has no converters.*: use a card with conv"):
        deployment.set_input_ranges({"0": 1.0})


@pytest.mark.parametrize("rule", [100.0, "least-error"])
def test_a_chip_without_layers_has_no_ranges(rule):
    deployment = deploy(nn.Sequential(nn.Linear(8, 4)), "pcm-hermes-2", layers=[]).program(0)
    assert deployment.calibrate(lambda model: model(torch.ones(2, 8)), rule) == {}
    assert deployment.calibrate_outputs(lambda model: model(torch.ones(2, 8)), rule) == {}


@pytest.fixture
def small_outputs():
    """A layer of 2 x 2 tiles, the outputs of which differ by tile."""
    linear = nn.Linear(96, 24)
    generator = torch.Generator().manual_seed(3)
    linear.weight.data = torch.randn(24, 96, generator=generator)
    linear.weight.data[:, 0] = 30.0
    linear.weight.data[:12, 48:] = 0.0
    x = torch.randn(200, 96, generator=generator)
    x[:, 0] = 0.0
    return nn.Sequential(linear), x


def adc_alone():
    """Exact devices behind an ADC of 8 bits."""
    card = DeviceCard.load("ideal").with_(adc_bits=8, output_noise=0.0, tile_size=(48, 12))
    converters = card.converters.model_copy(update={"bound_management": "none"})
    return card.model_copy(update={"converters": converters})


@pytest.mark.parametrize("rule", [100.0, "least-error"])
def test_each_tile_has_an_adc_range_of_its_own(small_outputs, rule, tmp_path):
    model, x = small_outputs
    deployment = deploy(model, adc_alone()).program(0)
    before = deployment.model(x)
    [upper, lower] = deployment.calibrate_outputs(lambda each: each(x), rule)["0"]
    # The tile of zeros keeps the card's range.
    assert lower[0] == 12.0
    assert max(*upper, lower[1]) < 6.0
    assert len({*upper, *lower}) == 4
    after, digital = deployment.model(x), model(x)
    assert (after - digital).square().mean() < (before - digital).square().mean() / 4
    deployment.save(tmp_path)
    assert torch.equal(Deployment.load(tmp_path, model).model(x), after)
    deployment.calibrate(lambda each: each(x))
    assert hooks_of(deployment.model).output_ranges == {}


def test_output_ranges_need_an_adc_that_rounds(small_outputs):
    model, x = small_outputs
    with pytest.raises(ValueError, match="card ideal has an exact ADC"):
        deploy(model, "ideal").program(0).calibrate_outputs(lambda each: each(x))
    with pytest.raises(ValueError, match="output_ranges has no effect with tile='rpucuda'"):
        deploy(model, adc_alone(), tile="rpucuda").calibrate_outputs(lambda each: each(x))


def test_aihwkits_tiles_have_no_input_ranges():
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.ones(2, 8)
    deployment = deploy(model, "pcm-hermes-2", tile="rpucuda").program(0)
    with pytest.raises(ValueError, match="input_ranges has no effect with tile='rpucuda'"):
        deployment.calibrate(lambda each: each(x))
    with pytest.raises(ValueError, match="input_ranges has no effect with tile='rpucuda'"):
        deployment.set_input_ranges({"0": 1.0})
    assert deployment.model(x).isfinite().all()


def test_ranges_are_as_before_where_a_calibration_fails(small_outputs):
    model, x = small_outputs
    deployment = deploy(model, adc_alone()).program(0)
    deployment.set_input_ranges({"0": 2.0})
    deployment.calibrate_outputs(lambda each: each(x))
    hooks = hooks_of(deployment.model)
    before = hooks.input_ranges, hooks.output_ranges

    def observe(each):
        each(x)
        raise RuntimeError("no data")

    for calibrate in (deployment.calibrate, deployment.calibrate_outputs):
        with pytest.raises(ValueError, match="percentile for a range is 101"):
            calibrate(lambda each: each(x), 101)
        with pytest.raises(RuntimeError, match="no data"):
            calibrate(observe)
        assert (hooks.input_ranges, hooks.output_ranges) == before
    deployment.set_input_ranges({"0": 3.0})
    assert (hooks.input_ranges, hooks.output_ranges) == ({"0": 3.0}, {})


def test_a_layer_without_inputs_has_no_range():
    deployment = deploy(nn.Sequential(nn.Linear(8, 4)), "pcm-hermes-2").program(0)
    assert deployment.calibrate(lambda model: model(torch.zeros(2, 8)), "least-error") == {}


@torch.no_grad()
def test_the_first_token_is_exact(llama):
    noisy = deploy(llama, "pcm-nandakumar2019", first_token="digital").program(0).drift_to("1y")
    digital, logits = llama(input_ids=IDS).logits, noisy.model(input_ids=IDS).logits
    torch.testing.assert_close(logits[:, 0], digital[:, 0])
    assert ((logits - digital)[:, 1:].abs().amax(-1) > 1e-3).all()
    plain = deploy(llama, "pcm-nandakumar2019").program(0).drift_to("1y")
    assert not torch.allclose(plain.model(input_ids=IDS).logits[:, 0], digital[:, 0], atol=1e-3)


@torch.no_grad()
def test_the_first_token_is_where_the_card_states_unless_the_argument_is_given(llama):
    mapping = LayerMapping(first_token="digital")
    card = DeviceCard.load("pcm-nandakumar2019").model_copy(update={"mapping": mapping})
    digital = llama(input_ids=IDS).logits[:, 0]
    for settings, exact in (({}, True), ({"first_token": "analog"}, False)):
        noisy = deploy(llama, card, **settings).program(0).drift_to("1y")
        first = noisy.model(input_ids=IDS).logits[:, 0]
        assert torch.allclose(first, digital, atol=1e-5) == exact


@torch.no_grad()
def test_the_first_token_follows_padding(llama):
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    noisy = deploy(llama, "pcm-nandakumar2019", first_token="digital").program(0)
    digital = llama(input_ids=IDS, attention_mask=mask).logits
    logits = noisy.model(input_ids=IDS, attention_mask=mask).logits
    torch.testing.assert_close(logits[1, 3], digital[1, 3])
    assert not torch.allclose(logits[1, 4], digital[1, 4], atol=1e-3)
    assert torch.equal(noisy.program(0).model(IDS, mask).logits, logits)


def test_first_tokens_are_those_of_token_ids():
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="inputs of the ViTModel are pixel_values, not token ids"):
        deploy(ViTModel(config), "ideal", first_token="digital")


@torch.no_grad()
def test_later_tokens_of_a_cache_are_not_first(llama):
    noisy = deploy(llama, "pcm-nandakumar2019", first_token="digital").program(0)
    first = llama(input_ids=IDS[:, :1], use_cache=True)
    digital = llama(input_ids=IDS[:, 1:2], past_key_values=first.past_key_values).logits
    start = noisy.model(input_ids=IDS[:, :1], use_cache=True)
    torch.testing.assert_close(start.logits, first.logits)
    after = noisy.model(input_ids=IDS[:, 1:2], past_key_values=start.past_key_values).logits
    assert not torch.allclose(after, digital, atol=1e-3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_has_the_same_gradient(llama, reentrant):
    deployment = deploy(llama, "pcm-nandakumar2019", first_token="digital")
    embedded = llama.model.embed_tokens(IDS).detach()

    def gradient():
        deployment.program(0)
        x = embedded.clone().requires_grad_()
        deployment.model(inputs_embeds=x, use_cache=False).logits.square().sum().backward()
        return x.grad

    expected = gradient()
    deployment.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    deployment.model.train()
    torch.testing.assert_close(gradient(), expected)


def test_ranges_are_without_first_tokens_that_are_digital(llama):
    llama.model.embed_tokens.weight.data[1] *= 1000
    starts = torch.cat([torch.ones(3, 1, dtype=torch.long), IDS], 1)

    def ranges(**settings):
        deployment = deploy(llama, "pcm-hermes-2", **settings).program(0)
        return deployment.calibrate(lambda model: model(input_ids=starts))

    with_first, without = ranges(), ranges(first_token="digital")
    name = "model.layers.1.mlp.down_proj"
    assert set(with_first) == set(without)
    assert without[name] <= with_first[name]
    assert sum(without.values()) < sum(with_first.values())


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_on_tiles_where_it_is_named(llama, tied):
    if not tied:
        llama.lm_head.weight = nn.Parameter(llama.lm_head.weight.detach().clone())
    before = llama.model.embed_tokens.weight.requires_grad
    ideal = deploy(llama, "ideal", layers=["all-linear", "lm_head"]).program(0)
    assert "lm_head" in ideal.layers
    assert len(ideal.layers) == 15
    assert llama.model.embed_tokens.weight.requires_grad == before
    expected = llama(input_ids=IDS).logits
    torch.testing.assert_close(ideal.model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert "lm_head" not in deploy(llama, "ideal").layers
    on_chip = deploy(llama, "pcm-hermes-2", layers=["lm_head"]).program(0)
    assert list(on_chip.layers) == ["lm_head"]
    assert not torch.allclose(on_chip.model(input_ids=IDS).logits, expected, atol=1e-3)
    digital = [m.name for m in on_chip.report().digital]
    assert "model.embed_tokens" in digital


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"first_token": "digital"}])
def test_generation_on_tiles_with_and_without_a_cache(llama, settings):
    def texts(device, **generation):
        model = deploy(llama, device, **settings).program(0).model
        return model.generate(IDS, max_new_tokens=6, do_sample=False, **generation)

    digital = llama.generate(IDS, max_new_tokens=6, do_sample=False)
    for use_cache in (True, False):
        assert torch.equal(texts("ideal", use_cache=use_cache), digital)
        assert texts("pcm-hermes-2", use_cache=use_cache).shape == digital.shape
    assert torch.equal(texts("pcm-hermes-2"), texts("pcm-hermes-2"))


@torch.no_grad()
def test_generation_computes_only_the_first_token_digitally(llama):
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    # Without read noise and converters, passes with a cache and without one are equal.
    noisy = deploy(llama, "gaussian:0.05", first_token="digital").program(0)
    cached, whole = (
        noisy.model.generate(
            IDS, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=use_cache,
            output_logits=True, return_dict_in_generate=True,
        )
        for use_cache in (True, False)
    )  # fmt: skip
    assert torch.equal(cached.sequences, whole.sequences)
    for step, expected in zip(cached.logits, whole.logits, strict=True):
        torch.testing.assert_close(step, expected, atol=1e-4, rtol=1e-4)
