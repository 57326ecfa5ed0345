"""The chip as a file: what is exported gives the same model again."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import move
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, MixtralConfig, MixtralModel

from analog_grasp import DeviceCard, GraspConfig, StochGraspConfig, deploy
from analog_grasp.adapters.frozen import fold
from analog_grasp.crossbar.export import export_chip, read_chip
from analog_grasp.crossbar.saving import card_from_data
from analog_grasp.devices.schema import LayerMapping

CARDS = DeviceCard.names()


def adapted(model, config):
    return move(get_peft_model(model, config), 3, 0.1)


@torch.no_grad()
def logits(model, batch):
    return model(**batch)[0]


@pytest.mark.parametrize("device", CARDS)
def test_a_file_gives_the_same_model_again(model, batch, tmp_path, device):
    digital = adapted(model, StochGraspConfig(task_type="SEQ_CLS", groups=5))
    export_chip(digital, device, tmp_path / "chip.safetensors")
    again = read_chip(tmp_path / "chip.safetensors")
    torch.testing.assert_close(logits(again, batch), logits(digital, batch), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        None,
        GraspConfig(task_type="SEQ_CLS", groups=3),
        LoraConfig(task_type="SEQ_CLS", target_modules=["query"]),
    ],
    ids=["bare", "grasp", "lora"],
)
@pytest.mark.parametrize("folded", [False, True])
def test_any_adapter_is_part_of_the_file(bert, batch, tmp_path, config, folded):
    digital = bert if config is None else adapted(bert, config)
    expected = logits(digital, batch)
    digital = fold(copy.deepcopy(digital)) if folded and config is not None else digital
    export_chip(digital, "pcm-hermes-2", tmp_path / "chip")
    torch.testing.assert_close(logits(read_chip(tmp_path / "chip"), batch), expected,
                               atol=1e-5, rtol=1e-4)  # fmt: skip


def test_an_adapter_keeps_its_own_name(bert, batch, tmp_path):
    config = GraspConfig(task_type="SEQ_CLS", groups=3)
    digital = move(get_peft_model(bert, config, adapter_name="mine"), 3, 0.1)
    export_chip(digital, "pcm-hermes-2", tmp_path / "chip")
    again = read_chip(tmp_path / "chip")
    assert again.active_adapter == "mine"
    torch.testing.assert_close(logits(again, batch), logits(digital, batch), atol=1e-5, rtol=1e-4)


def test_a_fold_that_adds_biases_reloads_with_them(batch, tmp_path):
    tiny = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=50, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    digital = adapted(
        LlamaForSequenceClassification(tiny), GraspConfig(task_type="SEQ_CLS", groups=3)
    )
    expected = logits(digital, batch)
    folded = fold(digital)
    assert folded.model.layers[0].mlp.up_proj.bias is not None
    export_chip(folded, "pcm-hermes-2", tmp_path / "chip")
    torch.testing.assert_close(logits(read_chip(tmp_path / "chip"), batch), expected,
                               atol=1e-5, rtol=1e-4)  # fmt: skip


def test_experts_and_attention_are_exported_too(batch, tmp_path):
    tiny = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=50, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralModel(tiny).eval()
    export_chip(model, "pcm-hermes-2", tmp_path / "chip")
    tensors = load_file(tmp_path / "chip")
    assert sum(".experts.gate_up_proj." in name and "g_plus" in name for name in tensors) == 3
    assert not any(name.startswith("digital.") and "experts" in name for name in tensors)
    torch.testing.assert_close(logits(read_chip(tmp_path / "chip"), batch), logits(model, batch),
                               atol=1e-5, rtol=1e-4)  # fmt: skip


def test_a_model_of_ones_own_is_given_beside_the_file(tmp_path):
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 3, 8)
    export_chip(model, "pcm-hermes-2", tmp_path / "chip")
    with pytest.raises(ValueError, match=r"which transformers does not provide: .*argument model"):
        read_chip(tmp_path / "chip")
    other = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    again = read_chip(tmp_path / "chip", other)
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="does not fit a TransformerEncoderLayer"):
        read_chip(tmp_path / "chip", nn.Linear(2, 2))


def test_the_weights_are_those_of_the_deployment(bert, tmp_path):
    export_chip(bert, "pcm-hermes-2", tmp_path / "chip")
    ideal = deploy(bert, "ideal").program(0).weights()
    again = deploy(read_chip(tmp_path / "chip"), "ideal").program(0).weights()
    for name, weight in ideal.items():
        torch.testing.assert_close(again[name], weight, atol=1e-6, rtol=1e-5)


def test_conductances_are_in_the_range_and_tolerances_are_the_learned_stds(bert, tmp_path):
    card = DeviceCard.load("rram-milo2021")
    digital = adapted(bert, StochGraspConfig(task_type="SEQ_CLS", groups=5))
    export_chip(digital, card, tmp_path / "chip")
    tensors = load_file(tmp_path / "chip")
    g = torch.cat([t.flatten() for n, t in tensors.items() if n.endswith(("g_plus", "g_minus"))])
    assert g.min() >= card.conductance.g_min - 1e-4
    assert g.max() == pytest.approx(card.conductance.g_max)
    layer = digital.base_model.model.bert.encoder.layer[0].attention.self.query
    scale, shift = layer.sigmas("default")
    name = "bert.encoder.layer.0.attention.self.query.tolerance"
    assert torch.equal(tensors[f"{name}.scale"], scale)
    assert torch.equal(tensors[f"{name}.shift"], shift)


@pytest.mark.parametrize("device", CARDS)
@pytest.mark.parametrize("without", [(), ("programming",), ("drift", "read", "converters")])
def test_the_card_is_read_again(tmp_path, device, without):
    card = DeviceCard.load(device).without("mapping", *without)
    export_chip(nn.Sequential(nn.Linear(4, 3)), card, tmp_path / "chip")
    with safe_open(tmp_path / "chip", "pt") as file:
        assert card_from_data(json.loads(file.metadata()["card"])) == card


@pytest.mark.parametrize("place", ["missing/chip", "."])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path, place):
    with pytest.raises(OSError, match=r"chip|directory"):
        export_chip(nn.Sequential(nn.Linear(4, 3)), "ideal", tmp_path / place)


@pytest.mark.parametrize("stated", [{"clip": 2.0}, {"rescale": 0.5}])
def test_a_card_that_maps_weights_otherwise_is_an_error(bert, tmp_path, stated):
    mapping = LayerMapping(**stated)
    card = DeviceCard.load("ideal").model_copy(update={"mapping": mapping})
    with pytest.raises(ValueError, match=rf"card ideal states {min(stated)} .* mapped as they are"):
        export_chip(bert, card, tmp_path / "chip")
    export_chip(bert, card.without("mapping"), tmp_path / "chip")


@pytest.mark.parametrize("content", [b"", b"not a chip" * 10])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "chip").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*export it again"):
        read_chip(tmp_path / "chip")


def test_another_file_is_an_error(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not a chip that this version reads"):
        read_chip(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="does not exist: give a file"):
        read_chip(tmp_path / "missing")


@pytest.mark.parametrize("part", ["0.tile.0.0.g_plus", "0.tile.0.0.scale", "tiles", "model"])
def test_a_file_without_one_of_its_parts_is_an_error(tmp_path, part):
    model, file = nn.Sequential(nn.Linear(4, 3)), tmp_path / "chip"
    export_chip(model, "pcm-hermes-2", file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    del (tensors if part in tensors else metadata)[part]
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=rf"is damaged \('{part}'\): export it again"):
        read_chip(file, model)
    save_file(tensors, file, metadata | {"geometry": "{"})
    with pytest.raises(ValueError, match=r"is damaged .*: export it again"):
        read_chip(file, model)
