"""The memory of a deployment, and its precision."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from analog_grasp import DeviceCard, GraspConfig, deploy
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.kernels import matmul as products

CARD = DeviceCard.load("pcm-hermes-2")
# Its noise from read to read differs by conductance, so that a layer stores it by weight.
SONOS = DeviceCard.load("sonos-agrawal2022")


def layer(card=CARD, dtype=torch.float32) -> CrossbarLinear:
    torch.manual_seed(0)
    return CrossbarLinear(nn.Linear(300, 270), card, "layer", dtype=dtype)


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def addresses(crossbar: CrossbarLinear) -> list[int]:
    return [split.weight.data_ptr() for split in crossbar.splits] + [
        split.variance.data_ptr() for split in crossbar.splits if split.variance is not None
    ]


@pytest.mark.parametrize("card", [CARD, SONOS], ids=lambda card: card.name)
def test_programming_and_drift_write_where_the_weights_are(card):
    crossbar = layer(card)
    crossbar.program(0)
    before = addresses(crossbar)
    crossbar.drift_to(60.0)
    crossbar.drift_to(1.0)
    assert addresses(crossbar) == before
    assert all(split.weight.is_contiguous() for split in crossbar.splits)


@pytest.mark.parametrize("card", [CARD, SONOS], ids=lambda card: card.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_stored_weights_are_the_float32_weights_rounded(card, dtype):
    single, half = layer(card), layer(card, dtype)
    for crossbar in (single, half):
        crossbar.program(3)
        crossbar.drift_to(86_400.0)
    for a, b in zip(single.splits, half.splits, strict=True):
        assert b.weight.dtype == dtype
        assert torch.equal(b.weight, a.weight.to(dtype))
        # The read-outs differ by the rounding alone.
        torch.testing.assert_close(b.gain, a.gain, rtol=1e-3, atol=0)
        if a.variance is not None:
            assert torch.equal(b.variance, a.variance.bfloat16())
    assert half.weight_error() == pytest.approx(single.weight_error(), rel=0.01)
    x, outputs = torch.randn(8, 300), []
    for crossbar in (single, half):
        torch.manual_seed(1)
        outputs.append(crossbar(x))
    error = (outputs[0] - outputs[1]).square().mean().sqrt() / outputs[0].std()
    assert 0 < error < 0.02


IN_BYTES = pytest.mark.skipif(
    not products.multiplies_in_bytes(), reason="torch does not multiply bytes on this processor"
)


@torch.inference_mode()
def read(crossbar, x, way, monkeypatch):
    """Read under the same noise, on a processor that multiplies in one way."""
    monkeypatch.setattr(products, "multiplies_in_bfloat16", lambda: way == "bfloat16")
    monkeypatch.setattr(products, "multiplies_in_bytes", lambda: way == "bytes")
    for split in crossbar.splits:
        split.packed = None
    torch.manual_seed(1)
    return crossbar(x)


def of_signs(columns, rows, dac_bits):
    """Return a layer of weights of -1, 0 and 1, without noise and without an output bound."""
    linear = nn.Linear(rows, columns, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-1, 2, linear.weight.shape))
        linear.weight[:, 0] = 1.0
    ideal = DeviceCard.load("ideal").with_(dac_bits=dac_bits, adc_bits=0, output_noise=0.0)
    endless = {"output_range": None, "bound_management": "none"}
    converters = ideal.converters.model_copy(update=endless)
    ideal = ideal.model_copy(update={"converters": converters})
    return CrossbarLinear(linear, ideal, "layer", dtype=torch.bfloat16)


def test_products_exact_in_bfloat16_are_exact(monkeypatch):
    crossbar, x = of_signs(20, 32, dac_bits=4), torch.randn(50, 32)
    native, single = (read(crossbar, x, way, monkeypatch) for way in ("bfloat16", "float32"))
    # Sums of 32 codes of at most 7 steps are whole numbers below 256.
    torch.testing.assert_close(native, single, rtol=1e-5, atol=1e-6)


@IN_BYTES
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_exact_in_bytes_are_exact(bits, monkeypatch):
    crossbar = of_signs(33, 700, bits)
    extremes = torch.tensor([-1.0, 1.0])[torch.randint(2, (9, 700))]
    x = torch.cat([torch.randn(50, 700), extremes, torch.ones(1, 700), torch.zeros(1, 700)])
    native, single = (read(crossbar, x, way, monkeypatch) for way in ("bytes", "float32"))
    torch.testing.assert_close(native, single, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("card", [CARD, SONOS], ids=lambda card: card.name)
def test_products_in_bfloat16_differ_by_their_rounding(card, monkeypatch):
    quiet = card.with_(adc_bits=0)
    half = layer(quiet, torch.bfloat16)
    half.program(3)
    x = torch.randn(64, 300)
    native, single = (read(half, x, way, monkeypatch) for way in ("bfloat16", "float32"))
    # The median: a vector that just clips may be read again for one of them alone.
    error = ((native - single) / single).abs().median()
    assert 0 < error < 2**-9


@IN_BYTES
@pytest.mark.parametrize("card", [CARD, SONOS], ids=lambda card: card.name)
def test_products_in_bytes_differ_by_the_rounding_of_the_weights(card, monkeypatch):
    half = layer(card.with_(adc_bits=0), torch.bfloat16)
    half.program(3)
    x = torch.randn(64, 300)
    native, single = (read(half, x, way, monkeypatch) for way in ("bytes", "float32"))
    variance = torch.zeros(64, 270)
    for split in half.splits:
        steps = split.weight.float().abs().amax(1) / 63 * split.gain
        variance += steps**2 / 12 * x[:, split.rows].square().sum(1, keepdim=True)
    # By the median, which is 0.6745 standard deviations: few vectors clip for one of them alone.
    ratio = ((native - single).abs() / variance.sqrt()).median() / 0.6745
    assert ratio == pytest.approx(1, abs=0.05)


@IN_BYTES
def test_products_in_bytes_follow_the_weights(monkeypatch):
    aged, direct = (layer(dtype=torch.bfloat16) for _ in range(2))
    x = torch.randn(16, 300)
    monkeypatch.setattr(products, "multiplies_in_bfloat16", lambda: False)
    with torch.inference_mode():
        aged.program(3)
        aged(x)
        aged.drift_to(86_400.0)
        direct.program(3)
        direct.drift_to(86_400.0)
        found = []
        for crossbar in (aged, direct, copy.deepcopy(aged)):
            torch.manual_seed(1)
            found.append(crossbar(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert aged(x[:0]).shape == (0, 270)


@pytest.mark.parametrize("way", ["bfloat16", pytest.param("bytes", marks=IN_BYTES)])
def test_finer_codes_are_multiplied_in_float32(way, monkeypatch):
    finest = {"bfloat16": 9, "bytes": 8}[way]
    for bits, equal in ((finest, False), (finest + 1, True), (0, True)):
        half = layer(CARD.with_(dac_bits=bits), torch.bfloat16)
        x = torch.randn(16, 300)
        native, single = (read(half, x, each, monkeypatch) for each in (way, "float32"))
        assert torch.equal(native, single) == equal


def test_a_torch_that_multiplies_no_bytes_is_detected(monkeypatch):
    def without(*_):
        raise AttributeError("'_OpNamespace' 'quantized' object has no attribute")

    monkeypatch.setattr(products, "_multiply_in_bytes", without)
    assert not products.multiplies_in_bytes.__wrapped__()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dtype": torch.int8}, r"dtype is torch.int8, which tile='torch' does not store: use tor"),
        (
            {"dtype": torch.bfloat16, "tile": "rpucuda"},
            r"dtype is torch.bfloat16, which tile='rpucuda' does not store: use torch.float32",
        ),
    ],
)
def test_a_type_that_is_not_stored_is_an_error(bert, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        deploy(bert, CARD, **settings)


def test_a_chip_just_programmed_is_0_seconds_old(bert, batch):
    chip = deploy(bert, CARD).program(4)
    fresh = logits(chip.model, batch)
    assert chip.time_s == 0
    assert torch.equal(fresh, logits(chip.program(4).drift_to("0s").model, batch))
    chip.drift_to("1y").program(4)
    assert torch.equal(fresh, logits(chip.model, batch))


def test_a_first_read_in_inference_mode_leaves_gradients_possible():
    crossbar, x = layer(), torch.randn(2, 300)
    crossbar.program(0)
    with torch.inference_mode():
        crossbar(x)
    x.requires_grad_()
    crossbar(x).sum().backward()
    assert x.grad.isfinite().all()


def test_frozen_parameters_are_referred_to(bert, batch):
    chip = deploy(bert, CARD).program(0)
    theirs = dict(bert.named_parameters())
    deployed = dict(chip.model.named_parameters())
    assert deployed
    assert all(deployed[name].data_ptr() == theirs[name].data_ptr() for name in deployed)
    assert all(parameter.requires_grad for parameter in theirs.values())
    logits(chip.model, batch)
    with torch.no_grad():
        bert.classifier.bias.add_(1)
    with pytest.raises(RuntimeError, match=r"parameter classifier\.bias was changed in place"):
        logits(chip.model, batch)


@pytest.mark.parametrize("placement", ["digital", "folded"])
def test_a_model_deployed_in_place_is_the_same_chip(bert, batch, placement):
    there = deploy(bert, CARD, placement=placement).program(0).drift_to("1d")
    expected = logits(there.model, batch)
    chip = deploy(bert, CARD, placement=placement, inplace=True).program(0).drift_to("1d")
    assert chip.model is bert
    assert torch.equal(logits(chip.model, batch), expected)


def test_the_adapter_and_its_head_are_copied_also_where_nothing_is_trained(bert, batch):
    digital = get_peft_model(bert, GraspConfig(task_type="SEQ_CLS", groups=3)).eval()
    digital.requires_grad_(False)
    expected = logits(digital, batch)
    deployed = dict(deploy(digital, CARD).program(0).model.named_parameters())
    names = [name for name in deployed if "grasp_" in name or "modules_to_save" in name]
    assert names
    for name in names:
        deployed[name].data.zero_()
    assert torch.equal(logits(digital, batch), expected)
    theirs = dict(digital.named_parameters())
    rest = [name for name in deployed if name not in names]
    assert all(deployed[name].data_ptr() == theirs[name].data_ptr() for name in rest)
