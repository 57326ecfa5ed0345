"""Costs of a deployment: counts against values computed by hand, sums and monotonicity."""

import copy
import inspect
import math
import subprocess
import sys

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

import analog_grasp as ag
from analog_grasp.adapters.bitfit import BitFitConfig
from analog_grasp.costs import CostModel, Costs, LayerWork, Work, costs, year_of_operation
from analog_grasp.devices.cost_model import Figure
from analog_grasp.devices.fields import Energy

HIDDEN, INNER, LAYERS = 64, 128, 2
PER_LAYER = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=2, vocab_size=50, max_position_embeddings=128,
    )  # fmt: skip
    return BertForSequenceClassification(config).requires_grad_(False)


def adapted(model, config):
    return get_peft_model(copy.deepcopy(model), config)


def grasp(model, groups=4):
    return adapted(model, ag.GraspConfig(task_type="SEQ_CLS", groups=groups))


def test_multiply_adds_by_hand(bert):
    work = costs(ag.deploy(grasp(bert), "ideal"), sequence=16, batch=3).work
    tokens = 16 * 3
    # The pooler reads one vector per sequence.
    assert work.analog_macs == tokens * LAYERS * PER_LAYER + 3 * HIDDEN * HIDDEN
    # One multiply-add per input feature of a modulated layer.
    features = LAYERS * (5 * HIDDEN + INNER)
    assert work.adapter_macs == tokens * features + 3 * HIDDEN
    # Scores and weighted sums.
    assert work.attention_macs == 3 * LAYERS * 2 * 16 * 16 * HIDDEN
    # Two norms per layer and one of the embeddings, four multiply-adds per element.
    assert work.norm_macs == 4 * tokens * HIDDEN * (2 * LAYERS + 1)
    assert work.linear_macs == 3 * 2 * HIDDEN
    assert work.weights == LAYERS * PER_LAYER + HIDDEN * HIDDEN


def test_lora_ia3_and_bitfit_are_counted_by_their_shapes(bert):
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    ia3 = IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "output.dense"],
        feedforward_modules=["output.dense"],
    )  # fmt: skip
    bitfit = BitFitConfig(task_type="SEQ_CLS")
    bare = costs(ag.deploy(grasp(bert), "ideal"), sequence=16).work
    by_lora, by_ia3, by_bitfit = (
        costs(ag.deploy(adapted(bert, config), "ideal"), sequence=16).work
        for config in (lora, ia3, bitfit)
    )
    assert by_lora.adapter_macs == 16 * LAYERS * 2 * 8 * 2 * HIDDEN
    assert by_lora.linear_macs == bare.linear_macs
    # `output.dense` ends the names of attention's and of the feed-forward block's layer.
    assert by_ia3.adapter_macs == 16 * LAYERS * (2 * HIDDEN + INNER)
    # Its biases replace those of the layers.
    assert by_bitfit.adapter_macs == 0
    kinds = [work.adapter for work in (bare, by_lora, by_ia3, by_bitfit)]
    assert kinds == ["grasp", "lora", "ia3", "bitfit"]


def test_programmed_adapters_are_counted(bert):
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    digital = costs(ag.deploy(adapted(bert, lora), "ideal"), sequence=16).work
    on_tiles = costs(ag.deploy(adapted(bert, lora), "ideal", placement="programmed"), sequence=16)
    assert on_tiles.work.adapter_macs == 0
    assert on_tiles.work.macs == digital.macs
    # Two matrices for each of two modules per layer.
    assert len(on_tiles.work.layers) == len(digital.layers) + 4 * LAYERS
    grasps = [
        costs(ag.deploy(grasp(bert), "ideal", placement=where), sequence=16).work
        for where in ("digital", "programmed")
    ]
    assert grasps[0].adapter_macs == grasps[1].adapter_macs
    # A scale and a shift for each input feature of each layer.
    inputs = sum(layer.features for layer in grasps[0].layers)
    assert grasps[1].weights == grasps[0].weights + 2 * inputs


