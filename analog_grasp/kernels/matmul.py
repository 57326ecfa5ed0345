"""Products of DAC codes with weights, as sums of integers, on a CPU or a GPU.

A DAC of at most 8 bits outputs codes of at most 127 steps. A weight relative to the largest of its
column is written as limbs, int8 numbers l1, l2, l3:

    w / max|w| = l1 / 127 + l2 / (127 * 254) + l3 / (127 * 254^2)

The products of codes and limbs are exact sums of integers, whatever the order, the number of
threads, or the split into batches. Weights stored in float32 have three limbs, which round them to
6e-8 of the largest, below the error of a product in float32; weights in float16 have two (8e-6);
weights in bfloat16 have one (4e-3).

Source:
    The splitting is that of Ozaki et al., Numer. Algorithms 59, 95 (2012), for one integer operand.
"""

import functools
import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from analog_grasp.kernels.compiled import Floats, as_float, largest, parallel_kernel

_FINEST_CODED = 1.0 / 127.0
_LARGEST = 127
# Residues of at most half a unit have at most 127 steps of the next limb.
RADIX = 254
# With at most this many steps the sum of two products fits into 16 bits, at which processors
# without instructions for sums of bytes saturate.
_STEPS_WITHOUT_INSTRUCTIONS = 63
# int32 sums of products of up to 127^2.
_WIDEST = 2**31 // _LARGEST**2
# Sums of products below 2^24 are exact in float32 too.
_WIDEST_IN_FLOAT32 = 2**24 // _LARGEST**2
_INT8_CORES = (7, 5)
FEWEST_ROWS_ON_GPU = 32
"""Rows that torch._int_mm takes on a GPU."""
_LIMBS = {torch.float32: 3, torch.float16: 2, torch.bfloat16: 1}
_NOT_A_NUMBER = np.float32(np.nan)
_FINITE = np.int32(0x7F7FFFFF)


class Limbs(NamedTuple):
    """Weights as int8 limbs, relative to the largest of each column.

    Attributes:
        values: ``(L * D_out, width)``, int8: the first limb of all columns, then the second, etc.
        unit: The output of one DAC step times one unit of the first limb, ``(D_out,)``, float32.
    """

    values: Tensor
    unit: Tensor

    def of_tile(self, tile: slice) -> "Limbs":
        """Return the limbs of some columns."""
        values = self.values.view(-1, len(self.unit), self.values.shape[1])[:, tile]
        return Limbs(values.flatten(0, 1), self.unit[tile])


def number_of_limbs(weight: Tensor, dac_step: float) -> int:
    """Return the number of limbs of weights, or 0 where products are computed in float32.

    A function of the processor and the arguments only, so that all workers on a machine agree.

    Args:
        weight: ``(D_out, width)``, in the type in which it is stored.
        dac_step: The DAC's step, in units of the full scale; 0 for exact inputs.

    Example:
        >>> weight = torch.ones(2, 8, dtype=torch.bfloat16)
        >>> number_of_limbs(weight, 1 / 127), number_of_limbs(weight, 0.0)
        (1, 0)
    """
    columns, width = weight.shape
    if dac_step < _FINEST_CODED or width > _WIDEST:
        return 0
    limbs = _LIMBS[weight.dtype]
    if weight.device.type == "cpu":
        # Without such instructions several products of bytes take longer than one in float32.
        return limbs if limbs == 1 or has_byte_instructions() else 0
    if weight.device.type != "cuda" or columns % 8 or width % 8:
        return 0
    return limbs if torch.cuda.get_device_capability(weight.device) >= _INT8_CORES else 0


def pack(weight: Tensor, limbs: int, dac_step: float) -> Limbs:
    """Return weights as limbs for `multiply`; the unit of a column with NaN is NaN.

    Args:
        weight: ``(D_out, width)``, contiguous.
        limbs: The number of limbs, from `number_of_limbs`.
        dac_step: The DAC's step, in units of the full scale.

    Example:
        >>> packed = pack(torch.tensor([[0.25, -0.5]]), 2, 1 / 127)
        >>> packed.values, round(float(packed.unit) * 127 * 127, 3)
        (tensor([[  64, -127],
                [-127,    0]], dtype=torch.int8), 0.5)
    """
    with torch.inference_mode(False):
        values = weight.new_empty((limbs, *weight.shape), dtype=torch.int8)
        unit = weight.new_empty(len(weight), dtype=torch.float32)
    packed = Limbs(values.view(-1, weight.shape[1]), unit)
    steps = float(_LARGEST if limbs > 1 or weight.is_cuda else steps_of_one_limb())
    if weight.device.type == "cpu":
        single = weight.float().numpy()
        _split_into_limbs(len(weight), single, steps, dac_step, values.numpy(), unit.numpy())
        return packed
    split_by_torch(weight, steps, dac_step, values, unit)
    return packed


