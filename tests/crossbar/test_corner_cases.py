"""Corner cases of deployments: zeros, inference mode, other types, several adapters, wires."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import logits
from torch import nn

from analog_grasp import Deployment, DeviceCard, deploy
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.schema import Circuit


@pytest.mark.parametrize("device", ["pcm-hermes-2", "rram-wan2022", "gaussian:0.05"])
def test_a_column_of_zeros_has_no_noise(device):
    layer = nn.Linear(64, 4, bias=False).requires_grad_(False)
    layer.weight[2] = 0
    deployment = deploy(nn.Sequential(layer), device).program(0).drift_to("1d")
    with torch.no_grad():
        y = deployment.model(torch.randn(50, 64))
    assert (y[:, 2] == 0).all()
    assert (y[:, [0, 1, 3]].std(0) > 0).all()
    assert (deployment.weights()["0"][2] == 0).all()


def test_read_noise_does_not_depend_on_an_empty_tile():
    """The variance of tiles of which one is empty is a matrix, that of the others a number."""
    layer = nn.Linear(512, 512, bias=False).requires_grad_(False)
    layer.weight[:256, :256] = 0
    tiles = CrossbarLinear(layer, DeviceCard.load("rram-wan2022"), "layer", "none")
    tiles.program(0)
    tiles.drift_to(0.0)
    x = torch.randn(1, 512).expand(400, 512)
    with torch.no_grad():
        by_kernels = tiles(x)[:, 256:].std(0).mean().item()
        by_torch = tiles._read_by_torch(x, None)[:, 256:].std(0).mean().item()
    assert by_kernels == pytest.approx(by_torch, rel=0.02)


@pytest.mark.parametrize("shape", [(20,), (5, 20), (3, 5, 20)])
def test_wires_take_inputs_of_every_shape(shape):
    circuit = Circuit(wire_resistance="0.35 Ohm")
    card = DeviceCard.load("pcm-hermes-2").model_copy(update={"circuit": circuit})
    model = nn.Sequential(nn.Linear(20, 6))
    deployment = deploy(model, card, tile="ir-drop").program(0)
    x = torch.randn(shape)
    with torch.no_grad():
        y, digital = deployment.model(x), model(x)
    assert y.shape == digital.shape
    assert torch.corrcoef(torch.stack([y.flatten(), digital.flatten()]))[0, 1] > 0.9
    with pytest.raises(RuntimeError, match="which have no gradient"):
        deployment.model(x.requires_grad_())


def test_chips_that_are_made_in_inference_mode_have_gradients(bert, batch, tmp_path):
    def lora():
        return get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))

    with torch.inference_mode():
        deployment = deploy(lora(), "pcm-hermes-2", placement="programmed").program(0)
        other = deployment.attach(lora())
        deployment.rescale(lambda model: logits(model, batch))
        deployment.save(tmp_path / "chip")
        loaded = Deployment.load(tmp_path / "chip")
    for model in (deployment.model, other, loaded.model):
        embedded = torch.randn(1, 4, bert.config.hidden_size, requires_grad=True)
        model(inputs_embeds=embedded).logits.sum().backward()
        assert embedded.grad.abs().sum() > 0


def test_a_missing_drift_is_stated_by_changed_and_loaded_cards(tmp_path):
    card = DeviceCard.load("rram-milo2021")
    stated = card.beyond_data(3e7)
    assert "no drift data" in stated
    assert card.scaled(1.0, 2.0).beyond_data(3e7) == stated
    deploy(nn.Sequential(nn.Linear(3, 2)), card).program(0).save(tmp_path)
    loaded = Deployment.load(tmp_path, nn.Sequential(nn.Linear(3, 2)))
    assert loaded.card.beyond_data(3e7) == stated
    assert card.without("drift").beyond_data(3e7) is None


def test_rescaling_does_not_depend_on_the_chip_of_a_programmed_lora(bert, batch):
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    scales = []
    for seed in (3, 9):
        torch.manual_seed(0)
        adapted = get_peft_model(bert, config)
        deployment = deploy(adapted, "pcm-hermes-2", placement="programmed").program(seed)
        deployment.rescale(lambda model: logits(model, batch))
        scales.append([layer.input_scale for layer in deployment.layers.values()])
        adapted.unload()
    assert all(map(torch.equal, *scales))


def test_output_ranges_of_a_model_in_float64():
    model = nn.Sequential(nn.Linear(20, 6)).double()
    deployment = deploy(model, "pcm-hermes-2").program(0)
    x = torch.randn(8, 20, dtype=torch.float64)
    assert deployment.calibrate_outputs(lambda model: model(x))["0"][0][0] > 0


def test_layers_are_compared_under_the_same_read_noise(bert, batch):
    deployment = deploy(bert, "pcm-hermes-2").program(0).drift_to("1d")

    def score(model):
        return float(logits(model, batch).sum())

    assert deployment.layer_sensitivity(score) == deployment.layer_sensitivity(score)


def test_a_percentile_is_a_number():
    deployment = deploy(nn.Sequential(nn.Linear(3, 2)), "pcm-hermes-2")
    with pytest.raises(ValueError, match="percentile for a range is True"):
        deployment.calibrate(lambda model: model(torch.ones(1, 3)), True)
