"""The noise-aware loss: what pulls the learned spreads toward those of the hardware."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from analog_grasp.adapters.config import StochGraspConfig
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.profile import Profile
from analog_grasp.utils.time import parse_time

SpreadTarget = Callable[[Tensor], Tensor]


def l2(sigma: Tensor, target: Tensor) -> Tensor:
    """``((sigma - sigma*) / sigma*)^2``, elementwise; all shapes alike.

    Source:
        METHOD 2, form ``"l2"`` of R(sigma, sigma*).

    Example:
        >>> l2(torch.tensor(0.2), torch.tensor(0.1)).item()
        1.0
    """
    return ((sigma - target) / target).square()


def kl(sigma: Tensor, target: Tensor) -> Tensor:
    """``KL(N(mu, sigma^2) || N(mu, sigma*^2))``, elementwise; all shapes alike.

    ``ln(sigma*/sigma) + sigma^2 / (2 sigma*^2) - 1/2``, which is 0 at sigma = sigma*.

    Source:
        METHOD 2, form ``"kl"`` of R(sigma, sigma*).

    Example:
        >>> kl(torch.tensor(0.1), torch.tensor(0.1)).item()
        0.0
    """
    ratio = sigma / target
    return ratio.square() / 2 - 0.5 - ratio.log()


_FORMS = {"l2": l2, "kl": kl}


def spread_target(noise_target: float | str) -> SpreadTarget:
    """Return sigma* as a function of the stored value, both relative to the layer's largest.

    Args:
        noise_target: A number, or ``"NAME@TIME"`` for a device card at a drift time.

    Raises:
        ValueError: The text names no card or no time, or the card is without noise.

    Example:
        >>> spread_target(0.1)(torch.tensor([0.5, 1.0])).tolist()
        [0.10000000149011612, 0.10000000149011612]
    """
    if not isinstance(noise_target, str):
        return lambda value: torch.full_like(value, float(noise_target))
    card, seconds = card_at_time("noise_target", noise_target)
    profile: Profile = card.profile(seconds)
    if not (profile.std > 0).all():
        raise ValueError(
            f"noise_target is {noise_target!r}, but that device has no spread to learn: "
            "name a device with noise, or give a number."
        )
    return lambda value: torch.as_tensor(
        profile.std_at(value.cpu()), dtype=value.dtype, device=value.device
    )


def card_at_time(setting: str, text: str) -> tuple[DeviceCard, float]:
    """Read ``"NAME@TIME"``: a device card and a drift time, s.

    Args:
        setting: What the text is given for, for the error.
        text: Such as ``"pcm-hermes-2@1d"``.

    Raises:
        ValueError: The text names no card or no time.

    Example:
        >>> card_at_time("injection", "pcm-hermes-2@1d")[1]
        86400.0
    """
    name, separator, time = text.rpartition("@")
    if not separator:
        raise ValueError(f"{setting} is {text!r}: name a device and a time, as 'pcm-hermes-2@1d'.")
    return DeviceCard.load(name), parse_time(time)


class NoiseAwareLoss:
    """``lambda * R(sigma, sigma*)`` of a StochGRASP adapter, R a mean over all its sigmas.

    Args:
        model: A model with StochGRASP layers.
        config: The adapter's settings: ``noise_weight``, ``noise_target``, ``noise_loss``.
        adapter_name: Which adapter of the model.

    Raises:
        ValueError: As `spread_target`.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (noise-aware loss of StochGRASP); METHOD 2.
    """

    def __init__(
        self, model: nn.Module, config: StochGraspConfig, adapter_name: str = "default"
    ) -> None:
        self.weight = config.noise_weight
        self.adapter_name = adapter_name
        self._form = _FORMS[config.noise_loss]
        self._target = spread_target(config.noise_target)
        # Another adapter of the model may modulate further layers.
        self._layers = [
            m
            for m in model.modules()
            if isinstance(m, StochGraspLinear) and adapter_name in m.group_of
        ]

    def __call__(self) -> Tensor:
        """The loss term, a scalar with a gradient toward the learned spreads."""
        values: list[Tensor] = []
        sigmas: list[Tensor] = []
        for layer in self._layers:
            for mean in layer.means(self.adapter_name):
                size = mean.detach().abs()
                # All shifts are 0 when training starts: the largest is then no scale to divide by.
                values.append(size / size.max().clamp_min(torch.finfo(size.dtype).tiny))
            sigmas += layer.relative_sigmas(self.adapter_name)
        sigma = torch.cat(sigmas)
        return self.weight * self._form(sigma, self._target(torch.cat(values))).mean()
