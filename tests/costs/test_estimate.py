"""Costs of a deployment: counts against values computed by hand, sums and monotonicity."""

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import analog_grasp as ag
from analog_grasp.costs import CostModel, costs

HIDDEN, INNER, LAYERS = 64, 128, 2


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=2, vocab_size=50, max_position_embeddings=128,
    )  # fmt: skip
    return BertForSequenceClassification(config).requires_grad_(False)


def adapted(model, config):
    import copy

    return get_peft_model(copy.deepcopy(model), config)


def grasp(model, groups=4):
    return adapted(model, ag.GraspConfig(task_type="SEQ_CLS", groups=groups))


def test_multiply_adds_by_hand(bert):
    found = costs(ag.deploy(grasp(bert), "ideal"), sequence=16, batch=3)
    tokens = 16 * 3
    per_layer = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER
    # The pooler reads one vector per sequence.
    assert sum(layer.macs for layer in found.layers) == (
        tokens * LAYERS * per_layer + 3 * HIDDEN * HIDDEN
    )
    # One multiply-add per input feature of a modulated layer.
    features = LAYERS * (5 * HIDDEN + INNER)
    assert found.adapter_macs == tokens * features + 3 * HIDDEN
    # Scores and weighted sums of attention, and the head.
    assert found.digital_macs == 3 * (LAYERS * 2 * 16 * 16 * HIDDEN + 2 * HIDDEN)


def test_lora_and_ia3_are_counted_by_their_shapes(bert):
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    ia3 = IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "output.dense"],
        feedforward_modules=["output.dense"],
    )  # fmt: skip
    bare = costs(ag.deploy(grasp(bert), "ideal"), sequence=16)
    by_lora = costs(ag.deploy(adapted(bert, lora), "ideal"), sequence=16)
    assert by_lora.adapter_macs == 16 * LAYERS * 2 * 8 * 2 * HIDDEN
    assert by_lora.digital_macs == bare.digital_macs
    by_ia3 = costs(ag.deploy(adapted(bert, ia3), "ideal"), sequence=16)
    # `output.dense` ends the names of attention's and of the feed-forward block's layer.
    assert by_ia3.adapter_macs == 16 * LAYERS * (2 * HIDDEN + INNER)


def test_whole_tiles_are_charged(bert):
    model = CostModel.load("hermes-1phase")
    found = costs(ag.deploy(grasp(bert), "ideal"), model, sequence=16)
    # Each layer fits one tile of 256 x 256.
    assert {layer.tiles for layer in found.layers} == {1}
    reads = sum(layer.reads for layer in found.layers)
    assert found.analog_energy[1] == pytest.approx(reads * model.read_energy()[1])
    parts = (found.analog_energy, found.adapter_energy, found.digital_energy)
    assert found.energy == pytest.approx([sum(part[i] for part in parts) for i in range(3)])


def test_costs_grow_with_the_work_and_shrink_with_fewer_tiles(bert):
    deployment = ag.deploy(grasp(bert), "ideal")
    short, long = (costs(deployment, sequence=n) for n in (8, 32))
    assert long.energy[1] > short.energy[1]
    assert long.latency_s > short.latency_s
    few = costs(deployment, sequence=8, tiles=3)
    assert few.reprogrammed_tiles == few.tiles - 3
    assert short.reprogrammed_tiles == 0


def test_programming_the_chip_against_rewriting_the_adapter(bert):
    found = costs(ag.deploy(grasp(bert), "ideal"), "hermes-1phase")
    weights = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER) + HIDDEN * HIDDEN
    assert found.devices == 4 * weights
    # 45 pJ per pulse, 1 to 30 pulses per device.
    assert found.programming_energy == pytest.approx(
        [found.devices * 45e-12 * pulses for pulses in (1, 30, 30)]
    )
    layers = 6 * LAYERS + 1
    assert found.adapter_bytes == 4 * (layers * 2 * 4 + 2 * HIDDEN + 2)


def test_figures_that_are_not_stated_are_missing(bert):
    found = costs(ag.deploy(grasp(bert), "ideal"), "ibm-34-tile")
    assert found.latency_s is None
    assert found.programming_energy is None
    assert "not stated" in str(found)
    projected = costs(ag.deploy(grasp(bert), "ideal"), "projected-100tops")
    assert projected.energy is None
    assert projected.devices is None


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
    assert found.kv_cache_bytes == 10 * 2 * 2 * 2 * 8 * 2
    # The language-model head is digital.
    assert found.digital_macs >= 10 * 32 * 50


def test_numbers_below_one_raise(bert):
    deployment = ag.deploy(nn.Sequential(nn.Linear(2, 2)), "ideal")
    for name in ("sequence", "batch", "tiles"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            costs(deployment, **{name: 0})


def test_sequences_longer_than_the_model_raise(bert):
    with pytest.raises(ValueError, match=r"sequence is 129.* at most 128 tokens"):
        costs(ag.deploy(bert, "ideal"), sequence=129)


def test_public_name_is_callable_after_the_package_is_imported():
    """Importing the package `analog_grasp.costs` replaces the function of that name."""
    for _ in range(2):
        with pytest.raises(ValueError, match="sequence is 0"):
            ag.costs(None, sequence=0)
