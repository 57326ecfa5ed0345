"""Numerical back ends, and the plain data that they take.

`reference` states the computation in plain torch; `cpu` and `noise` are compiled. The data are
built from a device card by `analog_grasp.devices`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

# aihwkit's limits: inputs are divided by at most this, and reduced to no fewer than two bits.
_LARGEST_REDUCTION = 1000.0
_COARSEST_INPUT = 0.25

FORMS = ("polynomial", "logarithm", "power", "saturation", "reciprocal", "points")
"""The forms of a curve's piece; a piece's row holds the index of its form."""
MAX_COEFFICIENTS = 16
FIRST_COEFFICIENT = 8
"""Column of a piece's first coefficient in `DeviceParameters.curves`."""
SMALLEST = 1e-7
"""Logarithms and powers are taken of at least this, as in aihwkit (its ``_ZERO_CLIP``)."""
LONGEST_SINGLE = 7
"""A polynomial with more coefficients is evaluated in double precision: its terms may cancel."""


@dataclass(frozen=True)
class ReadSettings:
    """The converters of a tile, in units of its full scale.

    Attributes:
        dac_step: The DAC's step; 0 for an exact input.
        adc_step: The ADC's step; 0 for an exact output.
        output_bound: The ADC's largest output.
        output_noise: Standard deviation of the output noise.
        by_maximum: Scale each input vector by its largest magnitude.
        iterative: Read a vector again at half the input while an output is clipped.

    Source:
        aihwkit's `IOParameters` (Rasch et al., AICAS 2021).
    """

    dac_step: float = 0.0
    adc_step: float = 0.0
    output_bound: float = math.inf
    output_noise: float = 0.0
    by_maximum: bool = False
    iterative: bool = False

    def by_tile(self, tiles: int, output_ranges: Sequence[float] | None) -> list[ReadSettings]:
        """Return the settings of each tile, with its own largest output, which its steps span.

        Example:
            >>> ReadSettings(adc_step=0.5, output_bound=12.0).by_tile(1, [6.0])[0].adc_step
            0.25
        """
        if output_ranges is None:
            return [self] * tiles
        # A step of 0 beside a bound of infinity stays 0.
        steps = (self.adc_step and self.adc_step * r / self.output_bound for r in output_ranges)
        pairs = zip(steps, output_ranges, strict=True)
        return [replace(self, adc_step=step, output_bound=bound) for step, bound in pairs]

    def may_halve(self, reduction: float) -> bool:
        """Return whether a vector clipped at this reduction of its inputs is read again.

        Example:
            >>> ReadSettings(iterative=True).may_halve(512.0), ReadSettings().may_halve(1.0)
            (True, False)
        """
        coarsest = _COARSEST_INPUT / self.dac_step if self.dac_step else math.inf
        return self.iterative and reduction <= min(_LARGEST_REDUCTION, coarsest)


class DeviceParameters(NamedTuple):
    """A device card at one drift time, as arrays and float32 constants for the compiled kernel.

    Attributes:
        curves: One row per piece, ``(pieces, 24)``: the curve's weight in its sum, g_max if the
            variable is u and otherwise 0, the curve's lower bound, the form's index, `below`,
            `min`, `max`, the number of coefficients, and the coefficients. The last piece of a
            curve comes first.
        points: Points (x, y) of all pieces of form "points", ``(P, 2)``; such a piece's
            coefficients are the index of its first point and the index after its last one.
        starts: Row at which each sum of curves begins, and the end of the last one, ``(7,)``: mean
            shift, standard deviation, mean and standard deviation of nu, Q, short-term noise.
        draws: Presence of programming noise, per-device drift and accumulated read noise, ``(3,)``.
        growth: ln((t + t0) / t0), the factor of the drift exponent.
        read_factor: The time-dependent factor of the accumulated read noise.
        programmed_min: Lower bound of a programmed conductance.
        stuck_off, stuck_on: Fractions of devices stuck at g_min and at g_max.
    """

    curves: NDArray[np.float64]
    points: NDArray[np.float64]
    starts: NDArray[np.int64]
    draws: NDArray[np.bool_]
    pair: bool
    power_law: bool
    logarithmic_read: bool
    growth: np.float32
    relaxed_mean: np.float32
    relaxed_std: np.float32
    read_factor: np.float32
    programmed_min: np.float32
    read_min: np.float32
    read_max: np.float32
    g_min: np.float32
    g_max: np.float32
    stuck_off: np.float32
    stuck_on: np.float32


class TileParameters(NamedTuple):
    """The mapping of one tile's weights to conductances, and the keys of its random numbers.

    Attributes:
        scale: µS per unit of weight.
        offset: The weight that maps to g_min under the mapping "single"; otherwise 0.
        keys: Keys of programming, drift, read noise and stuck devices, by device of a cell,
            ``(4, 2)``.
    """

    scale: np.float32
    offset: np.float32
    keys: NDArray[np.uint64]