class Attention(nn.Module):
    def forward(self, x):
        return functional.scaled_dot_product_attention(x, x, x)


def test_attention_of_torch_is_counted():
    """Its products, and none of those by which projections are left to the tiles."""
    x, products = torch.randn(2, 10, 64), 2 * 2 * 10 * 10 * 64
    model = nn.Sequential(nn.Linear(64, 64), Attention())
    work = costs(ag.deploy(model, "ideal"), inputs={"input": x}).work
    assert (work.attention_macs, work.linear_macs) == (products, 0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    work = costs(ag.deploy(layer, "ideal"), inputs={"src": x}).work
    assert (work.attention_macs, work.linear_macs) == (products, 0)
    assert work.analog_macs == 2 * 10 * (4 * 64**2 + 2 * 64 * 128)


def test_a_programmed_adapter_on_digital_layers_is_counted(bert):
    chip = ag.deploy(grasp(bert), "ideal", placement="programmed", layers=["query"])
    work = costs(chip, sequence=16).work
    assert (
        work.adapter_macs == costs(ag.deploy(grasp(bert), "ideal"), sequence=16).work.adapter_macs
    )


def test_lora_on_embeddings_is_counted(bert):
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["word_embeddings", "query"])
    work = costs(ag.deploy(adapted(bert, lora), "ideal"), sequence=16, batch=3).work
    # The first matrix of an embedding is looked up.
    assert work.adapter_macs == 3 * 16 * (8 * HIDDEN + LAYERS * 8 * 2 * HIDDEN)
    bare = costs(ag.deploy(bert, "ideal"), sequence=16, batch=3).work
    assert work.linear_macs == bare.linear_macs


@pytest.mark.parametrize("adapter", ["lora", "lora-all-linear"])
def test_lora_is_digital_products_with_matrices(adapter):
    model = CostModel.load("hermes-1phase")
    vectors = Figure[Energy](value="9 pJ", basis="projected", source="none")
    digital = model.digital.model_copy(update={"elementwise_energy": vectors})
    model = model.model_copy(update={"digital": digital})
    work = Work((LayerWork("dense", 64, 64, 1),), adapter=adapter, adapter_macs=1000)
    assert Costs(model, work).energies["adapter"] == model.digital_energy(1000, False)
    assert model.digital_energy(1000, False) != model.digital_energy(1000, True)


@pytest.mark.parametrize("kind", ["vit", "t5"])
def test_models_that_take_more_than_token_ids_take_their_inputs(kind):
    if kind == "vit":
        config = ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            image_size=8, patch_size=4,
        )  # fmt: skip
        model, inputs, taken = ViTModel(config), {"pixel_values": torch.zeros(1, 3, 8, 8)}, "pixel"
    else:
        config = T5Config(
            d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=4, vocab_size=10,
            decoder_start_token_id=0,
        )  # fmt: skip
        ids = torch.ones(1, 11, dtype=torch.long)
        inputs = {"input_ids": ids[:, :8], "decoder_input_ids": ids[:, :3]}
        model, taken = T5ForConditionalGeneration(config), "those of an encoder and a decoder"
    deployment = ag.deploy(model, "ideal")
    with pytest.raises(ValueError, match=rf"inputs of the \w+ are {taken}.*: give inputs\."):
        costs(deployment)
    work = costs(deployment, inputs=inputs).work
    if kind == "t5":
        # Keys and values of 3 tokens, 4 heads of 8 features in 2 layers, 2 bytes each, and those
        # of 8 tokens of the encoder, which each of the 3 reads.
        assert work.cache_bytes == 256 * (3 + 8)
        assert work.cache_traffic == 256 * ((3 + 6) + 8 * (1 + 3))


