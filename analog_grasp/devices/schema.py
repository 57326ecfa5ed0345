"""Sections of a device card, each with its formula, its units and its checks."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from analog_grasp.devices.fields import (
    Bits,
    Conductance,
    Count,
    Curve,
    Fraction,
    Pair,
    Resistance,
    Seconds,
    Section,
    ShiftCurve,
    StdCurve,
    Text,
)
from analog_grasp.kernels import ReadSettings
from analog_grasp.utils.errors import shown


class Source(Section):
    """The source of a card's data.

    Attributes:
        citation: The publication, or such as "own measurement".
        doi: The publication's digital object identifier, if it has one.
        location: The figure, table or file with the data.
    """

    citation: Text
    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$", max_length=200)] | None = None
    location: Text


class ConductanceRange(Section):
    """The range of conductances, and the mapping of a weight w to it.

    With s = (g_max - g_min) / max|w| the mappings are

        pair     g+ = g_min + s max(w, 0), g- = g_min + s max(-w, 0); w is their difference
        single   g = g_min + (w - min w) (g_max - g_min) / (max w - min w), one device per weight
        signed   g = w g_max / max|w|, which no device can do: for generic cards, and for published
                 models of the noise of whole weights

    The first two are aihwkit's `SinglePairConductanceConverter` and
    `SingleDeviceConductanceConverter`.

    Attributes:
        g_min: The smallest conductance, µS.
        g_max: The largest conductance, µS.
        mapping: One of the three mappings.
    """

    g_min: Conductance
    g_max: Conductance
    mapping: Literal["pair", "single", "signed"]

    @field_validator("g_max")
    @classmethod
    def _above_g_min(cls, g_max: float, info: Any) -> float:
        g_min = info.data.get("g_min", 0.0)
        if g_max <= g_min:
            raise ValueError(f"is {g_max:g} uS and g_min {g_min:g} uS: g_max should be above g_min")
        return g_max

    @field_validator("mapping")
    @classmethod
    def _signed_from_zero(cls, mapping: str, info: Any) -> str:
        if mapping == "signed" and info.data.get("g_min", 0.0) > 0:
            raise ValueError('is "signed" but g_min is above 0: write g_min = "0 uS"')
        return mapping


class PowerLawDrift(Section):
    """Drift of phase-change memory: g(t) = g_prog ((t + t0) / t0)^-nu, nu = |N(mean, std^2)|.

    Each device has an exponent nu of its own, whose distribution depends on the target
    conductance. The time t counts from the first reading, t0 after programming (aihwkit's
    convention).

    Attributes:
        t0: Time of the first reading after programming, s.
        nu_mean: Mean of the exponent.
        nu_std: Standard deviation of the exponent among devices.
    """

    model: Literal["power-law"]
    t0: Seconds
    nu_mean: Curve
    nu_std: Curve

    def scaled(self, means: float, stds: float) -> Self:
        """Return the section with mean and standard deviation of nu multiplied."""
        curves = {"nu_mean": self.nu_mean.scaled(means), "nu_std": self.nu_std.scaled(stds)}
        return self.model_copy(update=curves)


class ProgrammedState(StdCurve):
    """Standard deviation, µS, and mean error of the conductance as programmed.

    g = g' + sigma(g') z, z ~ N(0, 1), with g' = g_target + shift(g_target).

    Attributes:
        shift: Mean error as a function of the target; absent: none.
    """

    shift: ShiftCurve | None = None


class DriftRow(ProgrammedState):
    """Standard deviation, µS, and change of the mean at one time.

    Attributes:
        time: Time since programming, s.
        shift: Change of the mean since programming as a function of the target; absent: none.
    """

    time: Seconds


class TabulatedDrift(Section):
    """Relaxation tabulated by time: g(t) = g' + sigma(g', t) z, z ~ N(0, 1).

    g' = g_target + shift(g_target, t) is the mean. Between two times sigma and shift are linear in
    ln t (this project's choice); before the first time they have the values of the first row.
    Beyond the last time they are constant or extrapolated linearly in ln t, sigma to 0 at least. A
    card with this section has no section `programming`: the first row is the programmed state,
    without a shift. A device keeps its z for all times.

    Attributes:
        table: The rows, by ascending time.
        beyond: "hold" or "extrapolate", for times beyond the last row.
    """

    model: Literal["tabulated"]
    table: Annotated[tuple[DriftRow, ...], Field(strict=False, min_length=1, max_length=64)]
    beyond: Literal["hold", "extrapolate"] = "hold"

    @field_validator("beyond")
    @classmethod
    def _two_rows(cls, beyond: str, info: Any) -> str:
        if beyond == "extrapolate" and len(info.data.get("table", ())) < 2:
            raise ValueError(
                'is "extrapolate", which requires a table of two rows or more: use "hold"'
            )
        return beyond

    @field_validator("table")
    @classmethod
    def _ascending(cls, table: tuple[DriftRow, ...]) -> tuple[DriftRow, ...]:
        times = [row.time for row in table]
        if times != sorted(set(times)):
            raise ValueError("should be in the order of its times, each time once")
        if table[0].shift is not None:
            raise ValueError("has a shift in its first row, the programmed state: remove it")
        return table

    def scaled(self, means: float, stds: float) -> Self:
        """Return the section with shifts and standard deviations multiplied."""
        table = tuple(
            row.scaled(stds).model_copy(update={"shift": row.shift and row.shift.scaled(means)})
            for row in self.table
        )
        return self.model_copy(update={"table": table})


class RelaxationDrift(Section):
    """Relaxation linear in ln t: g(t) = g_prog + mean(t) + std(t) z, z ~ N(0, 1), for t > 0.

    With mean = [a, b], mean(t) = a + b ln(t / 1 s); std likewise. The conductance read is clipped
    to [g_min, g_max], as in aihwkit's `ReRamCMONoiseModel`.

    Attributes:
        unit: Always "uS".
        mean: Coefficients of the mean shift, µS.
        std: Coefficients of the standard deviation, µS; negative values count as 0.
    """

    model: Literal["relaxation"]
    unit: Literal["uS"]
    mean: Pair
    std: Pair

    def scaled(self, means: float, stds: float) -> Self:
        """Return the section with mean and standard deviation of the relaxation multiplied."""
        pairs = {
            "mean": tuple(means * value for value in self.mean),
            "std": tuple(stds * value for value in self.std),
        }
        return self.model_copy(update=pairs)


Drift = Annotated[PowerLawDrift | TabulatedDrift | RelaxationDrift, Field(discriminator="model")]


class RelativeRead(Section):
    """Accumulated 1/f noise: sigma = g Q sqrt(ln((t + t0 + t_read) / (2 t_read))).

    Q depends on the programmed conductance, g is the drifted one; Nandakumar et al. (2019).

    Attributes:
        t0: Age of the device at t = 0, s.
        t_read: Duration of a read, s.
        q: The curve of Q.
    """

    model: Literal["relative"]
    t0: Seconds
    t_read: Seconds
    q: Curve

    def scaled(self, stds: float) -> Self:
        """Return the section with the noise multiplied."""
        return self.model_copy(update={"q": self.q.scaled(stds)})


class LogarithmicRead(Section):
    """Accumulated 1/f noise: sigma = k log10(g / 1 µS) sqrt(ln((t + t_read) / (2 t_read))), µS.

    It is 0 for g below 1 µS and for t below t_read, where the formula has no value (this project's
    choice). The form is that of aihwkit's `ReRamCMONoiseModel`.

    Attributes:
        unit: Always "uS".
        k: The factor, µS.
        t_read: Duration of a read, s.
    """

    model: Literal["logarithmic"]
    unit: Literal["uS"]
    k: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]
    t_read: Seconds

    def scaled(self, stds: float) -> Self:
        """Return the section with the noise multiplied."""
        return self.model_copy(update={"k": self.k * stds})


Read = Annotated[RelativeRead | LogarithmicRead, Field(discriminator="model")]


class DieToDie(Section):
    """Variation from chip to chip, as relative standard deviations.

    A chip instance draws two factors, each N(1, std^2) and at least 0: one multiplies the card's
    means of change (drift exponent, relaxation, shift), the other all its standard deviations
    (programming, drift, read noise). The card's own device-to-device noise is added within a chip.

    Attributes:
        mean: Standard deviation of the factor of the means.
        std: Standard deviation of the factor of the standard deviations.
    """

    mean: Fraction = 0.0
    std: Fraction = 0.0


class Stuck(Section):
    """Devices with one fixed conductance, whatever is programmed and at all times.

    Attributes:
        off: Fraction of the devices stuck at g_min.
        on: Fraction of the devices stuck at g_max.
    """

    off: Fraction = 0.0
    on: Fraction = 0.0

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.off + self.on > 1:
            raise ValueError(
                f"has off + on = {self.off + self.on:g}: together they should be at most 1"
            )
        return self


class Converters(Section):
    """The converters around a tile; a converter that is absent is exact.

    Attributes:
        dac_bits: Resolution of the inputs.
        adc_bits: Resolution of the outputs.
        output_noise: Standard deviation of the output noise, in units of full-scale input times
            largest weight (aihwkit's `out_noise`).
        output_range: Largest output, in the same units (aihwkit's `out_bound`).
        input_scaling: "abs_max" scales every input vector to the full scale; "constant" uses the
            fixed input range of the layer, and without one 1, as aihwkit's "Constant" with its
            default threshold; "none" does not scale. A range that is set, by the section `mapping`
            or by `Deployment.calibrate`, takes precedence over each.
        bound_management: "iterative" halves the inputs and reads again while an output is
            clipped, "none" accepts clipped outputs.
    """

    dac_bits: Bits | None = None
    adc_bits: Bits | None = None
    output_noise: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    output_range: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    input_scaling: Literal["abs_max", "constant", "none"] = "none"
    bound_management: Literal["iterative", "none"] = "none"

    @model_validator(mode="after")
    def _adc_needs_range(self) -> Self:
        if self.adc_bits is not None and self.output_range is None:
            raise ValueError("has adc_bits but no output_range: give the range that the bits span")
        return self

    def read_settings(self) -> ReadSettings:
        """Return the converters in units of full scale; a range of b bits has 2^b - 2 steps.

        Example:
            >>> round(1 / Converters(dac_bits=8).read_settings().dac_step)
            127
        """
        bound = self.output_range or math.inf
        return ReadSettings(
            dac_step=_step(self.dac_bits, 1.0),
            adc_step=_step(self.adc_bits, bound),
            output_bound=bound,
            output_noise=self.output_noise,
            by_maximum=self.input_scaling == "abs_max",
            iterative=self.bound_management == "iterative",
        )


_Percentile = Annotated[float, Field(gt=0, le=100)]


class LayerMapping(Section):
    """The mapping of a model's layers to the tiles, as stated for the hardware.

    Arguments of `analog_grasp.deploy` and settings of a study that are given take precedence.
    `deploy` itself uses `clip` and `first_token`; the others require training rows, on which a
    study observes the inputs of each layer.

    Attributes:
        rescale: The exponent of rescaling; see `Deployment.rescale`. Absent: no rescaling.
        clip: Clipping of weights: a number of standard deviations of their column, or
            "least-error"; see `analog_grasp.crossbar.mapping.column_scale`. Absent: none.
        calibrate: A fixed input range per layer: a percentile of its inputs, or "least-error"; see
            `Deployment.calibrate`. Absent: as `Converters.input_scaling` states.
        output_ranges: An output range per tile: a percentile of its outputs, or "least-error"; see
            `Deployment.calibrate_outputs`. Absent: `Converters.output_range` for all tiles.
        first_token: "digital" computes the first token of each sequence exactly, "analog" on the
            tiles.

    Example:
        >>> LayerMapping(clip=2.5, calibrate="least-error").first_token
        'analog'
    """

    rescale: Fraction | None = None
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["least-error"] | None = None
    calibrate: _Percentile | Literal["least-error"] | None = None
    output_ranges: _Percentile | Literal["least-error"] | None = None
    first_token: Literal["analog", "digital"] = "analog"

    @field_validator("clip", "calibrate", "output_ranges", mode="before")
    @classmethod
    def _number_or_rule(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "least-error":
            raise ValueError(f'is {shown(value)}: it should be a number or "least-error"')
        return value


class WriteVerify(Section):
    """Program-and-verify as published: pulses until the conductance is accepted.

    Attributes:
        tolerance: Half the width of the accepted range about the target, µS, above 0.
        pulses: Mean number of pulses per device.
        location: The place in the source.
    """

    tolerance: Annotated[Conductance, Field(gt=0)]
    pulses: Annotated[float, Field(gt=1, le=1e6, allow_inf_nan=False)]
    location: Text


class Circuit(Section):
    """The electronics between devices and converters; simulated by aihwkit's own tiles only.

    Attributes:
        wire_resistance: Resistance of the wire between neighbouring devices of a bit line, Ohm,
            which attenuates devices far from the read-out (I-R drop).
        nonlinearity: n of the S-shaped curve y / (1 + n |y| / output_range) of a bit line's
            current (aihwkit's `out_nonlinearity`).
        nonlinearity_std: Standard deviation of n among the bit lines, relative to n, which should
            be above 0.
    """

    wire_resistance: Resistance | None = None
    nonlinearity: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    nonlinearity_std: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _std_of_a_nonlinearity(self) -> Self:
        if self.nonlinearity_std and not self.nonlinearity:
            raise ValueError(
                f"has nonlinearity_std {self.nonlinearity_std:g}, relative to a nonlinearity of 0: "
                "give a nonlinearity above 0"
            )
        return self


class TileSize(Section):
    """The size of one crossbar tile, in weights.

    Attributes:
        rows: Number of inputs.
        columns: Number of outputs.
    """

    rows: Count
    columns: Count


def _step(bits: int | None, bound: float) -> float:
    return 2.0 * bound / (2**bits - 2) if bits else 0.0
