"""Curves: functions of a conductance, by pieces, as device cards state them."""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from analog_grasp.devices.units import Conductance

# Logarithms and negative powers are taken of at least this, as aihwkit does (its _ZERO_CLIP).
SMALLEST = 1e-7
# A longer polynomial is evaluated in double precision, since its terms may cancel.
LONGEST_SINGLE = 7

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]


class Section(BaseModel):
    """Base of every part of a card: frozen, typed strictly, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Piece(Section):
    """One piece of a curve: a form, its coefficients and its limits.

    With x the curve's variable, the forms are

        polynomial   c0 + c1 x + c2 x^2 + ...
        logarithm    c0 + c1 ln x
        power        c0 x^c1
        saturation   c0 (1 - exp(-x / c1))

    Attributes:
        below: the piece holds for x below this; the last piece of a curve has none.
        form: one of the four forms.
        coefficients: c0, c1, ..., in ascending order.
        min: the piece is clipped from below at this.
        max: the piece is clipped from above at this.
    """

    below: Number | None = None
    form: Literal["polynomial", "logarithm", "power", "saturation"]
    coefficients: Annotated[tuple[Number, ...], Field(strict=False, min_length=1, max_length=16)]
    min: Number | None = None
    max: Number | None = None

    @field_validator("coefficients")
    @classmethod
    def _count(cls, value: tuple[float, ...], info: Any) -> tuple[float, ...]:
        form = info.data.get("form")
        if form in ("logarithm", "power", "saturation") and len(value) != 2:
            raise ValueError(f"has {len(value)} numbers: a {form} has 2")
        if form == "saturation" and value[1] <= 0:
            raise ValueError(f"has the scale {value[1]:g}: it should be above 0")
        if form == "power" and abs(value[1]) > 4:
            raise ValueError(f"has the exponent {value[1]:g}: it should lie between -4 and 4")
        return value

    @field_validator("max")
    @classmethod
    def _order(cls, value: float | None, info: Any) -> float | None:
        smallest = info.data.get("min")
        if value is not None and smallest is not None and value < smallest:
            raise ValueError(f"is {value:g}, below min = {smallest:g}: it should be above")
        return value

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate the piece at `x`, of any shape; the result is a new tensor of that shape."""
        y = self._formula(x)
        if self.min is not None or self.max is not None:
            y.clamp_(self.min, self.max)
        return y

    def scaled(self, factor: float) -> Self:
        """The piece with its values multiplied by `factor`, which is not negative."""
        c = self.coefficients
        # The second number of the two other forms is an exponent or a scale of x.
        count = len(c) if self.form in ("polynomial", "logarithm") else 1
        return self.model_copy(
            update={
                "coefficients": (*(factor * value for value in c[:count]), *c[count:]),
                "min": None if self.min is None else factor * self.min,
                "max": None if self.max is None else factor * self.max,
            }
        )

    def _formula(self, x: Tensor) -> Tensor:
        c = self.coefficients
        if self.form == "logarithm":
            return x.clamp(min=SMALLEST).log_().mul_(c[1]).add_(c[0])
        if self.form == "power":
            return x.clamp(min=SMALLEST).pow_(c[1]).mul_(c[0])
        if self.form == "saturation":
            return x.div(-c[1]).expm1_().mul_(-c[0])
        if len(c) > LONGEST_SINGLE and x.dtype != torch.float64:
            return self._formula(x.double()).to(x.dtype)
        y = torch.full_like(x, c[-1])
        for coefficient in reversed(c[:-1]):
            torch.addcmul(x.new_tensor(coefficient), y, x, out=y)
        return y


class Curve(Section):
    """A function of a conductance, in one piece or several.

    A card writes a curve of one piece without naming the piece: `variable`, `form`,
    `coefficients` and, where needed, `min` and `max`. A curve of several has `pieces`, each but
    the last with `below`.

    Attributes:
        variable: "u" for the conductance relative to the card's g_max, "g" for µS.
        pieces: the pieces, by ascending `below`.

    Example:
        >>> import torch
        >>> curve = Curve.model_validate(
        ...     {"variable": "u", "form": "polynomial", "coefficients": [1, 0, 2]})
        >>> curve.at(torch.tensor([5.0]), g_max=10.0)
        tensor([1.5000])
    """

    variable: Literal["u", "g"]
    pieces: Annotated[tuple[Piece, ...], Field(strict=False, min_length=1, max_length=16)]

    @model_validator(mode="before")
    @classmethod
    def _one_piece(cls, data: Any) -> Any:
        """Wrap the keys of a curve written without pieces into its only piece."""
        if not isinstance(data, dict) or "pieces" in data:
            return data
        own = {key: value for key, value in data.items() if key in Piece.model_fields}
        rest = {key: value for key, value in data.items() if key not in own}
        return {**rest, "pieces": [own]}

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
        """The curve with its values multiplied by `factor`, which is not negative."""
        return self.model_copy(
            update={"pieces": tuple(piece.scaled(factor) for piece in self.pieces)}
        )

    def at(self, g: Tensor, g_max: float) -> Tensor:
        """Evaluate the curve.

        Args:
            g: conductances, µS, of any shape; for "u" their magnitude counts.
            g_max: the card's largest conductance, µS.

        Returns:
            A new tensor of the shape of `g`.
        """
        x = g.abs().div_(g_max) if self.variable == "u" else g
        y = self.pieces[-1](x)
        for piece in reversed(self.pieces):
            if piece.below is not None:
                torch.where(x < piece.below, piece(x), y, out=y)
        return y


class SpreadCurve(Curve):
    """A curve whose value is a standard deviation of the conductance, µS.

    Attributes:
        unit: always "uS"; stated so that a reader of the card need not guess.
        reference_g_max: the g_max for which the coefficients were fitted, µS. The spread scales
            with g_max / reference_g_max, as in aihwkit's `prog_coeff_g_max_reference`. Absent:
            no scaling.
    """

    unit: Literal["uS"]
    reference_g_max: Conductance | None = None

    def at(self, g: Tensor, g_max: float) -> Tensor:
        """Evaluate the spread, µS, at the conductances `g`, µS; never below 0."""
        spread = super().at(g, g_max)
        if self.reference_g_max is not None:
            spread.mul_(g_max / self.reference_g_max)
        return spread.clamp_(min=0.0)

    def constant(self, g_max: float) -> float | None:
        """The spread, µS, where it is the same at every conductance; else None."""
        first, *others = self.pieces
        if others or first.form != "polynomial" or len(first.coefficients) > 1:
            return None
        return float(self.at(torch.zeros(1, dtype=torch.float64), g_max))


class ShiftCurve(Curve):
    """A curve whose value is a change of the mean conductance, µS.

    Attributes:
        unit: always "uS".
    """

    unit: Literal["uS"]