def test_whole_tiles_are_charged(bert):
    model = CostModel.load("hermes-1phase")
    found = costs(ag.deploy(grasp(bert), "ideal"), model, sequence=16)
    # Each layer fits one tile of 256 x 256.
    assert {found.tiles_of(layer) for layer in found.work.layers} == {1}
    reads = sum(layer.reads for layer in found.work.layers)
    expected = reads * model.read_energy()["tile reads"][1]
    assert found.energies["tile reads"][1] == pytest.approx(expected)


@pytest.mark.parametrize("name", CostModel.names())
def test_the_energy_is_the_sum_of_its_parts(bert, name):
    found = costs(ag.deploy(grasp(bert), "ideal"), name, sequence=16)
    parts = found.energies.values()
    if None in parts:
        assert found.energy is None
    else:
        assert found.energy == pytest.approx([sum(part[i] for part in parts) for i in range(3)])


def test_costs_grow_with_the_work_and_with_fewer_tiles(bert):
    deployment = ag.deploy(grasp(bert), "ideal")
    short, long = (costs(deployment, sequence=n) for n in (8, 32))
    assert long.energy[1] > short.energy[1]
    assert long.latency_s > short.latency_s
    whole, few = (costs(deployment, "neurram", sequence=8, tiles=n) for n in (None, 3))
    assert few.latency_s > whole.latency_s
    assert few.pipeline.rewritten > 0 == whole.pipeline.rewritten
    assert few.energies["rewriting tiles"][1] > 0
    assert "share the other tiles" in str(few)


def test_programming_the_chip_against_rewriting_the_adapter(bert):
    found = costs(ag.deploy(grasp(bert), "ideal"), "hermes-1phase")
    programming = found.programming
    assert programming.devices == 4 * (LAYERS * PER_LAYER + HIDDEN * HIDDEN)
    # 45 pJ per pulse, 1 to 30 pulses per device.
    assert programming.energy == pytest.approx(
        [programming.devices * 45e-12 * pulses for pulses in (1, 30, 30)]
    )
    layers = 6 * LAYERS + 1
    assert found.work.adapter_bytes == 4 * (layers * 2 * 4 + 2 * HIDDEN + 2)
    assert found.model.memory_energy(8)[1] == pytest.approx(100e-12)


def test_a_year_of_operation(bert):
    found = costs(ag.deploy(grasp(bert), "ideal"), "hermes-1phase", sequence=16)
    year = year_of_operation(found, batches_per_day=10, examples=4, passes=20)
    assert year.inference[1] == pytest.approx(3650 * found.energy[1])
    assert year.reprogramming[1] == pytest.approx(12 * found.programming.energy[1])
    digital = found.model.digital_energy(found.work.macs * (40 + 4 + 8))[1]
    rewritten = found.model.memory_energy(found.work.adapter_bytes)[1]
    expected = 12 * (20 * found.energy[1] + digital + rewritten)
    assert year.recalibration[1] == pytest.approx(expected)
    assert year_of_operation(costs(ag.deploy(bert, "ideal"), "neurram")).recalibration is None


def test_figures_that_are_not_stated_are_missing(bert):
    found = costs(ag.deploy(grasp(bert), "ideal"), "ibm-34-tile")
    assert found.latency_s is None
    assert found.programming.energy is None
    assert found.area_mm2 is None
    assert "not stated" in str(found)
    projected = costs(ag.deploy(grasp(bert), "ideal"), "projected-100tops")
    assert projected.energy is None
    assert projected.programming.devices is None
    # The time to rewrite tiles of HERMES is not stated.
    assert costs(ag.deploy(grasp(bert), "ideal"), tiles=3).latency_s is None


def test_the_table_names_what_a_read_includes_and_the_accelerators(bert):
    text = str(costs(ag.deploy(grasp(bert), "ideal"), "neurram"))
    assert "a tile read includes integration, shift-add" in text
    assert "energy, ADC" in text
    assert "int8" in text
    assert "H100" in text


def test_the_deployed_model_computes_as_before(bert):
    deployment = ag.deploy(grasp(bert), "pcm-hermes-2").program(0)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = ag.deploy(grasp(bert), "pcm-hermes-2").program(0).model(ids).logits
        costs(deployment)
        assert torch.equal(deployment.model(ids).logits, expected)


