import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from analog_grasp import DeviceCard, GraspConfig, StochGraspConfig
from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.crossbar.export import export_chip, load_chip

CARDS = DeviceCard.names()


def adapted(model, config):
    wrapped = get_peft_model(model, config).eval()
    torch.manual_seed(3)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return wrapped


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


@pytest.mark.parametrize("device", CARDS)
def test_a_chip_gives_the_same_model_again(model, batch, tmp_path, device):
    base = copy.deepcopy(model)
    digital = adapted(model, StochGraspConfig(task_type="SEQ_CLS", groups=5))
    export_chip(digital, DeviceCard.load(device), tmp_path / "chip.safetensors")
    # Whatever the frozen layers of the model hold: the chip has its own.
    for _, layer in frozen_layers(base):
        layer.weight.data.zero_()
    again = load_chip(tmp_path / "chip.safetensors", base)
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
def test_any_adapter_or_none_comes_along(bert, batch, tmp_path, config):
    base = copy.deepcopy(bert)
    digital = bert if config is None else adapted(bert, config)
    export_chip(digital, DeviceCard.load("pcm-hermes-2"), tmp_path / "chip")
    again = load_chip(tmp_path / "chip", base)
    torch.testing.assert_close(logits(again, batch), logits(digital, batch), atol=1e-5, rtol=1e-4)


def test_conductances_lie_in_the_range_and_tolerances_are_the_learned_spreads(bert, tmp_path):
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


def test_another_model_is_refused(bert, make_model, tmp_path):
    export_chip(bert, DeviceCard.load("ideal"), tmp_path / "chip")
    with pytest.raises(ValueError, match="which the model has not: give the model"):
        load_chip(tmp_path / "chip", make_model("gpt2"))


@pytest.mark.parametrize("content", [b"", b"not a chip" * 10])
def test_a_damaged_file_is_refused(bert, tmp_path, content):
    (tmp_path / "chip").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*export it again"):
        load_chip(tmp_path / "chip", bert)


def test_another_file_is_refused(bert, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no chip that this version can read"):
        load_chip(tmp_path / "other", bert)
    with pytest.raises(FileNotFoundError, match="does not exist: give a file"):
        load_chip(tmp_path / "missing", bert)
