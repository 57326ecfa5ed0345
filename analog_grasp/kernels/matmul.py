"""Analog products on a CPU: in float32, or faster by what a DAC's codes allow.

The codes are whole numbers. Those of up to 8 bits are exact in bfloat16, and in a byte. Weights
that are kept in bfloat16 are multiplied in bfloat16 where the processor has instructions for that;
else in bytes, where torch does so on this processor, rounded to 1/63 of the largest of their
column; else in float32.
"""

import functools
import warnings

import torch
from torch import Tensor

# Whole numbers up to 256 are exact in bfloat16.
_FINEST_IN_BFLOAT16 = 1.0 / 256.0
# The codes from -127 to 127 have the bytes from 1 to 255.
_FINEST_IN_BYTES = 1.0 / 127.0
_BYTE_OF_ZERO = 128
# The sum of two products of a code's byte with so many steps, at most, fits into 16 bits, which is
# where processors without longer instructions cut it off.
_WEIGHT_STEPS = 63

type Packed = torch.ScriptObject
"""Weights in bytes, in the order in which a processor wants them."""


def pack(weight: Tensor, dac_step: float) -> Packed | None:
    """Round weights to bytes for `multiply`; None where it does without.

    Args:
        weight: ``(D_out, width)``.
        dac_step: The DAC's step, in units of the full scale; 0 for exact inputs.
    """
    if (
        weight.dtype != torch.bfloat16
        or dac_step < _FINEST_IN_BYTES
        or multiplies_in_bfloat16()
        or not multiplies_in_bytes()
    ):
        return None
    return _in_bytes(weight)


def multiply(
    inputs: Tensor, weight: Tensor, packed: Packed | None, dac_step: float, out: Tensor
) -> Tensor:
    """Products of inputs that are whole steps of a DAC, ``(N, D_out)``, float32.

    Args:
        inputs: ``(N, width)``, float32, in [-1, 1].
        weight: ``(D_out, width)``.
        packed: What `pack` made of the weight.
        dac_step: The DAC's step, in units of the full scale; 0 for exact inputs.
        out: Memory for the result, ``(N, D_out)``, float32, which need not be used.
    """
    if packed is not None and len(inputs):
        return _multiply_in_bytes(inputs, packed, dac_step)
    if (
        weight.dtype == torch.bfloat16
        and dac_step >= _FINEST_IN_BFLOAT16
        and multiplies_in_bfloat16()
    ):
        codes = (inputs / dac_step).round_().bfloat16()
        return out.copy_(codes @ weight.T).mul_(dac_step)
    return torch.mm(inputs, weight.float().T, out=out)


@functools.cache
def multiplies_in_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16.

    Example:
        >>> multiplies_in_bfloat16() in (True, False)
        True
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@functools.cache
def multiplies_in_bytes() -> bool:
    """Whether torch multiplies bytes on this processor, and cuts no sum off.

    Example:
        >>> multiplies_in_bytes() in (True, False)
        True
    """
    largest = torch.ones(1, 64)
    try:
        product = _multiply_in_bytes(largest, _in_bytes(largest), _FINEST_IN_BYTES)
    # Left out of some builds of torch, and deprecated in all.
    except (AttributeError, RuntimeError):
        return False
    return bool((product - 64.0).abs() < 1e-3)


def _in_bytes(weight: Tensor) -> Packed:
    exact = weight.float()
    largest = exact.abs().amax(1)
    steps = torch.where(largest > 0, largest, 1.0) / _WEIGHT_STEPS
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_channel(exact, steps, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(rounded, None)


def _multiply_in_bytes(inputs: Tensor, packed: Packed, dac_step: float) -> Tensor:
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        inputs, dac_step, _BYTE_OF_ZERO, packed
    )
