"""What is compiled for a GPU: it traces as one graph, and computes what plain torch does."""

import pytest
import torch
from torch import Tensor

from analog_grasp import DeviceCard, deploy
from analog_grasp.kernels import ReadSettings, fused, matmul, reference
from analog_grasp.kernels.matmul import pack
from analog_grasp.kernels.rng import key_tensor, normal_of_key

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONVERTERS = ReadSettings(
    dac_step=1 / 127, adc_step=0.1, output_bound=12.0, output_noise=0.04, by_maximum=True
)
FIXED = ReadSettings(dac_step=1 / 63, adc_step=0.05, output_bound=8.0, output_noise=0.02)


def traced(function):
    """Return a function as torch traces it for any sizes; it raises where a graph would break."""
    return torch.compile(function, dynamic=True, fullgraph=True, backend="aot_eager")


def test_random_numbers_are_one_graph():
    draw, key = traced(normal_of_key), key_tensor(2**63 + 5, "cpu")
    for rows, columns in ((5, 7), (9, 300), (4, 129)):
        torch.testing.assert_close(draw(key, rows, columns), normal_of_key(key, rows, columns))


@torch.no_grad()
def test_a_read_is_one_graph_for_all_sizes_and_cards(monkeypatch):
    # As on a GPU.
    monkeypatch.setattr(matmul, "_in_bytes", lambda width: True)
    graphs: list[object] = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compute = torch.compile(reference._compute, dynamic=True, fullgraph=True, backend=count)
    for settings, scale, rows, reduction in (
        (CONVERTERS, None, 40, 1.0),
        (CONVERTERS, None, 50, 2.0),
        (FIXED, 2.0, 60, 1.0),
        (FIXED, 3.0, 70, 4.0),
    ):
        args = arguments(rows, 512, 256 + rows * 8, settings, scale, reduction)
        for got, expected in zip(compute(*args), reference._compute(*args), strict=True):
            torch.testing.assert_close(got, expected)
    assert len(graphs) == 2  # scaled by maximum, and with a fixed range


def arguments(rows, width, columns, settings, scale, reduction) -> tuple:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, width), torch.rand(columns, width) * 2 - 1
    cpu = x.device
    return (
        x, weight, reference._number(0.001, cpu), reference._settings_on(cpu, settings),
        reference._number(scale, cpu), reference._number(reduction, cpu), key_tensor(3, cpu),
        pack(weight, 3, settings.dac_step), None,
    )  # fmt: skip


def test_without_a_compiler_functions_run_as_they_are(monkeypatch):
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    assert not fused.compiles.__wrapped__()
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fused.shutil, "which", lambda name: "/usr/bin/cc")
    assert fused.compiles.__wrapped__()


@GPU
@pytest.mark.parametrize("card", ["pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_gpu_reads_the_same_chip(card, dtype):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(700, 64), torch.randn(50, 700)
    device = DeviceCard.load(card)
    outputs: list[Tensor] = []
    for where in ("cpu", "cuda"):
        model = torch.nn.Sequential(torch.nn.Linear(700, 64)).to(where)
        model[0].load_state_dict(layer.state_dict())
        deployment = deploy(model, device, dtype=dtype)
        deployment.program(3)
        deployment.drift_to("1d")
        torch.manual_seed(1)
        outputs.append(deployment.model(x.to(where)).cpu())
    # Sums in another order can be rounded to the next step of the ADC.
    apart = (outputs[0] - outputs[1]).abs()
    largest = outputs[0].abs().max()
    assert (apart > 0.01 * largest).float().mean() < 0.02
    assert apart.max() < 0.1 * largest
