"""StochGRASP layers: modulated layers whose scales and shifts are Gaussians."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from analog_grasp.adapters.config import SIGMA_RANGE, GraspConfig, StochGraspConfig
from analog_grasp.adapters.frozen import dense_weight
from analog_grasp.adapters.layer import GraspLinear, modulated


class StochGraspLinear(GraspLinear):
    """A GRASP layer in which every scale and shift is a Gaussian.

    ``s_i ~ N(mu_s[g(i)], sigma_s[g(i)]^2)`` and ``b_i ~ N(mu_b[g(i)], sigma_b[g(i)]^2)`` for input
    feature i in group g(i). Learned are the means mu and the logarithm of each standard deviation
    relative to the layer's largest mean of its kind, so that sigma is above 0 and comparable with
    the relative noise that a device card states.

    In training every example (the first axis of the input) draws its own samples; see ``sampling``
    in `StochGraspConfig`. In evaluation the means are used, unless `sample_in_eval` is set.

    ``"weight"`` draws every cross-point of the folded weight once per example: the tokens of one
    example see the same error. ``"token"`` draws it for every token through the exact mean and
    variance of the output, the local reparameterisation, which Kingma et al. derive for one input
    vector per example; only there do the two agree.

    With ``"feature"`` and ``"group"`` the gradient of a standard deviation is sigma times the mean
    over the examples of the squared gradient of their sample, by which Khan et al. estimate the
    curvature; that of reparameterisation is mostly noise. The loss must be a mean over the examples
    times `loss_scale`.

    Raises:
        ValueError: As `GraspLinear`; and from `forward`, if ``"weight"`` or ``"token"`` sampling
            finds no digital weight in the base layer, as on a deployed model.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (StochGRASP); Kingma, Salimans and Welling,
        NeurIPS 2015, equation 6 (local reparameterisation); Khan et al., ICML 2018, arXiv
        1806.04854 (gradient of standard deviations).

    Example:
        >>> layer = StochGraspLinear(nn.Linear(6, 2), "default", StochGraspConfig(groups=3))
        >>> layer.sigmas("default")[0].shape
        torch.Size([3])
    """

    adapter_layer_names = (
        "stochgrasp_scale",
        "stochgrasp_shift",
        "stochgrasp_scale_log_sigma",
        "stochgrasp_shift_log_sigma",
    )
    other_param_names = ("group_of", "form", "sampling")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: StochGraspConfig) -> None:
        self.sampling: dict[str, str] = {}
        self.sample_in_eval = False
        self.loss_scale: float | Tensor = 1.0
        super().__init__(base_layer, adapter_name, config)

    def update_layer(self, adapter_name: str, config: GraspConfig) -> None:
        """Add an adapter: means at the identity, standard deviations at ``config.init_sigma``."""
        assert isinstance(config, StochGraspConfig)
        self.sampling[adapter_name] = config.sampling
        groups = config.groups_of(self.in_features)
        for name in self.adapter_layer_names[2 : 4 if config.learn_shift else 3]:
            start = torch.full((groups,), float(config.init_sigma)).log()
            getattr(self, name)[adapter_name] = nn.Parameter(start)
        super().update_layer(adapter_name, config)

    def relative_sigmas(self, adapter_name: str) -> tuple[Tensor, ...]:
        """Return the learned standard deviations relative to the largest mean of their kind.

        Returns:
            Those of the scales and, where shifts are learned, of the shifts; each ``(K,)``.
        """
        kinds = (getattr(self, name) for name in self.adapter_layer_names[2:])
        return tuple(_bounded_exp(kind[adapter_name]) for kind in kinds if adapter_name in kind)

    def sigmas(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return the standard deviations of scales and of shifts, each ``(K,)``, in their units."""
        means = self.means(adapter_name)
        scale, *shift = (
            # The largest mean sets the mapping, as on a device: it is a constant for the gradient.
            sigma * mean.detach().abs().max()
            for sigma, mean in zip(self.relative_sigmas(adapter_name), means, strict=False)
        )
        return scale, shift[0] if shift else torch.zeros_like(scale)

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if not (self.training or self.sample_in_eval):
            return super()._adapted(x, names, *args, **kwargs)
        *first, last = names
        for name in first:
            x = self._sampled_input(x, name)
        if self.sampling[last] in ("weight", "token"):
            return self._sampled_output(x, last, *args, **kwargs)
        return self.base_layer(self._sampled_input(x, last), *args, **kwargs)

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if self.sample_in_eval:
            raise ValueError("adapter_names cannot be combined with sampling in evaluation.")
        return super()._mixed(x, adapter_names, *args, **kwargs)

    def _sampled_input(self, x: Tensor, name: str) -> Tensor:
        by_feature = self.sampling[name] != "group"
        scale, shift = (
            self._draw(x, mean, sigma, self.group_of[name], by_feature)
            for mean, sigma in zip(self.means(name), self.sigmas(name), strict=True)
        )
        return modulated(x, *self._factor_and_offset(name, scale, shift))

    def _draw(
        self, x: Tensor, mean: Tensor, sigma: Tensor, group: Tensor, by_feature: bool
    ) -> Tensor:
        """Return a sample per example: ``(B, 1, ..., D)`` for an input ``(B, ..., D)``."""
        examples = (x.shape[0],) if x.dim() > 1 else ()
        between = (1,) * max(x.dim() - 2, 0)
        if by_feature:
            mean, sigma = mean[group], sigma[group]
        noise = torch.randn(
            *examples, *between, mean.shape[0], device=mean.device, dtype=mean.dtype
        )
        sample = _Sample.apply(mean, sigma, noise, self)
        return sample if by_feature else sample[..., group]

    def _sampled_output(self, x: Tensor, name: str, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output under a sample of every cross-point of the folded weight."""
        scale, shift = self.modulation([name])
        weight = dense_weight(self.get_base_layer()).to(scale.dtype)
        sigma_scale, sigma_shift = (sigma[self.group_of[name]] for sigma in self.sigmas(name))
        mean = self.base_layer(modulated(x, scale, shift), *args, **kwargs)
        scaled = x.to(scale.dtype) * sigma_scale
        one_vector = x.dim() < 3 or x[0].numel() == self.in_features
        if one_vector or self.sampling[name] == "token":
            std = _root((scaled.square() + sigma_shift.square()) @ weight.square().T)
            return mean + (std * torch.randn_like(std)).to(mean.dtype)
        seed = int(torch.randint(2**62, ()))
        noise = _CrossPointNoise.apply(scaled.flatten(1, -2), weight, seed).view(mean.shape)
        # The shifts' errors add up to one Gaussian per output, the same for every token.
        std = _root(weight.square() @ sigma_shift.square())
        shape = (len(x), *(1,) * (x.dim() - 2), self.out_features)
        noise = noise + std * torch.randn(shape, device=std.device, dtype=std.dtype)
        return mean + noise.to(mean.dtype)


class _Sample(torch.autograd.Function):
    """Samples ``mean + sigma noise``, one per example; see `StochGraspLinear` for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, sigma: Tensor, noise: Tensor, layer: StochGraspLinear
    ) -> Tensor:
        ctx.save_for_backward(sigma)
        ctx.layer = layer
        return torch.addcmul(mean, sigma, noise)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (sigma,), (gradient,) = ctx.saved_tensors, gradients
        examples = len(gradient) if gradient.dim() > 1 else 1
        curvature = examples / ctx.layer.loss_scale * gradient.square().sum_to_size(sigma.shape)
        return gradient.sum_to_size(sigma.shape), sigma * curvature, None, None


