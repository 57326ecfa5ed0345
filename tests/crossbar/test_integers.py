"""Layers on tiles as sums of integers: accuracy, equal bits however computed, degenerate inputs."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from analog_grasp import DeviceCard, deploy
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.kernels import cpu, matmul

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Without instructions for sums of bytes the exact precision rounds by the shape of a product.
_EXACT = pytest.mark.skipif(
    not matmul.has_byte_instructions(), reason="this processor has no instructions for bytes"
)
IN_INTEGERS = pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=_EXACT), torch.bfloat16]
)
CONVERTERS = pytest.mark.parametrize("dac_bits", [0, 8])


def quiet(dac_bits=8, **converters) -> DeviceCard:
    """A card without noise and without an output bound."""
    card = DeviceCard.load("ideal").with_(dac_bits=dac_bits, adc_bits=0, output_noise=0.0)
    changes = {"output_range": None, "bound_management": "none"} | converters
    return card.model_copy(update={"converters": card.converters.model_copy(update=changes)})


def linear(shape=(384, 100), bias=True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*shape, bias=bias)


def tiles(layer=None, dtype=torch.float32, card=None) -> CrossbarLinear:
    return CrossbarLinear(layer or linear(), card or quiet(), "layer", dtype=dtype)


@torch.no_grad()
def read(layer: CrossbarLinear, x: torch.Tensor, seed=3) -> torch.Tensor:
    torch.manual_seed(seed)
    return layer(x)


def exactly(layer: CrossbarLinear, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the outputs without noise and rounding, computed in a type."""
    y = torch.zeros(len(x), layer.out_features, dtype=dtype)
    for split in layer.splits:
        part = x[:, split.rows]
        # In float32, as both precisions compute it.
        gain = 1.0 / part.abs().amax(1, keepdim=True)
        codes = (part * gain / layer._converters.dac_step).round()
        product = (codes * layer._converters.dac_step).to(dtype) @ split.weight.to(dtype).T
        y += product / gain * split.gain
    return y


@pytest.mark.parametrize("shape", [(384, 384), (700, 300), (64, 2000)])
def test_the_exact_precision_is_at_least_as_accurate_as_float32(shape):
    layer, x = tiles(linear(shape, bias=False)), torch.randn(40, shape[0])
    truth = exactly(layer, x, torch.float64)
    ours, single = read(layer, x), exactly(layer, x, torch.float32)
    # In float32 both round in another order.
    more = 1.0 if matmul.has_byte_instructions() else 1.1
    assert (ours - truth).square().mean() <= more * (single - truth).square().mean()
    assert (ours - truth).abs().max() <= 2 * (single - truth).abs().max()


@pytest.mark.parametrize("shape", [(384, 384), (700, 300)])
def test_the_fast_precision_errs_by_the_rounding_of_its_weights(shape):
    layer, x = tiles(linear(shape, bias=False), torch.bfloat16), torch.randn(40, shape[0])
    error = read(layer, x) - exactly(layer, x, torch.float64)
    variance = torch.zeros(40, shape[1])
    for split in layer.splits:
        step = split.weight.float().abs().amax(1) / matmul.steps_of_one_limb() * split.gain
        variance += step**2 / 12 * x[:, split.rows].square().sum(1, keepdim=True)
    assert float((error / variance.sqrt()).std()) == pytest.approx(1, abs=0.05)


@PRECISIONS
@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_the_number_of_threads_does_not_change_a_bit(dtype, noise):
    layer, x = tiles(dtype=dtype, card=quiet(output_noise=noise)), torch.randn(300, 384)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(read(layer, x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@IN_INTEGERS
@pytest.mark.parametrize("management", ["none", "iterative"])
def test_the_split_into_batches_does_not_change_a_bit(dtype, management):
    card = quiet(output_range=3.0, bound_management=management)
    layer, x = tiles(linear((700, 300)), dtype, card), torch.randn(130, 700)
    together = read(layer, x)
    for size in (1, 7, 64):
        assert torch.equal(torch.cat([read(layer, part) for part in x.split(size)]), together)


@IN_INTEGERS
@pytest.mark.parametrize("limit", [1, 1000])
def test_blocks_of_rows_do_not_change_a_bit(dtype, limit, monkeypatch):
    layer, x = tiles(dtype=dtype, card=quiet(output_noise=0.04)), torch.randn(50, 384)
    together = read(layer, x)
    monkeypatch.setattr("analog_grasp.kernels.cpu._LARGEST_PRODUCT", limit)
    assert torch.equal(read(layer, x), together)


def test_the_back_end_does_not_change_a_bit(monkeypatch):
    layer, x = tiles(dtype=torch.bfloat16), torch.randn(50, 384)
    expected = read(layer, x)
    monkeypatch.setattr(matmul, "_in_bytes", lambda width: False)
    assert torch.equal(read(layer, x), expected)


@PRECISIONS
def test_a_copy_and_a_chip_aged_again_read_the_same(dtype):
    card, x = DeviceCard.load("pcm-hermes-2"), torch.randn(16, 384)
    aged, direct = tiles(dtype=dtype, card=card), tiles(dtype=dtype, card=card)
    aged.program(3)
    read(aged, x)
    for layer in (aged, direct):
        layer.program(3)
        layer.drift_to(86_400.0)
    expected = read(direct, x)
    assert torch.equal(read(aged, x), expected)
    assert torch.equal(read(copy.deepcopy(aged), x), expected)


@PRECISIONS
@CONVERTERS
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (1, 600), (600, 1)])
def test_layers_of_one_row_or_column(dtype, dac_bits, shape):
    layer = linear(shape)
    x = torch.ones(4, shape[0])
    # Ones are codes of the largest step, so only the weights are rounded.
    found = read(tiles(layer, dtype, quiet(dac_bits)), x)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01 * shape[0] ** 0.5
    torch.testing.assert_close(found, layer(x).detach(), rtol=0, atol=tolerance)


