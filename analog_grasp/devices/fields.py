"""Fields of cards and cost models: quantities with units, bounded numbers, and curves."""

import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from analog_grasp.kernels import LONGEST_SINGLE, MAX_COEFFICIENTS, SMALLEST
from analog_grasp.utils.errors import CardError, describe_problem, first_problem, key_in, shown
from analog_grasp.utils.time import UNIT_SECONDS, times_unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")
_MICROSIEMENS = {"nS": 1e-3, "uS": 1.0, "µS": 1.0, "μS": 1.0, "mS": 1e3, "S": 1e6}
_OHM = {"mOhm": 1e-3, "Ohm": 1.0, "kOhm": 1e3}
_JOULE = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1.0}
_SQUARE_MILLIMETRE = {"um2": 1e-6, "mm2": 1.0, "cm2": 100.0}


class Section(BaseModel):
    """Base of every part of a card: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    @classmethod
    def from_data(cls, data: dict[str, Any], subject: str) -> Self:
        """Return the section of data from a file.

        Raises:
            CardError: The data are invalid; the sentence begins with `subject` and names the key.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problem = first_problem(error)
            schema = cls.model_json_schema()
            parts = [schema, *schema.get("$defs", {}).values()]
            known = {key for part in parts for key in part.get("properties", ())}
            sentence = describe_problem(problem, key_in(data, problem), known)
        raise CardError(f"{subject}: {sentence}.")