class _CrossPointNoise(torch.autograd.Function):
    """``n_et = (W * E_e) u_et`` for example e and token t, ``E_e ~ N(0, 1)`` of shape (D_out, D).

    E_e is drawn again in the backward pass, so that one sample of the matrix is held at a time.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, seed: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.seed = seed
        samples = _samples(weight, seed, len(u))
        with torch.autocast(u.device.type, enabled=False):
            return torch.stack([row @ sample.T for row, sample in zip(u, samples, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)
        samples = _samples(weight, ctx.seed, len(gradient))
        rows = [row @ sample for row, sample in zip(gradient, samples, strict=True)]
        return torch.stack(rows), None, None


def _samples(weight: Tensor, seed: int, count: int) -> Iterator[Tensor]:
    generator = torch.Generator(weight.device).manual_seed(seed)
    for _ in range(count):
        noise = torch.randn(
            weight.shape, generator=generator, device=weight.device, dtype=weight.dtype
        )
        yield weight * noise


def _bounded_exp(log_sigma: Tensor) -> Tensor:
    """Return the exponential within `SIGMA_RANGE`; the gradient leads back from beyond it."""
    low, high = (math.log(limit) for limit in SIGMA_RANGE)
    fixed = log_sigma.detach()
    return (fixed.clamp(low, high) + (log_sigma - fixed)).exp()


def _root(variance: Tensor) -> Tensor:
    # The square root has no slope at 0, where a layer's input and shifts are all 0.
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
