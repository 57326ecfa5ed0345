"""The memory of a deployment, and its precision."""

import pytest
import torch
from peft import get_peft_model
from small_models import logits
from torch import nn

from analog_grasp import DeviceCard, GraspConfig, deploy
from analog_grasp.crossbar.linear import CrossbarLinear

CARD = DeviceCard.load("pcm-hermes-2")
# Its noise from read to read differs by conductance, so that a layer stores it by weight.
SONOS = DeviceCard.load("sonos-agrawal2022")


def layer(card=CARD, dtype=torch.float32) -> CrossbarLinear:
    torch.manual_seed(0)
    return CrossbarLinear(nn.Linear(300, 270), card, "layer", dtype=dtype)


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
