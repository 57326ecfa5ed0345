"""Products of codes with limbs: exact sums, their back ends, and the error of the limbs."""

import pytest
import torch

from analog_grasp.kernels import matmul
from analog_grasp.kernels.matmul import (
    RADIX,
    analog_product,
    multiply,
    number_of_limbs,
    pack,
    split_by_torch,
)

STEP = 1 / 127
VNNI = pytest.mark.skipif(
    not matmul.has_byte_instructions(), reason="no instructions for sums of bytes"
)
SHAPES = [(5, 3, 7), (1, 1, 1), (33, 1, 64), (64, 300, 700), (17, 40, 1)]


def example(rows, columns, width):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (rows, width), generator=generator, dtype=torch.int8)
    return codes, torch.randn(columns, width, generator=generator)


def restored(limbs, columns):
    """Return weights from their limbs, float64."""
    count = len(limbs.values) // columns
    values = limbs.values.view(count, columns, -1).double()
    factors = (1.0 / RADIX) ** torch.arange(count).double()
    return (values * factors[:, None, None]).sum(0) * limbs.unit.double()[:, None] / STEP


def product(codes, limbs):
    out = torch.empty(len(codes), len(limbs.values), dtype=torch.int32)
    return multiply(codes, limbs, out)


@pytest.fixture
def backend(request, monkeypatch):
    """Compute products on bytes, or in float32."""
    if request.param == "bytes" and not matmul.has_byte_instructions():
        pytest.skip("no instructions for sums of bytes")
    chosen = matmul._in_bytes if request.param == "bytes" else lambda width: False
    monkeypatch.setattr(matmul, "_in_bytes", chosen)


@pytest.mark.parametrize("backend", ["bytes", "float32"], indirect=True)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_are_exact(backend, shape, count):
    codes, weight = example(*shape)
    limbs = pack(weight, count, STEP)
    expected = codes.double() @ limbs.values.double().T
    assert torch.equal(product(codes, limbs).double(), expected)


@pytest.mark.parametrize("backend", ["bytes", "float32"], indirect=True)
def test_the_largest_codes_and_limbs_do_not_saturate(backend):
    steps = matmul.steps_of_one_limb()
    for width in (64, 1040):
        signs = torch.tensor([[1.0], [-1.0]]).expand(2, width)
        limbs = pack(signs.contiguous(), 1, STEP)
        codes = (127 * signs).to(torch.int8)
        largest = 127 * steps * width
        expected = torch.tensor([[largest, -largest], [-largest, largest]])
        assert torch.equal(product(codes, limbs).int(), expected.int())


def test_the_float32_back_end_is_exact_up_to_its_widest_tile():
    width = matmul._WIDEST_IN_FLOAT32
    assert width * 127**2 <= 2**24 < (width + 1) * 127**2
    assert matmul._WIDEST * 127**2 <= 2**31 < (matmul._WIDEST + 1) * 127**2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_limbs_round_to_half_a_step_of_the_last(count):
    _, weight = example(1, 50, 200)
    steps = 127 if count > 1 else matmul.steps_of_one_limb()
    largest = weight.abs().amax(1, keepdim=True).double()
    bound = 0.5 / (steps * RADIX ** (count - 1)) + 2.0**-24
    error = (restored(pack(weight, count, STEP), 50) - weight.double()).abs() / largest
    assert error.max() <= bound
    # Not by far less: a bound that nothing comes near would not show a missing limb.
    assert error.max() > 0.4 / (steps * RADIX ** (count - 1))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_columns_of_zeros_of_subnormal_numbers_and_of_nan(count):
    weight = torch.zeros(4, 5)
    weight[1] = 1e-40
    weight[2, 3] = torch.nan
    weight[3] = torch.tensor([1e-40, 1.0, -1.0, 0.5, 0.0])
    limbs = pack(weight, count, STEP)
    found = restored(limbs, 4)
    assert (found[0] == 0).all()
    assert (found[1].abs() <= 1.1e-40).all()
    assert found[2].isnan().all()
    torch.testing.assert_close(found[3].float(), weight[3], rtol=0, atol=0.01)


def stored(dtype, width=512):
    """Return weights of a type that take no memory."""
    return torch.empty(1, 1, dtype=dtype).expand(8, width)


def test_the_number_of_limbs_follows_the_stored_type_and_the_dac():
    assert number_of_limbs(stored(torch.bfloat16), STEP) == 1
    assert number_of_limbs(stored(torch.bfloat16), 2 / (2**4 - 2)) == 1
    several = (3, 2) if matmul.has_byte_instructions() else (0, 0)
    assert number_of_limbs(stored(torch.float32), STEP) == several[0]
    assert number_of_limbs(stored(torch.float16), STEP) == several[1]
    for dtype in (torch.float32, torch.bfloat16):
        assert number_of_limbs(stored(dtype), 2 / (2**9 - 2)) == 0
        assert number_of_limbs(stored(dtype), 0.0) == 0
        assert number_of_limbs(stored(dtype, 200_000), STEP) == 0
        assert number_of_limbs(stored(dtype).to("meta"), STEP) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_torch_splits_weights_as_the_compiled_kernel_does(count):
    weight = example(1, 50, 200)[1]
    weight[3], weight[4] = 0, 1e-40
    compiled = pack(weight, count, STEP)
    limbs, unit = torch.empty(count, 50, 200, dtype=torch.int8), torch.empty(50)
    steps = 127 if count > 1 else matmul.steps_of_one_limb()
    split_by_torch(weight, steps, STEP, limbs, unit)
    assert torch.equal(limbs.view(-1, 200), compiled.values)
    assert torch.equal(unit, compiled.unit)


@VNNI
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rows", [1, 40])
def test_analog_products_in_torch(rows, count):
    codes, weight = example(rows, 24, 64)
    inputs = codes * torch.tensor(STEP)
    found = analog_product(inputs, pack(weight, count, STEP), STEP)
    tolerance = {2: 5e-4, 3: 1e-5}[count]
    torch.testing.assert_close(found, inputs @ weight.T, rtol=0, atol=tolerance)
    inputs[0, 3] = torch.nan
    assert analog_product(inputs, pack(weight, count, STEP), STEP)[0].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_on_a_gpu_are_those_of_the_processor(count):
    codes, weight = example(40, 24, 64)
    here, there = pack(weight, count, STEP), pack(weight.cuda(), count, STEP)
    if count > 1:
        assert torch.equal(there.values.cpu(), here.values)
    expected = codes.double() @ there.values.cpu().double().T
    out = torch.empty(expected.shape, dtype=torch.int32, device="cuda")
    assert torch.equal(multiply(codes.cuda(), there, out).cpu().double(), expected)


def test_a_processor_whose_sums_saturate_has_no_byte_instructions(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-(2**15), 2**15))
    assert not matmul.has_byte_instructions.__wrapped__()


def test_a_processor_without_byte_instructions_uses_float32_for_several_limbs(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(matmul, "has_byte_instructions", matmul.has_byte_instructions.__wrapped__)
    assert matmul.steps_of_one_limb.__wrapped__() == 63
    assert number_of_limbs(stored(torch.float32), STEP) == 0
    assert number_of_limbs(stored(torch.bfloat16), STEP) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_no_rows_give_no_products(count):
    codes, weight = example(0, 3, 7)
    assert product(codes, pack(weight, count, STEP)).shape == (0, 3 * count)