@PRECISIONS
@CONVERTERS
@pytest.mark.parametrize("batch", [(0,), (0, 3), (3, 0)])
def test_no_vectors_give_no_outputs(dtype, dac_bits, batch):
    assert read(tiles(dtype=dtype, card=quiet(dac_bits)), torch.randn(*batch, 384)).shape == (
        *batch,
        100,
    )


@PRECISIONS
@CONVERTERS
def test_a_layer_of_zeros_returns_its_bias(dtype, dac_bits):
    layer = linear()
    nn.init.zeros_(layer.weight)
    found = read(tiles(layer, dtype, quiet(dac_bits)), torch.randn(4, 384))
    assert torch.equal(found, layer.bias.detach().expand(4, -1))


@PRECISIONS
@CONVERTERS
def test_subnormal_weights_return_numbers(dtype, dac_bits):
    layer = linear(bias=False)
    with torch.no_grad():
        layer.weight[:50] = 1e-40
    x = torch.ones(4, 384)
    found = read(tiles(layer, dtype, quiet(dac_bits)), x)
    torch.testing.assert_close(found[:, :50], torch.full((4, 50), 384e-40), rtol=0.02, atol=0)
    torch.testing.assert_close(found[:, 50:], layer(x)[:, 50:].detach(), rtol=0, atol=0.05)


@PRECISIONS
@CONVERTERS
@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-38])
def test_inputs_of_any_magnitude_scale_the_outputs(dtype, dac_bits, size):
    layer = tiles(linear(bias=False), dtype, quiet(dac_bits))
    x = torch.randn(4, 384)
    error = read(layer, x * size) / size - read(layer, x)
    # The last digits of the inputs' scale may round a code to its neighbour.
    assert float(error.abs().max()) < 0.02


@PRECISIONS
@CONVERTERS
@pytest.mark.parametrize("noise", [0.0, 0.04])
@pytest.mark.parametrize("management", ["none", "iterative"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_vector_that_is_not_a_number_has_outputs_that_are_none(
    dtype, dac_bits, noise, management, value
):
    converters = {"output_noise": noise, "bound_management": management, "output_range": 0.5}
    layer, x = tiles(dtype=dtype, card=quiet(dac_bits, **converters)), torch.randn(6, 384)
    expected = read(layer, x)
    x[2, 7] = value
    found = read(layer, x)
    assert found[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert found[others].isfinite().all()
    # Which vectors are read again determines the noise of that. Without codes or instructions for
    # bytes the products are in float32, in an order that depends on the number of vectors.
    in_integers = dac_bits and (dtype == torch.bfloat16 or matmul.has_byte_instructions())
    if in_integers and (management == "none" or not noise):
        assert torch.equal(found[others], expected[others])
    elif not noise:
        torch.testing.assert_close(found[others], expected[others], rtol=1e-5, atol=1e-5)
    # The differentiable path is torch's own.
    assert layer(x.clone().requires_grad_())[2].isnan().all()


@PRECISIONS
@pytest.mark.parametrize("dac_bits", [0, 8])
def test_a_weight_that_is_not_a_number_makes_its_column_none(dtype, dac_bits):
    layer = tiles(dtype=dtype, card=quiet(dac_bits, output_range=12.0))
    with torch.no_grad():
        layer.splits[0].weight[3, 7] = torch.nan
    found = read(layer, torch.randn(4, 384))
    assert found[:, 3].isnan().all()
    assert found[:, [0, 1, 2, 4, 5]].isfinite().all()


@pytest.fixture
def converted(monkeypatch):
    """The first features of the parts that were converted."""
    starts = []
    before = cpu.convert_inputs

    def counting(rows, x, start, *args):
        starts.append(start)
        before(rows, x, start, *args)

    monkeypatch.setattr(cpu, "convert_inputs", counting)
    return starts


def bert() -> tuple[nn.Module, int, int]:
    """Return a model, its layers and its distinct inputs, both per block."""
    small = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        vocab_size=50,
    )  # fmt: skip
    return BertModel(small, add_pooling_layer=False), 6, 4


def llama() -> tuple[nn.Module, int, int]:
    small = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_key_value_heads=1, vocab_size=50,
    )  # fmt: skip
    return LlamaModel(small), 7, 4


def test_reading_with_the_noise_of_each_weight_leaves_shared_inputs_as_they_are(monkeypatch):
    # Inputs that are not codes: the product and its variance are of the same float32 numbers.
    card = DeviceCard.load("sonos-agrawal2022").with_(dac_bits=0)
    chip = deploy(bert()[0].eval(), card).program(0)
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        shared = chip.model(**batch).last_hidden_state
        monkeypatch.setattr(cpu, "convert", _of_a_copy(cpu.convert))
        alone = chip.program(0).model(**batch).last_hidden_state
    assert torch.equal(shared, alone)


@pytest.mark.parametrize("architecture", [bert, llama])
def test_layers_that_read_the_same_tensor_convert_it_once(architecture, converted, monkeypatch):
    model, layers, distinct = architecture()
    chip = deploy(model.eval(), "pcm-hermes-2").program(0)
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        shared = chip.model(**batch).last_hidden_state
        assert len(converted) == 2 * distinct
        converted.clear()
        # No two tensors are the same any more.
        monkeypatch.setattr(cpu, "convert", _of_a_copy(cpu.convert))
        chip.program(0)
        alone = chip.model(**batch).last_hidden_state
        assert len(converted) == 2 * layers
    assert torch.equal(shared, alone)


def _of_a_copy(convert):
    return lambda x, *args, **named: convert(x.clone(), *args, **named)
