"""Conversion of weights to conductances and back, by a card's mapping."""

import math

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from torch import Tensor

from analog_grasp.devices.schema import ConductanceRange

# For a tile of zeros, as in aihwkit's converters.
_SMALLEST_RANGE = 1e-7


class CardConductanceConverter(BaseConductanceConverter):
    """Converter of weights to conductances and back; see `ConductanceRange` for the mappings.

    Args:
        conductance: The card's section.

    Example:
        >>> import torch
        >>> section = ConductanceRange(g_min="0 uS", g_max="25 uS", mapping="pair")
        >>> g, scale = CardConductanceConverter(section).convert_to_conductances(
        ...     torch.tensor([[1.0, -0.5]]))
        >>> g
        [tensor([[25.,  0.]]), tensor([[ 0.0000, 12.5000]])]
    """

    def __init__(self, conductance: ConductanceRange) -> None:
        self.g_min = conductance.g_min
        self.g_max = conductance.g_max
        self.mapping = conductance.mapping

    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return conductances, µS, one tensor per device of a cell, and the scale.

        Args:
            weights: Weights of any shape.

        Returns:
            The conductances; and the scale, µS per unit of weight, with the weight that maps to
            g_min.

        Raises:
            ValueError: A weight is not finite.
        """
        scale, offset = self.scale_of(weights)
        params = {"scale": scale, "offset": offset}
        if self.mapping == "single":
            return [(weights - offset).mul_(scale).add_(self.g_min)], params
        g = weights * scale
        if self.mapping == "signed":
            return [g], params
        minus = (-g).clamp_(min=0.0).add_(self.g_min)
        return [g.clamp_(min=0.0).add_(self.g_min), minus], params

    def scale_of(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale, µS per unit of weight, and the weight that maps to g_min.

        Raises:
            ValueError: A weight is not finite.
        """
        low, high = torch.aminmax(weights)
        if not math.isfinite(float(high - low)):
            raise ValueError(
                "the weights contain NaN or infinity: only finite weights can be programmed."
            )
        span = self.g_max - self.g_min
        if self.mapping == "single":
            return span / (high - low).clamp(min=_SMALLEST_RANGE), low
        scale = span / torch.maximum(high, -low).clamp(min=_SMALLEST_RANGE)
        return scale, torch.zeros_like(scale)

    def convert_back_to_weights(
        self, conductances: list[Tensor], params: dict[str, Tensor]
    ) -> Tensor:
        """Return the weights of conductances, with the scale of `convert_to_conductances`."""
        if self.mapping == "pair":
            return (conductances[0] - conductances[1]).div_(params["scale"])
        g_zero = 0.0 if self.mapping == "signed" else self.g_min
        return (conductances[0] - g_zero).div_(params["scale"]).add_(params["offset"])
