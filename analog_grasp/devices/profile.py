"""The target noise profile: what a device makes of a stored value at a drift time."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.noise_model import CardNoiseModel
from analog_grasp.utils.time import parse_time

_POINTS = 101
# 16,384 devices a point give the spread a standard error of 0.6 %.
_SAMPLES = 16_384
_SEED = 0


@dataclass(frozen=True, eq=False)
class Profile:
    """Mean and spread of what is read back, for stored values relative to the largest, in [-1, 1].

    Attributes:
        card: name of the card.
        time: time since programming, s.
        values: stored values, ascending and evenly spaced from -1 to 1, of shape (n,).
        mean: mean of what is read back for each, in the same units, of shape (n,).
        std: its standard deviation, of shape (n,).
    """

    card: str
    time: float
    values: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def mean_at[T: (Tensor, NDArray[np.float64])](self, v: T) -> T:
        """The mean at stored values `v`, of any shape; linear between the profile's points.

        Values beyond -1 or 1 count as -1 or 1. A tensor gives a tensor on the same device, a
        constant without gradient.
        """
        return self._interpolated(self.mean, v)

    def std_at[T: (Tensor, NDArray[np.float64])](self, v: T) -> T:
        """The standard deviation at stored values `v`; see `mean_at`."""
        return self._interpolated(self.std, v)

    def _interpolated[T: (Tensor, NDArray[np.float64])](
        self, table: NDArray[np.float64], v: T
    ) -> T:
        if isinstance(v, Tensor):
            return _interpolate_tensor(table, v)
        return np.interp(v, self.values, table)


def profile(card: DeviceCard, time: float | str) -> Profile:
    """The target noise profile of a card at a drift time.

    It is the mean and spread over a seeded sample of the card's own `CardNoiseModel`, so it
    includes programming noise, drift, stuck devices, accumulated read noise and the short-term
    noise of one read, and is the same at every call. It is that of the nominal chip: what differs
    from die to die, alike for all devices of a chip, is no part of it. With power-law drift the
    mean falls with time; raising it again is the drift compensation of a tile, no part either.

    Args:
        card: the device.
        time: time since programming: seconds, or text such as "1d".

    Returns:
        The profile; calls with the same card and time share one.

    Raises:
        ValueError: if the time cannot be read, is negative or not finite.

    Example:
        >>> import numpy as np
        >>> half = profile(DeviceCard.load("gaussian:0.1"), "0s").std_at(np.array([0.5]))
        >>> bool(abs(half[0] - 0.1) < 0.003)
        True
    """
    return _sampled(card, parse_time(time))


@functools.lru_cache(maxsize=64)
def _sampled(card: DeviceCard, time: float) -> Profile:
    values = np.linspace(-1.0, 1.0, _POINTS)
    # The grid holds -1 and 1, so the largest weight is 1 and what is read back is relative to it.
    weights = torch.from_numpy(values).float().repeat(_SAMPLES, 1)
    each_read = torch.empty_like(weights)
    nominal = card.model_copy(update={"die_to_die": None})
    read = CardNoiseModel(nominal, _SEED).read_weights(weights, time, variance_out=each_read)
    var, mean = torch.var_mean(read.double(), dim=0)
    if torch.equal(read, weights):
        # The variance of equal numbers is only zero up to rounding.
        var, mean = torch.zeros_like(var), torch.from_numpy(values)
    std = (var + each_read.double().mean(dim=0)).sqrt()
    arrays = (values, mean.numpy(), std.numpy())
    for array in arrays:
        # Shared by all who ask for this profile.
        array.flags.writeable = False
    return Profile(card.name, time, *arrays)


@torch.no_grad()
def _interpolate_tensor(table: NDArray[np.float64], v: Tensor) -> Tensor:
    points = torch.tensor(table, dtype=v.dtype, device=v.device)
    position = v.clamp(-1.0, 1.0).add(1.0).mul((len(table) - 1) / 2)
    below = position.long().clamp(max=len(table) - 2)
    return torch.lerp(points[below], points[below + 1], position - below)