def split_by_torch(
    weight: Tensor, steps: float, dac_step: float, limbs: Tensor, unit: Tensor
) -> None:
    """Fill `limbs`, ``(L, D_out, width)``, and `unit`, as `pack`, on any device.

    `steps` is the largest magnitude of the first limb.
    """
    largest_of_column = weight.abs().amax(1).double()
    unit.copy_(largest_of_column / steps * dac_step)
    factor = torch.where(largest_of_column > 0, steps / largest_of_column, 0.0)
    residue = weight.double() * factor[:, None]
    for limb in limbs:
        nearest = residue.round()
        limb.copy_(nearest)
        residue.sub_(nearest).mul_(RADIX)


def analog_product(inputs: Tensor, limbs: Limbs, dac_step: float) -> Tensor:
    """Return the analog products, ``(N, D_out)``, of multiples of the DAC's step, ``(N, width)``.

    In plain torch, on any device and in the type of the inputs; NaN where an input of a vector is.
    """
    codes = (inputs / dac_step).round().to(torch.int8)
    # The sizes that torch._int_mm takes on a GPU.
    padded = functional.pad(codes, (0, 0, 0, max(FEWEST_ROWS_ON_GPU - len(codes), 0)))
    out = codes.new_empty(len(padded), len(limbs.values), dtype=torch.int32)
    sums = multiply(padded, limbs, out)[: len(codes)].to(inputs.dtype)
    product = torch.zeros_like(sums[:, : len(limbs.unit)])
    for part in reversed(sums.split(len(limbs.unit), dim=1)):
        product = product / RADIX + part
    return (product * limbs.unit).where(inputs.isfinite().all(1, keepdim=True), torch.nan)


def multiply(codes: Tensor, limbs: Limbs, out: Tensor) -> Tensor:
    """Return the sums of products of codes, int8, ``(N, width)``, and limbs.

    ``(N, L * D_out)``: int32 in the buffer `out`, or the same integers in float32 where that is
    faster.
    """
    if not len(codes):
        return out
    if codes.is_cuda or _in_bytes(codes.shape[1]):
        return torch._int_mm(codes, limbs.values.T, out=out)
    return codes.float() @ limbs.values.float().T


@functools.cache
def has_byte_instructions() -> bool:
    """Return whether the processor has instructions for sums of products of bytes (VNNI, AMX)."""
    has = torch.cpu.get_capabilities()
    named = any(has.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return named and _is_exact(_LARGEST)


@functools.cache
def steps_of_one_limb() -> int:
    """Return the largest magnitude of the limb of weights that have one."""
    return _LARGEST if has_byte_instructions() else _STEPS_WITHOUT_INSTRUCTIONS


@functools.cache
def _in_bytes(width: int) -> bool:
    """Return whether products are computed on bytes; otherwise in float32, with the same result."""
    # torch._int_mm leaves its result unwritten where each sum has one term (torch 2.14).
    if width == 1:
        return False
    if has_byte_instructions() or width > _WIDEST_IN_FLOAT32:
        return True
    return _is_exact(_STEPS_WITHOUT_INSTRUCTIONS) and _is_faster_in_bytes()


def _is_exact(steps: int) -> bool:
    """Return whether the sums of the largest codes and limbs of either sign are exact."""
    codes = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    codes[::2] *= -1
    limbs = torch.full((16, 64), steps, dtype=torch.int8)
    limbs[::3] *= -1
    exact = codes.double() @ limbs.double().T
    return bool((torch._int_mm(codes, limbs.T) == exact).all())


@functools.cache
def _is_faster_in_bytes() -> bool:
    """Return whether products of bytes took less time than in float32, the better of five each."""
    codes = torch.ones(256, 512, dtype=torch.int8)
    seconds: dict[torch.dtype, list[float]] = {torch.int8: [], torch.float32: []}
    for _ in range(5):
        for dtype, taken in seconds.items():
            begin = time.perf_counter()
            if dtype == torch.int8:
                torch._int_mm(codes, codes.T)
            else:
                torch.mm(codes.float(), codes.float().T)
            taken.append(time.perf_counter() - begin)
    return min(seconds[torch.int8]) < min(seconds[torch.float32])


@parallel_kernel
def _split_into_limbs(
    first: int,
    end: int,
    weight: Floats,
    steps: float,
    dac_step: float,
    limbs: NDArray[np.int8],
    unit: Floats,
) -> None:
    """Split the weights of each column into limbs; the unit of a column with NaN is NaN."""
    count, _, width = limbs.shape
    residue = np.empty(width, np.float64)
    for o in range(first, end):
        bits = largest(weight[o])
        most = np.float64(as_float(bits))
        unit[o] = np.float32(most / steps * dac_step)
        if bits > _FINITE:
            unit[o] = _NOT_A_NUMBER
        factor = steps / most if most > 0 and bits <= _FINITE else 0.0
        for d in range(width):
            residue[d] = weight[o, d] * factor if factor > 0 else 0.0
        for limb in range(count):
            for d in range(width):
                nearest = np.rint(residue[d])
                limbs[limb, o, d] = np.int8(nearest)
                residue[d] = (residue[d] - nearest) * RADIX
