"""The sections of a device card: what each part of the data says, and its checks."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from analog_grasp.devices.curve import Curve, Number, Section, ShiftCurve, SpreadCurve
from analog_grasp.devices.units import Conductance, Resistance, Seconds

Text = Annotated[str, Field(min_length=1, max_length=2000)]
Bits = Annotated[int, Field(ge=2, le=16)]
Count = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Pair = Annotated[tuple[Number, Number], Field(strict=False)]


class Source(Section):
    """Where the numbers come from.

    Attributes:
        citation: the publication.
        doi: its digital object identifier; left out only by cards of no real device.
        location: the figure, table or file that the numbers were taken from.
    """

    citation: Text
    doi: Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$", max_length=200)] | None = None
    location: Text


class ConductanceRange(Section):
    """The range of conductances, and how a weight w is held in it.

    With s = (g_max - g_min) / max|w| the mappings are

        pair     g+ = g_min + s max(w, 0), g- = g_min + s max(-w, 0); w is their difference
        single   g = g_min + (w - min w) (g_max - g_min) / (max w - min w), one device a weight
        signed   g = w g_max / max|w|, which no device can do: for generic cards only

    The first two are aihwkit's `SinglePairConductanceConverter` and
    `SingleDeviceConductanceConverter`.

    Attributes:
        g_min: the smallest conductance, µS.
        g_max: the largest conductance, µS.
        mapping: one of the three mappings.
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

    The exponent nu belongs to a device; its distribution depends on the target conductance. The
    time t counts from the first reading, t0 after programming (aihwkit's convention).

    Attributes:
        t0: time of the first reading after programming, s.
        nu_mean: mean of the exponent.
        nu_std: its standard deviation among devices.
    """

    model: Literal["power-law"]
    t0: Seconds
    nu_mean: Curve
    nu_std: Curve


class TabulatedSpread(SpreadCurve):
    """The spread, µS, at one time.

    Attributes:
        time: time since programming, s.
        shift: change of the mean since programming, a function of the target; absent: none.
    """

    time: Seconds
    shift: ShiftCurve | None = None


class TabulatedDrift(Section):
    """Relaxation known at a few times: g(t) = g' + sigma(g', t) z, z = N(0, 1).

    Here g' = g_target + shift(g_target, t) is the mean. Between two times sigma and shift are
    linear in ln t (ours); before the first they are those of the first. Beyond the last they are
    held, or go on as between the last two rows, as the card says. A card with this section has no
    section `programming`: the state at the first time is the programmed one, without a shift. A
    device keeps its z for all times.

    Attributes:
        table: the spreads, by ascending time.
        beyond: "hold" or "extrapolate", after the last time.
    """

    model: Literal["tabulated"]
    table: Annotated[tuple[TabulatedSpread, ...], Field(strict=False, min_length=1, max_length=64)]
    beyond: Literal["hold", "extrapolate"] = "hold"

    @field_validator("beyond")
    @classmethod
    def _two_rows(cls, beyond: str, info: Any) -> str:
        if beyond == "extrapolate" and len(info.data.get("table", ())) < 2:
            raise ValueError('is "extrapolate", which takes a table of two rows or more: hold')
        return beyond

    @field_validator("table")
    @classmethod
    def _ascending(cls, table: tuple[TabulatedSpread, ...]) -> tuple[TabulatedSpread, ...]:
        times = [row.time for row in table]
        if times != sorted(set(times)):
            raise ValueError("should be in the order of its times, each time once")
        if table[0].shift is not None:
            raise ValueError("has a shift in its first row, the programmed state: leave it out")
        return table


class RelaxationDrift(Section):
    """Relaxation linear in ln t: g(t) = g_prog + mean(t) + std(t) z, z = N(0, 1), for t > 0.

    With mean = [a, b], mean(t) = a + b ln(t / 1 s), and alike for std. What is read is clipped to
    [g_min, g_max], as in aihwkit's `ReRamCMONoiseModel`.

    Attributes:
        unit: always "uS".
        mean: the coefficients of the mean shift, µS.
        std: the coefficients of the spread, µS; below 0 the spread counts as 0.
    """

    model: Literal["relaxation"]
    unit: Literal["uS"]
    mean: Pair
    std: Pair


Drift = Annotated[PowerLawDrift | TabulatedDrift | RelaxationDrift, Field(discriminator="model")]


class RelativeRead(Section):
    """Accumulated 1/f noise: sigma = g Q sqrt(ln((t + t0 + t_read) / (2 t_read))).

    Q depends on the programmed conductance, g is the drifted one; Nandakumar et al. (2019).

    Attributes:
        t0: age of the device at t = 0, s.
        t_read: duration of a read, s.
        q: the curve of Q.
    """

    model: Literal["relative"]
    t0: Seconds
    t_read: Seconds
    q: Curve


class LogarithmicRead(Section):
    """Accumulated 1/f noise: sigma = k log10(g / 1 µS) sqrt(ln((t + t_read) / (2 t_read))), µS.

    Taken as 0 where g is below 1 µS, and for t below t_read (ours: the formula has no value
    there). The form is that of aihwkit's `ReRamCMONoiseModel`.

    Attributes:
        unit: always "uS".
        k: the factor, µS.
        t_read: duration of a read, s.
    """

    model: Literal["logarithmic"]
    unit: Literal["uS"]
    k: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)]
    t_read: Seconds


Read = Annotated[RelativeRead | LogarithmicRead, Field(discriminator="model")]


class DieToDie(Section):
    """What differs from chip to chip, as relative standard deviations.

    A chip instance draws two factors, each N(1, spread^2) and not below 0: one multiplies the
    card's means of change (drift exponent, relaxation, shift), the other all its spreads
    (programming, drift, read noise). Within the chip the card's own spreads go on top.

    Attributes:
        mean: standard deviation of the factor of the means.
        spread: standard deviation of the factor of the spreads.
    """

    mean: Fraction = 0.0
    spread: Fraction = 0.0


class Stuck(Section):
    """Devices that hold one conductance whatever is programmed and for all times.

    Attributes:
        off: fraction of the devices stuck at g_min.
        on: fraction of the devices stuck at g_max.
    """

    off: Fraction = 0.0
    on: Fraction = 0.0

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "Stuck":
        if self.off + self.on > 1:
            raise ValueError(
                f"has off + on = {self.off + self.on:g}: together they should be at most 1"
            )
        return self


class Converters(Section):
    """The converters around a tile. A part that is absent is exact.

    Attributes:
        dac_bits: resolution of the inputs.
        adc_bits: resolution of the outputs.
        output_noise: standard deviation of the output noise, in units of full-scale input times
            largest weight (aihwkit's `out_noise`).
        output_range: largest output, in the same units (aihwkit's `out_bound`).
        input_scaling: "abs_max" scales every input vector to the full scale, "constant" is a
            scale fixed beforehand, "none" is no scaling.
        bound_management: "iterative" halves the inputs and reads again while an output is
            clipped, "none" leaves it clipped.
    """

    dac_bits: Bits | None = None
    adc_bits: Bits | None = None
    output_noise: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    output_range: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    input_scaling: Literal["abs_max", "constant", "none"] = "none"
    bound_management: Literal["iterative", "none"] = "none"

    @model_validator(mode="after")
    def _adc_needs_range(self) -> "Converters":
        if self.adc_bits is not None and self.output_range is None:
            raise ValueError("has adc_bits but no output_range: give the range that the bits span")
        return self


class Circuit(Section):
    """The electronics between cells and converters; simulated by aihwkit's own tiles alone.

    Attributes:
        wire_resistance: of the wire from one cell of a bit line to the next, Ohm, which makes the
            cells far from the read-out count for less (I-R drop).
        nonlinearity: n of the S-shaped curve y / (1 + n |y| / output_range) that a bit line's
            current follows (aihwkit's `out_nonlinearity`).
        nonlinearity_spread: standard deviation of n among the bit lines, relative to n.
    """

    wire_resistance: Resistance | None = None
    nonlinearity: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    nonlinearity_spread: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0


class TileSize(Section):
    """The size of one crossbar tile, in weights.

    Attributes:
        rows: inputs.
        columns: outputs.
    """

    rows: Count
    columns: Count