def _quantity(units: Mapping[str, float], example_unit: str) -> Callable[[object], float]:
    """Return a validator that reads text with a unit, such as "25 uS", into a float."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(
                f"is {shown(value)}, which is not a quantity: write it as a number and a unit, "
                f'such as "1 {example_unit}"'
            )
        match = _QUANTITY.fullmatch(str(value))
        if match is None:
            raise ValueError(
                f'is {shown(value)}, which cannot be read: write it as in "1 {example_unit}"'
            )
        number, unit = match.groups()
        if not unit:
            raise ValueError(f'has no unit: write it as "{number[:20]} {example_unit}"')
        if unit not in units:
            known = ", ".join(name for name in units if name.isascii())
            raise ValueError(f'has the unknown unit "{unit[:20]}": use one of {known}')
        quantity = times_unit(float(number), units[unit])
        if not math.isfinite(quantity) or quantity < 0:
            raise ValueError(f"is {shown(value)}: it should be finite and not negative")
        return quantity

    return read


def _writer(unit: str) -> PlainSerializer:
    """Return a serializer that writes a float for JSON as text that is read again."""
    return PlainSerializer(lambda value: f"{value!r} {unit}", str, when_used="json-unless-none")


Conductance = Annotated[
    float, BeforeValidator(_quantity(_MICROSIEMENS, "uS")), Field(le=1e6), _writer("uS")
]
"""A conductance, µS."""

Seconds = Annotated[
    float, BeforeValidator(_quantity(UNIT_SECONDS, "s")), Field(gt=0, le=1e12), _writer("s")
]
"""A time, s, above 0."""

Resistance = Annotated[
    float, BeforeValidator(_quantity(_OHM, "Ohm")), Field(gt=0, le=1e6), _writer("Ohm")
]
"""A resistance, Ohm, above 0."""

Energy = Annotated[float, BeforeValidator(_quantity(_JOULE, "pJ")), Field(gt=0), _writer("J")]
"""An energy, J, above 0."""

Area = Annotated[
    float, BeforeValidator(_quantity(_SQUARE_MILLIMETRE, "mm2")), Field(gt=0), _writer("mm2")
]
"""An area, mm^2, above 0."""

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Pair = Annotated[tuple[Number, Number], Field(strict=False)]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Bits = Annotated[int, Field(ge=2, le=16)]
Count = Annotated[int, Field(ge=1, le=65_536)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Piece(Section):
    """One piece of a curve: a form, its coefficients or points, and its limits.

    With x the curve's variable, the forms are

        polynomial   c0 + c1 x + c2 x^2 + ...
        logarithm    c0 + c1 ln x
        power        c0 x^c1
        saturation   c0 (1 - exp(-x / c1))
        reciprocal   1 / (c0 + c1 x)
        points       linear between measured points (x, y), constant outside them

    Attributes:
        below: The piece holds for x below this value; the last piece of a curve has none.
        form: One of the six forms.
        coefficients: c0, c1, ..., in ascending order; absent for "points".
        points: The points [x, y] of the form "points", by ascending x; 2 to 10,000.
        min, max: The values at which the piece is clipped.

    Example:
        >>> import numpy as np
        >>> measured = Piece(form="points", points=[[0.0, 1.0], [10.0, 2.0]])
        >>> measured(np.array([2.5, 40.0])).tolist()
        [1.25, 2.0]
    """

    below: Number | None = None
    form: Literal["polynomial", "logarithm", "power", "saturation", "reciprocal", "points"]
    coefficients: Annotated[
        tuple[Number, ...], Field(strict=False, min_length=1, max_length=MAX_COEFFICIENTS)
    ] = ()
    points: Annotated[tuple[Pair, ...], Field(strict=False, min_length=2, max_length=10_000)] = ()
    min: Number | None = None
    max: Number | None = None

    @field_validator("coefficients")
    @classmethod
    def _count(cls, value: tuple[float, ...], info: Any) -> tuple[float, ...]:
        form = info.data.get("form")
        if form == "points":
            raise ValueError('does not belong to the form "points": give points = [[x, y], ...]')
        if form not in (None, "polynomial") and len(value) != 2:
            raise ValueError(f"has {len(value)} numbers: a {form} has 2")
        if form == "saturation" and value[1] <= 0:
            raise ValueError(f"has the scale {value[1]:g}: it should be above 0")
        if form == "power" and abs(value[1]) > 4:
            raise ValueError(f"has the exponent {value[1]:g}: it should lie between -4 and 4")
        if form == "reciprocal" and not (value[0] > 0 and value[1] >= 0):
            raise ValueError(f"is {list(value)}: a reciprocal needs c0 above 0 and c1 at least 0")
        return value

    @field_validator("points")
    @classmethod
    def _ascending(
        cls, value: tuple[tuple[float, float], ...], info: Any
    ) -> tuple[tuple[float, float], ...]:
        form = info.data.get("form")
        if form not in (None, "points"):
            raise ValueError(f'belongs to the form "points": a {form} has coefficients')
        if any(before[0] >= after[0] for before, after in itertools.pairwise(value)):
            raise ValueError("should have ascending values of x")
        return value

    @field_validator("max")
    @classmethod
    def _order(cls, value: float | None, info: Any) -> float | None:
        smallest = info.data.get("min")
        if value is not None and smallest is not None and value < smallest:
            raise ValueError(f"is {value:g}, below min = {smallest:g}: it should be above")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.coefficients and not self.points:
            needed = "points" if self.form == "points" else "coefficients"
            raise ValueError(f'has the form "{self.form}" but no {needed}: give them')
        return self

    def __call__[A: ("Tensor", NDArray[np.float64])](self, x: A) -> A:
        """Return the values at `x`, of any shape."""
        y = self._formula(x)
        if self.min is None and self.max is None:
            return y
        return namespace(x).clip(y, self.min, self.max)

    def scaled(self, factor: float) -> Self:
        """Return the piece with its values multiplied by `factor`, which is not negative."""
        c = self.coefficients
        if self.form in ("polynomial", "logarithm"):
            c = tuple(factor * value for value in c)
        elif self.form == "reciprocal":
            # Not infinite for a factor of 0: infinity times x = 0 would be NaN.
            c = tuple(value / max(factor, 1e-12) for value in c)
        elif c:
            # The second coefficient is an exponent or a scale of x.
            c = (factor * c[0], c[1])
        return self.model_copy(
            update={
                "coefficients": c,
                "points": tuple((x, factor * y) for x, y in self.points),
                "min": None if self.min is None else factor * self.min,
                "max": None if self.max is None else factor * self.max,
            }
        )

    def _formula(self, x: Any) -> Any:
        c, xp = self.coefficients, namespace(x)
        if self.form == "logarithm":
            return xp.log(xp.clip(x, SMALLEST, None)) * c[1] + c[0]
        if self.form == "power":
            return xp.clip(x, SMALLEST, None) ** c[1] * c[0]
        if self.form == "saturation":
            return xp.expm1(x / -c[1]) * -c[0]
        if self.form == "reciprocal":
            return 1.0 / (x * c[1] + c[0])
        if self.form == "points":
            return self._interpolated(x)
        if xp.__name__ == "numpy":
            return xp.polynomial.polynomial.polyval(x, c)
        y = xp.full_like(x, c[-1])
        if len(c) > LONGEST_SINGLE and x.dtype.itemsize < 8:
            return self._formula(x.double()).to(x.dtype)
        for coefficient in reversed(c[:-1]):
            # addcmul rounds once per step, as the compiled kernel does.
            y = x.new_tensor(coefficient).addcmul(y, x)
        return y

    def _interpolated(self, x: Any) -> Any:
        xp = namespace(x)
        if xp.__name__ == "numpy":
            return xp.interp(x, *xp.array(self.points).T)
        at, values = x.new_tensor(self.points, dtype=xp.float64).T.contiguous()
        wide = x.double().clamp(at[0], at[-1])
        high = xp.searchsorted(at, wide, right=True).clamp(1, len(at) - 1)
        fraction = (wide - at[high - 1]) / (at[high] - at[high - 1])
        return (values[high - 1] + fraction * (values[high] - values[high - 1])).to(x.dtype)


class Curve(Section):
    """A function of a conductance, in one piece or several.

    A card writes a curve of one piece without naming the piece: `variable`, `form`,
    `coefficients` or `points` and, if needed, `min` and `max`. A curve of several pieces has
    `pieces`, of which all but the last have `below`.

    Attributes:
        variable: "u" for the conductance relative to the card's g_max, "g" for µS.
        pieces: The pieces, by ascending `below`.

    Example:
        >>> import numpy as np
        >>> curve = Curve.model_validate(
        ...     {"variable": "u", "form": "polynomial", "coefficients": [1, 0, 2]})
        >>> curve.at(np.array([5.0]), g_max=10.0)
        array([1.5])
    """

    variable: Literal["u", "g"]
    pieces: Annotated[tuple[Piece, ...], Field(strict=False, min_length=1, max_length=16)]

    @model_validator(mode="before")
    @classmethod
    def _one_piece(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "pieces" in data:
            return data
        piece = {key: value for key, value in data.items() if key in Piece.model_fields}
        rest = {key: value for key, value in data.items() if key not in piece}
        return {**rest, "pieces": [piece]}

    @field_validator("pieces")
    @classmethod
    def _ascending(cls, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        limits = [piece.below for piece in pieces[:-1] if piece.below is not None]
        if len(limits) < len(pieces) - 1 or pieces[-1].below is not None:
            raise ValueError('should have "below" in every piece but the last')
        if limits != sorted(set(limits)):
            raise ValueError('should have ascending values of "below"')
        return pieces

    def scaled(self, factor: float) -> Self:
        """Return the curve with its values multiplied by `factor`, which is not negative."""
        pieces = tuple(piece.scaled(factor) for piece in self.pieces)
        return self.model_copy(update={"pieces": pieces})

    def at[A: ("Tensor", NDArray[np.float64])](self, g: A, g_max: float) -> A:
        """Return the values of the curve.

        Args:
            g: Conductances, µS, of any shape; for the variable "u" their magnitude counts.
            g_max: The card's largest conductance, µS.

        Returns:
            A new array or tensor of the shape of `g`.
        """
        x = abs(g) / g_max if self.variable == "u" else g
        y = self.pieces[-1](x)
        for piece in reversed(self.pieces[:-1]):
            assert piece.below is not None
            y = namespace(x).where(x < piece.below, piece(x), y)
        return y


class StdCurve(Curve):
    """A curve whose value is a standard deviation of the conductance, µS.

    Attributes:
        unit: Always "uS"; stated for readers of the card.
        reference_g_max: The g_max for which the coefficients were fitted, µS. The standard
            deviation scales with g_max / reference_g_max, as aihwkit's
            `prog_coeff_g_max_reference`. Absent: no scaling.
    """

    unit: Literal["uS"]
    reference_g_max: Annotated[Conductance, Field(gt=0)] | None = None

    def at[A: ("Tensor", NDArray[np.float64])](self, g: A, g_max: float) -> A:
        """Return the standard deviation, µS, at the conductances `g`, µS; at least 0."""
        std = super().at(g, g_max)
        if self.reference_g_max is not None:
            std = std * (g_max / self.reference_g_max)
        return namespace(g).clip(std, 0.0, None)

    def constant(self, g_max: float) -> float | None:
        """Return the standard deviation, µS, if it is the same at every conductance, else None."""
        import numpy as np

        first, *others = self.pieces
        if others or first.form != "polynomial" or len(first.coefficients) > 1:
            return None
        return float(self.at(np.zeros(1), g_max)[0])


class ShiftCurve(Curve):
    """A curve whose value is a change of the mean conductance, µS.

    Attributes:
        unit: Always "uS".
    """

    unit: Literal["uS"]


def namespace(x: Any) -> Any:
    """Return the library of `x`, numpy or torch, which is then loaded already."""
    torch = sys.modules.get("torch")
    return torch if torch and isinstance(x, torch.Tensor) else sys.modules["numpy"]
