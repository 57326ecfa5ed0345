"""Programming of weights: their mapping to conductances, and program-and-verify.

The model of program-and-verify (choice of this project): every pulse draws the conductance again
from a normal distribution about the target, of standard deviation s, until it is within the
tolerance t. A pulse is accepted with the probability p = 2 Phi(t / s) - 1, so that 1 / p pulses are
needed on average. The published pair of tolerance and pulses gives s. The accepted error is a
normal distribution truncated at t; its variance is s^2 (1 - 2 a phi(a) / p) with a = t / s, close
to t^2 / 3 for small t and s^2 without verification.

The standard deviation of a card's programmed state contains the error that its published tolerance
has left, and what no verification removes, such as relaxation. A tolerance changes the variance of
the first by the ratio of the variances; the second stays, and the sum is drawn from a normal
distribution.
"""

import math

import torch
from aihwkit.inference.converter.base import BaseConductanceConverter
from scipy.stats import norm
from torch import Tensor

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.schema import ConductanceRange

# For a tile of zeros, as in aihwkit's converters.
_SMALLEST_RANGE = 1e-7
_ROOT_TAU = math.sqrt(2 * math.pi)


class CardConductanceConverter(BaseConductanceConverter):
    """Converter of weights to conductances and back; see `ConductanceRange` for the mappings.

    Args:
        conductance: The card's section.

    Example:
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
            The conductances; and the terms of `scale_of`.

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
        return self.scale_between(*torch.aminmax(weights))

    def scale_between(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return `scale_of` for the smallest and the largest weight of each of some tiles.

        Raises:
            ValueError: A weight is not finite.
        """
        if not bool((high - low).isfinite().all()):
            raise ValueError(
                "The weights contain NaN or infinity: only finite weights can be programmed."
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


class WriteTolerance:
    """The program-and-verify of a card.

    Args:
        card: A card that states how its devices were written.

    Raises:
        ValueError: The card has no section `write`.

    Attributes:
        single_std: s, the standard deviation after a single pulse, µS.

    Source:
        Pulses and tolerance: the card. Selective verification: Yan et al., SWIM, DAC 2022.

    Example:
        >>> write = WriteTolerance(DeviceCard.load("rram-wan2022"))
        >>> [round(float(n), 2) for n in write.pulses(torch.tensor([0.025, 0.1, math.inf]))]
        [8.52, 2.25, 1.0]
    """

    def __init__(self, card: DeviceCard) -> None:
        if card.write is None:
            raise ValueError(
                f"The card {card.name} states no program-and-verify (section write), on which a "
                "write tolerance rests: use a card that does, such as rram-wan2022."
            )
        self._range = card.conductance.g_max - card.conductance.g_min
        self._stated = card.write.tolerance
        self.single_std = self._stated / float(norm.ppf((1 + 1 / card.write.pulses) / 2))

    def pulses(self, tolerance: Tensor) -> Tensor:
        """Return the mean number of pulses per device.

        Args:
            tolerance: Half widths of the accepted range, above 0, in units of the conductance
                range, which is the largest weight of a column; infinite without verification.
        """
        return 1 / self._accepted(tolerance.double() * self._range)

    def std(self, programmed: Tensor, tolerance: Tensor) -> Tensor:
        """Return the standard deviation of the conductance with another tolerance, µS.

        Args:
            programmed: The standard deviation with the card's own tolerance, µS.
            tolerance: As for `pulses`; broadcast to `programmed`.
        """
        stated = self._variance(torch.tensor(self._stated, dtype=torch.float64))
        variance = programmed.double().square()
        # Where the card's error is smaller than its tolerance leaves, all of it is that of writing.
        written = variance.clamp(max=float(stated))
        new = self._variance(tolerance.to(programmed.device).double() * self._range) / stated
        return (variance - written + written * new).sqrt_().to(programmed.dtype)

    def _accepted(self, half_width: Tensor) -> Tensor:
        """Return the probability that a pulse is accepted."""
        return torch.erf(half_width / (self.single_std * math.sqrt(2)))

    def _variance(self, half_width: Tensor) -> Tensor:
        """Return the variance of accepted conductances, µS^2."""
        a = half_width / self.single_std
        density = (-0.5 * a.square()).exp() / _ROOT_TAU
        # a phi(a) is 0 at infinity, where the product is not defined.
        edge = torch.where(a.isinf(), 0.0, a * density)
        return self.single_std**2 * (1 - 2 * edge / self._accepted(half_width)).clamp_(min=0.0)
