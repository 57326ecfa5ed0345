"""The kernels for GPUs: interpreted on a CPU where there is none."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from analog_grasp import DeviceCard, GraspConfig, deploy
from analog_grasp.kernels import ReadSettings, reference, rng
from analog_grasp.kernels.matmul import pack

cuda = pytest.importorskip("analog_grasp.kernels.cuda", reason="Triton is not installed")
HAS_GPU = torch.cuda.is_available()
DEVICE, FLOAT = "cuda" if HAS_GPU else "cpu", torch.float32
MAXIMUM = ReadSettings(
    dac_step=1 / 127, adc_step=0.1, output_bound=12.0, output_noise=0.04, by_maximum=True
)
FIXED = replace(MAXIMUM, dac_step=1 / 63, output_bound=8.0, by_maximum=False)


@pytest.mark.parametrize("shape", [(5, 7), (9, 300), (1, 128), (0, 4)])
@pytest.mark.parametrize("key", [1, 3, -(2**63), 2**64 - 1])
def test_random_numbers_are_those_of_the_processor(key, shape):
    found = cuda.normal(key, *shape, device=DEVICE, dtype=FLOAT).cpu()
    torch.testing.assert_close(
        found, rng.normal(key, shape, device="cpu", dtype=FLOAT), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("limbs", [1, 3])
@pytest.mark.parametrize("variance", [None, 1e-3, "matrix"])
@pytest.mark.parametrize(
    ("settings", "input_range", "reduction"),
    [(MAXIMUM, None, 1.0), (MAXIMUM, None, 4.0), (MAXIMUM, 2.5, 2.0), (FIXED, None, 1.0),
     (replace(MAXIMUM, output_noise=0.0), None, 1.0), (replace(MAXIMUM, adc_step=0.0), None, 1.0)],
)  # fmt: skip
def test_a_read_is_that_of_plain_torch(settings, input_range, reduction, variance, limbs):
    torch.manual_seed(0)
    x, weight = torch.randn(40, 208), torch.rand(136, 208) * 2 - 1
    x[3], x[4, 5], x[5, 1] = 0.0, torch.nan, torch.inf
    if variance == "matrix":
        variance = 1e-3 * torch.rand(136, 208)
    given: list = [settings, input_range, reduction, 12345]
    packed = pack(weight, limbs, settings.dac_step)
    expected, beyond = read_in_torch(x, variance, given, packed)
    there = [v.to(DEVICE) if isinstance(v, Tensor) else v for v in (x, variance, weight)]
    packed = pack(there[2], limbs, settings.dac_step)
    found, clipped = (each.cpu() for each in cuda.read_once(*there[:2], *given, packed, None))
    assert found[4].isnan().all()
    assert expected[4].isnan().all()
    good = [row for row in range(40) if row not in (4, 5)]
    # Sums in another order can be rounded to the next step of the ADC.
    apart = (found - expected)[good].abs() > 1e-3
    assert apart.float().mean() < 0.005
    assert (clipped != beyond)[good].float().mean() < 0.005


def read_in_torch(x, variance, given, packed) -> tuple[Tensor, Tensor]:
    settings, input_range, reduction, key = given
    weight = torch.zeros(len(packed.unit), x.shape[1])
    args = (x, weight, variance, settings, input_range, reduction, key, packed)
    return reference._read_once(*args)


def test_ranges_of_tiles_clip_their_own_columns():
    torch.manual_seed(0)
    x, weight = torch.randn(33, 64), torch.rand(16, 64) * 2 - 1
    bounds = torch.tensor([0.5] * 8 + [12.0] * 8, device=DEVICE)
    settings = replace(MAXIMUM, output_noise=0.0)
    packed = pack(weight.to(DEVICE), 3, settings.dac_step)
    read = cuda.read_once(x.to(DEVICE), None, settings, None, 1.0, 0, packed, bounds)
    found, clipped = (each.cpu() for each in read)
    assert clipped[:, :8].any()
    assert not clipped[:, 8:].any()
    scaled = found / x.abs().amax(1, keepdim=True)
    assert scaled[:, :8].abs().max() <= 0.5 + 1e-5


COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from analog_grasp.kernels import cuda, cuda_noise

POINTERS = {
    "codes": "*i8", "clipped": "*i8", "sums": "*i32", "tiles": "*i64", **dict.fromkeys(
        ("x", "gains", "squares", "units", "matrix", "bounds", "targets", "mapping"), "*fp32"),
    **dict.fromkeys(("table", "points"), "*fp64"),
    **dict.fromkeys(("weights", "variance"), "*bf16")}
WHOLE = ("rows", "columns", "width", "stride")
KERNELS = {
    cuda._normal_kernel: {"out": "*fp32"},
    cuda._convert_kernel: {},
    cuda._output_kernel: {"out": "*fp32", "variance": "fp32"},
    cuda_noise._read_kernel: {"out": "*bf16"},
    cuda_noise._readout_kernel: {"out": "*fp32"},
}
for kernel, own in KERNELS.items():
    types = {}
    for name in kernel.arg_names:
        types[name] = own.get(name) or POINTERS.get(name) or (
            "i64" if name == "key" else "i32" if name in WHOLE else
            "constexpr" if name.isupper() else "fp32")
    given = {"ROWS": 8, "WIDTH": 512, "LIMBS": 3}
    constant = {name: given.get(name, True) for name in types if name.isupper()}
    source = ASTSource(fn=kernel, signature=types, constexprs=constant)
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", COMPILED], env=environment, check=True)


def test_without_a_compiler_plain_torch_is_used(monkeypatch):
    monkeypatch.setattr(rng.shutil, "which", lambda name: None)
    assert not rng.has_triton.__wrapped__()


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("card", ["pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_gpu_reads_the_same_chip(card, dtype):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(700, 64), torch.randn(50, 700)
    outputs: list[Tensor] = []
    for where in ("cpu", "cuda"):
        model = torch.nn.Sequential(torch.nn.Linear(700, 64)).to(where)
        model[0].load_state_dict(layer.state_dict())
        deployment = deploy(model, DeviceCard.load(card), dtype=dtype)
        deployment.program(3)
        deployment.drift_to("1d")
        torch.manual_seed(1)
        outputs.append(deployment.model(x.to(where)).cpu())
    # Sums in another order can be rounded to the next step of the ADC.
    apart = (outputs[0] - outputs[1]).abs()
    largest = outputs[0].abs().max()
    assert (apart > 0.01 * largest).float().mean() < 0.02
    assert apart.max() < 0.1 * largest


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@torch.no_grad()
def test_a_programmed_adapter_moves_to_a_gpu(bert, batch):
    adapted = get_peft_model(bert, GraspConfig(task_type="SEQ_CLS", groups=4))
    card = DeviceCard.load("pcm-hermes-2").without("converters", "read")
    deployment = deploy(adapted, card, placement="programmed").program(3).drift_to("1d")
    expected = deployment.model(**batch).logits
    deployment.model.to("cuda")
    found = deployment.model(**{name: t.to("cuda") for name, t in batch.items()}).logits.cpu()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
