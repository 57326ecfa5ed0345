"""The converters around a tile: a card's DAC and ADC in the units of the kernels."""

import math

from torch import Tensor

from analog_grasp.devices.schema import Converters
from analog_grasp.kernels import cpu, reference
from analog_grasp.kernels.programming import fits_kernel
from analog_grasp.kernels.reference import ReadSettings, Variance


def read_settings(converters: Converters) -> ReadSettings:
    """Return a card's converters in units of full scale; a range of b bits has 2^b - 2 steps.

    Example:
        >>> from analog_grasp.devices.card import DeviceCard
        >>> settings = read_settings(DeviceCard.load("pcm-hermes-2").converters)
        >>> round(1 / settings.dac_step)
        127
    """
    bound = converters.output_range or math.inf
    return ReadSettings(
        dac_step=_step(converters.dac_bits, 1.0),
        adc_step=_step(converters.adc_bits, bound),
        output_bound=bound,
        output_noise=converters.output_noise,
        by_maximum=converters.input_scaling == "abs_max",
        iterative=converters.bound_management == "iterative",
    )


def readout(weight: Tensor, variance: Variance, settings: ReadSettings | None, key: int) -> Tensor:
    """Return the read-out of each column of a tile; see `kernels.reference.column_readout`."""
    kernel = cpu if fits_kernel(weight) else reference
    return kernel.column_readout(weight, variance, settings, key)


def _step(bits: int | None, bound: float) -> float:
    return 2.0 * bound / (2**bits - 2) if bits else 0.0