def test_causal_models_have_a_key_value_cache():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=50,
    )  # fmt: skip
    found = costs(ag.deploy(LlamaForCausalLM(config), "ideal"), sequence=10)
    # Keys and values of 2 heads of 8 features in 2 layers, 2 bytes each.
    assert found.work.cache_bytes == 10 * 2 * 2 * 2 * 8 * 2
    # Written once; token i reads i of them.
    assert found.work.cache_traffic == 128 * (10 + 55)
    assert found.energies["key-value cache"][1] == pytest.approx(128 * 65 * 12.5e-12)
    # The language-model head is digital.
    assert found.work.linear_macs == 10 * 32 * 50


def test_every_decoder_has_a_key_value_cache_and_an_encoder_has_none(bert):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    text = {**sizes, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32, "image_size": 28, "patch_size": 14}  # fmt: skip
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=64))
    gemma = Gemma3Config(
        text_config=text, vision_config=vision, image_token_id=45, boi_token_id=46,
        eoi_token_id=47, mm_tokens_per_image=4,
    )  # fmt: skip
    # Two layers of keys and values, 2 bytes each, of 4 and of 2 heads of 8 features.
    for model, heads in ((neox, 4), (Gemma3ForConditionalGeneration(gemma), 2)):
        work = costs(ag.deploy(model, "ideal"), sequence=10).work
        assert work.cache_bytes == 10 * 2 * 2 * heads * 8 * 2
    assert costs(ag.deploy(bert, "ideal"), sequence=10).work.cache_bytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_work_is_counted_on_the_device_of_the_model(bert):
    expected = costs(ag.deploy(bert, "ideal"), sequence=16).work
    assert costs(ag.deploy(copy.deepcopy(bert).cuda(), "ideal"), sequence=16).work == expected


