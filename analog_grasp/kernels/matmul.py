"""Analog products on a CPU: in float32, or in the narrower types that a DAC's codes allow.

The codes are integers; codes of up to 8 bits are exact in bfloat16 and in int8. Weights stored in
bfloat16 are multiplied in bfloat16 if the processor has instructions for it, otherwise in int8 if
torch supports that on this processor, rounded to 1/63 of the largest of their column, otherwise in
float32.
"""

import functools
import warnings

import torch
from torch import Tensor

# Integers up to 256 are exact in bfloat16.
_FINEST_IN_BFLOAT16 = 1.0 / 256.0
# Codes from -127 to 127 map to bytes from 1 to 255.
_FINEST_IN_BYTES = 1.0 / 127.0
_BYTE_OF_ZERO = 128
# With at most this many steps the sum of two products fits into 16 bits, at which processors
# without wider instructions saturate.
_WEIGHT_STEPS = 63

type Packed = torch.ScriptObject
"""Weights in int8, in the processor's own memory layout."""


def pack(weight: Tensor, dac_step: float) -> Packed | None:
    """Return weights rounded to int8 for `multiply`, or None if it does not use them.

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
    """Return products of inputs that are integer multiples of a DAC's step.

    Args:
        inputs: Inputs in [-1, 1], ``(N, width)``, float32.
        weight: Weights, ``(D_out, width)``.
        packed: The weights as `pack` returned them.
        dac_step: The DAC's step, in units of the full scale; 0 for exact inputs.
        out: Buffer for the result, ``(N, D_out)``, float32; it may be ignored.

    Returns:
        ``(N, D_out)``, float32.
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
    """Return whether this processor has instructions for products in bfloat16.

    Example:
        >>> multiplies_in_bfloat16() in (True, False)
        True
    """
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@functools.cache
def multiplies_in_bytes() -> bool:
    """Return whether torch multiplies int8 on this processor without saturating sums.

    Example:
        >>> multiplies_in_bytes() in (True, False)
        True
    """
    largest = torch.ones(1, 64)
    try:
        product = _multiply_in_bytes(largest, _in_bytes(largest), _FINEST_IN_BYTES)
    # Missing from some builds of torch, and deprecated in all.
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
