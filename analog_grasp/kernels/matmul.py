"""Products of DAC codes with weights on a CPU or GPU, as sums of integers.

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

from analog_grasp.kernels.inputs import as_float, largest
from analog_grasp.kernels.rng import Floats
from analog_grasp.kernels.threads import parallel_kernel

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
_LIMBS = {torch.float32: 3, torch.float16: 2, torch.bfloat16: 1}
_NOT_A_NUMBER = np.float32(np.nan)
_FINITE = np.int32(0x7F7FFFFF)


class Limbs(NamedTuple):
    """Weights as int8 limbs, relative to the largest of each column."""

    values: Tensor
    """``(L * D_out, width)``, int8: the first limb of all columns, then the second, and so on."""
    unit: Tensor
    """The output of one DAC step times one unit of the first limb, ``(D_out,)``, float32."""


def number_of_limbs(dtype: torch.dtype, width: int, dac_step: float) -> int:
    """Return the number of limbs of weights, or 0 where products are computed in float32.

    A function of the processor and the arguments only, so that all workers on a machine agree.

    Args:
        dtype: The type in which the weights are stored.
        width: Inputs of the tile.
        dac_step: The DAC's step, in units of the full scale; 0 for exact inputs.

    Example:
        >>> number_of_limbs(torch.bfloat16, 512, 1 / 127), number_of_limbs(torch.bfloat16, 512, 0.0)
        (1, 0)
    """
    if dac_step < _FINEST_CODED or width > _WIDEST:
        return 0
    limbs = _LIMBS[dtype]
    # Without such instructions several products of bytes take longer than one in float32.
    return limbs if limbs == 1 or has_byte_instructions() else 0


def pack(weight: Tensor, limbs: int, dac_step: float) -> Limbs:
    """Return weights as limbs for `multiply`.

    Args:
        weight: ``(D_out, width)``, on a CPU, contiguous.
        limbs: The number of limbs, from `number_of_limbs`.
        dac_step: The DAC's step, in units of the full scale.

    Example:
        >>> packed = pack(torch.tensor([[0.25, -0.5]]), 2, 1 / 127)
        >>> packed.values, round(float(packed.unit) * 127 * 127, 3)
        (tensor([[  64, -127],
                [-127,    0]], dtype=torch.int8), 0.5)
    """
    with torch.inference_mode(False):
        values = torch.empty(limbs, *weight.shape, dtype=torch.int8)
        unit = torch.empty(len(weight))
    steps = _LARGEST if limbs > 1 else steps_of_one_limb()
    _split_into_limbs(
        len(weight),
        weight.float().numpy(),
        float(steps),
        dac_step,
        values.numpy(),
        unit.numpy(),
    )
    return Limbs(values.view(-1, weight.shape[1]), unit)


def multiply(codes: Tensor, limbs: Limbs, out: Tensor) -> Tensor:
    """Return the sums of products of codes and limbs.

    Args:
        codes: DAC codes, int8, ``(N, width)``.
        limbs: The weights.
        out: Buffer for the result, ``(N, L * D_out)``, int32; it may be ignored.

    Returns:
        ``(N, L * D_out)``: int32, or the same integers in float32 where that is faster.
    """
    if not len(codes):
        return out
    if _in_bytes(codes.shape[1]):
        return torch._int_mm(codes, limbs.values.T, out=out)
    return codes.float() @ limbs.values.float().T


@functools.cache
def has_byte_instructions() -> bool:
    """Return whether the processor has instructions for sums of products of bytes (VNNI, AMX).

    Example:
        >>> has_byte_instructions() in (True, False)
        True
    """
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