def test_numbers_below_one_raise(bert):
    for name in ("sequence", "batch", "tiles"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            costs(ag.deploy(bert, "ideal"), **{name: 0})


@pytest.mark.parametrize("value", [-5, math.nan, math.inf, "many", 0, 2.5])
def test_numbers_of_a_year_and_of_stated_work_are_checked(value):
    work = Work((LayerWork("dense", 256, 256, reads=1),))
    model = CostModel.load("hermes-1phase")
    stated = [
        lambda: Work(work.layers, batch=value),
        lambda: Work(work.layers, sequence=value),
        lambda: Costs(model, work, available=value),
        lambda: year_of_operation(Costs(model, work), passes=value),
        lambda: year_of_operation(Costs(model, work), examples=value),
    ]
    if value not in (0, 2.5):
        stated.append(lambda: Costs(model, work, pulses=value))
        stated.append(lambda: year_of_operation(Costs(model, work), batches_per_day=value))
    for each in stated:
        with pytest.raises(ValueError, match=f"is {value!r}: a (whole|finite) number"):
            each()


def test_sequences_longer_than_the_model_raise(bert):
    with pytest.raises(ValueError, match=r"sequence is 129.* at most 128 tokens"):
        costs(ag.deploy(bert, "ideal"), sequence=129)


def test_models_without_tokens_take_their_inputs():
    deployment = ag.deploy(nn.Sequential(nn.Linear(2, 3)), "ideal")
    found = costs(deployment, inputs={"input": torch.zeros(5, 2)})
    assert found.work.layers == (LayerWork("0", 2, 3, 5),)
    assert found.work.tokens == 1


def test_the_batch_and_the_sequence_are_those_of_the_inputs(bert):
    deployment = ag.deploy(grasp(bert), "ideal")
    ids = torch.ones(2, 16, dtype=torch.long)
    stated = costs(deployment, sequence=16, batch=2).work
    assert costs(deployment, inputs={"input_ids": ids}).work == stated
    assert costs(deployment, inputs={"input_ids": ids}, sequence=16, batch=2).work == stated
    embedded = {"inputs_embeds": torch.zeros(2, 16, HIDDEN)}
    assert costs(deployment, inputs=embedded).work == stated
    with pytest.raises(ValueError, match="sequence is 128, but that of the inputs is 16: omit one"):
        costs(deployment, inputs={"input_ids": ids}, sequence=128)
    assert costs(deployment).work.tokens == 128


@pytest.mark.parametrize(
    "first", ["import analog_grasp.costs", "from analog_grasp.costs import CostModel", "ag.costs"]
)
def test_the_public_name_is_one_callable_object(first):
    """`ag.costs` is the package, whether it is imported first or taken as an attribute."""
    code = (
        f"import analog_grasp as ag\n{first}\nfound = ag.costs\n"
        "import analog_grasp.costs\n"
        "assert found is ag.costs is analog_grasp.costs\n"
        "assert found.CostModel.names() and callable(found)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_name_has_the_signature_of_the_function():
    assert inspect.signature(ag.costs) == inspect.signature(costs)
    with pytest.raises(ValueError, match="sequence is 0"):
        ag.costs(None, sequence=0)


def convolution(name, channels, kernels, positions, size=3):
    return LayerWork(name, channels * size * size, kernels, positions)


def test_resnet_9_on_hermes_against_its_published_energy_and_time():
    """One input of every layer takes 1.51 uJ, and one of a layer 1.52 us (Le Gallo et al. 2023).

    The layers are those of a ResNet-9 with 56, 112 and 224 channels, which has the published 1.87
    million weights.
    """
    work = Work(
        (
            convolution("conv1", 3, 56, 1),
            convolution("conv2", 56, 112, 1),
            *(convolution(f"residual1.{i}", 112, 112, 1) for i in (1, 2)),
            convolution("conv3", 112, 224, 1),
            *(convolution(name, 224, 224, 1) for name in ("conv4", "residual2.1", "residual2.2")),
            LayerWork("classifier", 224, 10, 1),
        )
    )
    assert work.weights == pytest.approx(1.87e6, rel=2e-3)
    found = Costs(CostModel.load("hermes-4phase"), work)
    # Whole tiles are charged here: 40 for the 28.5 that the weights fill.
    assert found.tiles == 40
    assert 1 < found.energy[1] / 1.51e-6 < 1.5
    # The published time includes digital processing and links, which no source states apart.
    assert 1 / 3 < found.model.read_time() / 1.52e-6 < 1


def test_albert_on_the_pcm_chip_against_its_published_efficiency():
    """Above 3 TOPS/W at system level, analog above 95 % of the energy (Chen et al. 2025)."""
    tokens, width, inner, layers = 64, 768, 3072, 12
    shapes = {
        "inProj": (width, 3 * width), "outProj": (width, width),
        "FC1": (width, inner), "FC2": (inner, width),
    }  # fmt: skip
    work = Work(
        # One set of weights is read in each of the 12 layers.
        tuple(LayerWork(name, *shape, layers * tokens) for name, shape in shapes.items()),
        sequence=tokens,
        attention_macs=layers * 2 * tokens * tokens * width,
        norm_macs=4 * layers * 2 * tokens * width,
    )
    assert work.weights == pytest.approx(7.1e6, rel=5e-3)
    found = Costs(CostModel.load("ibm-34-tile"), work)
    # 28.3 million devices are published, and a share of 99 % to 98 % of the operations.
    assert found.programming.devices == pytest.approx(28.3e6, rel=2e-3)
    assert work.analog_macs / work.macs > 0.98
    low, value, high = (2 * work.macs / energy / 1e12 for energy in reversed(found.energy))
    assert 3 < low < value < high
    # Within a factor of three of the published bound; its system's range within two.
    assert value < 3 * 3
    assert low < 2 * 3
    assert found.energies["tile reads"][1] / found.energy[1] > 0.95
    assert not math.isnan(value)
