"""Target noise profiles: mean and standard deviation of stored values at a drift time."""

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
# 16,384 devices per point give the standard deviation a standard error of 0.6 %.
_SAMPLES = 16_384
_SEED = 0


@dataclass(frozen=True, eq=False)
class Profile:
    """Mean and standard deviation of the values read back, for stored values in [-1, 1].

    Values are relative to the largest stored one. The range holds both -1 and 1, so that the
    mapping "single" takes -1 to g_min and 1 to g_max.

    Attributes:
        card: Name of the card.
        time: Time since programming, s.
        values: Stored values, ascending and evenly spaced from -1 to 1, ``(n,)``.
        mean, std: Mean and standard deviation of the values read back, ``(n,)``.
    """

    card: str
    time: float
    values: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def mean_at[T: (Tensor, NDArray[np.float64])](self, v: T) -> T:
        """Return the mean at signed stored values `v`, of any shape, by linear interpolation.

        Values outside [-1, 1] count as -1 or 1. A tensor gives a tensor without gradient.
        """
        return self._interpolated(self.mean, v)

    def std_at[T: (Tensor, NDArray[np.float64])](self, v: T) -> T:
        """Return the standard deviation at signed stored values `v`; see `mean_at`."""
        return self._interpolated(self.std, v)

    @torch.no_grad()
    def _interpolated[T: (Tensor, NDArray[np.float64])](
        self, table: NDArray[np.float64], v: T
    ) -> T:
        if not isinstance(v, Tensor):
            return np.interp(v, self.values, table)
        points = torch.tensor(table, dtype=v.dtype, device=v.device)
        position = v.clamp(-1.0, 1.0).add(1.0).mul((len(table) - 1) / 2)
        below = position.nan_to_num().long().clamp(max=len(table) - 2)
        return torch.lerp(points[below], points[below + 1], position - below)


def profile(card: DeviceCard, time: float | str) -> Profile:
    """Return the target noise profile of a card at a time since programming.

    Mean and standard deviation of a seeded sample of the card's `CardNoiseModel`: programming
    noise, drift, stuck devices, accumulated read noise and the short-term noise of one read. The
    profile is that of the nominal chip, without variation from die to die, and without drift
    compensation: with power-law drift the mean decreases with time.

    Args:
        card: The device.
        time: Seconds, or text such as "1d".

    Returns:
        The profile; calls with the same card and time share one.

    Raises:
        ValueError: The time is unreadable, negative or not finite.

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
    # The grid contains -1 and 1, so that the largest weight is 1.
    weights = torch.from_numpy(values).float().repeat(_SAMPLES, 1)
    each_read = torch.empty_like(weights)
    nominal = card.model_copy(update={"die_to_die": None})
    read = CardNoiseModel(nominal, _SEED).read_weights(weights, time, variance_out=each_read)
    var, mean = torch.var_mean(read.double(), dim=0)
    if torch.equal(read, weights):
        # The computed variance of equal values is zero only up to rounding.
        var, mean = torch.zeros_like(var), torch.from_numpy(values)
    std = (var + each_read.double().mean(dim=0)).sqrt()
    arrays = (values, mean.numpy(), std.numpy())
    for array in arrays:
        # The cached profile is shared.
        array.flags.writeable = False
    return Profile(card.name, time, *arrays)
