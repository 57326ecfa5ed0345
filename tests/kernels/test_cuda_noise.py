"""The kernels that program tiles on a GPU: interpreted on a CPU where there is none."""

import warnings

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from analog_grasp.crossbar import linear
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.kernels import ReadSettings, cpu
from tests.kernels.test_noise import CURVE, DAY, NAMES, ROUNDING, weights

cuda_noise = pytest.importorskip("analog_grasp.kernels.cuda_noise", reason="no Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISY = [name for name in NAMES if not CardNoiseModel(DeviceCard.load(name)).is_exact]
# Two tiles of different sizes, whose rows and columns fill no block.
TILES = [(slice(0, 3), 11), (slice(3, 5), 2**64 - 3)]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Device card .* (is tabulated|has no drift data)")
        yield


def assert_same_chip(card: DeviceCard, time: float, dtype: torch.dtype = torch.float32) -> None:
    """Compare tiles read at once with each one read by the kernel for processors."""
    w = weights(5, 150)
    w[3:] *= 0.3
    expected, variance = torch.empty_like(w), torch.empty_like(w)
    for part, seed in TILES:
        model = CardNoiseModel(card, seed, chip=4)
        model.read_weights(w[part], time, out=expected[part], variance_out=variance[part])
    found, spread = (torch.empty(w.shape, dtype=dtype, device=DEVICE) for _ in range(2))
    ends = torch.stack([torch.stack(w[part].aminmax()) for part, _ in TILES]).to(DEVICE)
    of_chip = CardNoiseModel(card, chip=4)
    of_chip.read_tiles(w.to(DEVICE), ends, TILES, time, found, spread)
    rounding = ROUNDING if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(found.cpu().float(), expected, rtol=0, atol=4 * rounding)
    torch.testing.assert_close(spread.cpu().float(), variance, rtol=1e-2, atol=1e-8)


@pytest.mark.parametrize("time", [0.0, DAY])
@pytest.mark.parametrize("name", NOISY)
def test_every_card_is_the_same_chip_at_every_time(name, time):
    assert_same_chip(DeviceCard.load(name), time)


@pytest.mark.parametrize("mapping", ["pair", "single", "signed"])
@pytest.mark.parametrize("name", ["pcm-hermes-2", "rram-cmo-falcone", "rram-wan2022"])
def test_every_mapping_with_faults_and_other_types(name, mapping):
    card = DeviceCard.load(name).with_(die_to_die=0.1, stuck_off=0.1, stuck_on=0.1)
    g_min = 0.0 if mapping == "signed" else card.conductance.g_min
    section = card.conductance.model_copy(update={"mapping": mapping, "g_min": g_min})
    card = card.model_copy(update={"conductance": section})
    assert_same_chip(card, DAY)
    assert_same_chip(card, DAY, torch.bfloat16)


def test_every_form_of_piece():
    card = DeviceCard.load("pcm-nandakumar2019")
    curve = type(card.programming).model_validate(CURVE)
    assert_same_chip(card.model_copy(update={"programming": curve, "short_term": curve}), DAY)


def test_tiles_of_many_rows():
    w = weights(11, 260)
    model = CardNoiseModel(DeviceCard.load("pcm-hermes-2"), seed=5)
    found, ends = torch.empty_like(w, device=DEVICE), torch.stack(w.aminmax())[None].to(DEVICE)
    model.read_tiles(w.to(DEVICE), ends, [(slice(0, 11), 5)], DAY, found, None)
    torch.testing.assert_close(found.cpu(), model.read_weights(w, DAY), rtol=0, atol=4 * ROUNDING)


def test_weights_that_are_not_finite_are_an_error():
    model, w = CardNoiseModel(DeviceCard.load("pcm-hermes-2")), torch.full((2, 4), torch.nan)
    with pytest.raises(ValueError, match="only finite weights can be programmed"):
        model.read_tiles(w, torch.full((1, 2), torch.nan), [(slice(0, 2), 1)], 0.0, w, None)


@pytest.mark.parametrize("variance", [None, 1e-3, "matrix"])
@pytest.mark.parametrize("step", [0.0, 0.05])
def test_the_read_out_of_columns_is_that_of_the_processor(variance, step):
    w = weights(5, 150)
    if variance == "matrix":
        variance = w.square() * 1e-2
    settings = ReadSettings(adc_step=step, output_bound=0.8, output_noise=0.02)
    expected = [
        cpu.column_readout(
            w[part], variance[part] if isinstance(variance, torch.Tensor) else variance, settings, k
        )
        for part, k in TILES
    ]
    there = variance.to(DEVICE) if isinstance(variance, torch.Tensor) else variance
    found = cuda_noise.column_readouts(w.to(DEVICE), there, settings, TILES)
    # Sums in another order can be rounded to the next step of the ADC.
    torch.testing.assert_close(found.cpu(), torch.cat(expected), rtol=0, atol=1e-5 + step / 100)


@pytest.mark.parametrize("compensation", ["global", "per-column"])
@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(20, 7), lambda: Conv1D(7, 16)])
def test_a_layer_holds_the_same_chip(make, compensation, monkeypatch):
    card = DeviceCard.load("pcm-hermes-2").with_(tile_size=(16, 4))
    layers = []
    for on_gpu in (False, True):
        torch.manual_seed(0)
        layer = CrossbarLinear(make().to(DEVICE), card, "dense", compensation)
        monkeypatch.setattr(linear, "_on_gpu", lambda _, chosen=on_gpu: chosen)
        layer.program(2)
        layer.drift_to(DAY)
        layers.append(layer)
    first, second = layers
    torch.testing.assert_close(first.present_weight(), second.present_weight(), rtol=0, atol=1e-4)
