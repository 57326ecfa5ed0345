"""The noise-aware loss of StochGRASP."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor, nn

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.devices.ages import parse_age
from analog_grasp.devices.card import DeviceAtTime
from analog_grasp.devices.profile import profile
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.types import Schedule

# Share of sigma* at which its schedule begins: no standard deviation can be 0.
_FIRST_SHARE = 0.01

TargetStd = Callable[[Tensor], Tensor]
"""A function that returns sigma* of stored values, both relative to the layer's largest."""


def l2(sigma: Tensor, target: Tensor) -> Tensor:
    """Return ``((sigma - sigma*) / sigma*)^2``, elementwise.

    Example:
        >>> l2(torch.tensor(0.2), torch.tensor(0.1)).item()
        1.0
    """
    return ((sigma - target) / target).square()


def kl(sigma: Tensor, target: Tensor) -> Tensor:
    """Return ``KL(N(mu, sigma^2) || N(mu, sigma*^2))``, elementwise; 0 at sigma = sigma*.

    ``ln(sigma*/sigma) + sigma^2 / (2 sigma*^2) - 1/2``

    Example:
        >>> kl(torch.tensor(0.1), torch.tensor(0.1)).item()
        0.0
    """
    ratio = sigma / target
    return ratio.square() / 2 - 0.5 - ratio.log()


_FORMS = {"l2": l2, "kl": kl}


def target_std(noise_target: float | str | DeviceAtTime) -> TargetStd:
    """Return sigma* as a function of the stored value.

    Args:
        noise_target: A relative standard deviation, or a device at a drift time, such as
            ``"pcm-hermes-2@1d"`` or ``card.at("1d")``; ``"pcm-hermes-2@1d x1.5"`` multiplies the
            card's standard deviations.

    Raises:
        ValueError: The device or the time is unknown, there are several, or a value has no noise.

    Example:
        >>> target_std(0.1)(torch.tensor([0.5, 1.0])).tolist()
        [0.10000000149011612, 0.10000000149011612]
    """
    if not isinstance(noise_target, str | DeviceAtTime):
        return lambda value: torch.full_like(value, float(noise_target))
    age = parse_age(noise_target)
    device_profile = profile(age.card, age.first)
    if not (device_profile.std > 0).all():
        raise ValueError(
            f"noise_target is {str(noise_target)!r}, which stores some values without noise: give "
            "a device and time with noise at every value, or a number above 0."
        )
    return lambda value: torch.as_tensor(
        device_profile.std_at(value.cpu()), dtype=value.dtype, device=value.device
    )


class NoiseAwareLoss:
    """The regulariser ``lambda * R(sigma, sigma*)`` of one StochGRASP adapter.

    R is the mean over all standard deviations that the adapter learns. Under the schedule
    ``"linear"`` lambda rises from 0, and sigma* from 1 % of its value, over the training.

    Args:
        model: A model with StochGRASP layers.
        config: The adapter's configuration: ``noise_weight`` (lambda), ``noise_target`` (sigma*)
            and ``noise_loss`` (the form of R).
        adapter_name: The adapter's name in the model.
        weight_schedule: The schedule of lambda.
        target_schedule: The schedule of sigma*.

    Raises:
        ValueError: As `target_std`, or a schedule is unknown.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (noise-aware loss of StochGRASP).
    """

    def __init__(
        self,
        model: nn.Module,
        config: StochGraspConfig,
        adapter_name: str = "default",
        weight_schedule: Schedule = "constant",
        target_schedule: Schedule = "constant",
    ) -> None:
        check_schedules(weight_schedule, target_schedule)
        self._schedules = weight_schedule, target_schedule
        self.weight = config.noise_weight
        self.adapter_name = adapter_name
        self._form = _FORMS[config.noise_loss]
        self._target = target_std(config.noise_target)
        # Another adapter of the same model may modulate other layers.
        self._layers = [
            m
            for m in model.modules()
            if isinstance(m, StochGraspLinear) and adapter_name in m.group_of
        ]

    def __call__(self, progress: float = 1.0) -> Tensor:
        """Return the loss term, a scalar that is differentiable in the standard deviations.

        Args:
            progress: The share of the training's steps that are done with this one.
        """
        weight, target = (progress if each == "linear" else 1.0 for each in self._schedules)
        values: list[Tensor] = []
        sigmas: list[Tensor] = []
        for layer in self._layers:
            learned = layer.relative_sigmas(self.adapter_name)
            # An adapter without shifts has no standard deviations for them.
            for mean, _ in zip(layer.means(self.adapter_name), learned, strict=False):
                value = mean.detach()
                # All shifts are 0 when training starts, so their largest cannot be divided by.
                largest = value.abs().max().clamp_min(torch.finfo(value.dtype).tiny)
                # Signed: a device of the mapping "single" stores -1 and 1 with different noise.
                values.append(value / largest)
            sigmas += learned
        sigma = torch.cat(sigmas)
        sigma_star = (_FIRST_SHARE + (1 - _FIRST_SHARE) * target) * self._target(torch.cat(values))
        return weight * self.weight * self._form(sigma, sigma_star).mean()


def check_schedules(*schedules: str) -> None:
    """Raise ValueError if a schedule is unknown."""
    for schedule in schedules:
        if schedule not in (known := get_args(Schedule)):
            raise ValueError(unknown_name("schedule", schedule, known))
