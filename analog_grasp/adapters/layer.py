"""Modulated layers: frozen projections whose input features share K scale-and-shift pairs.

Those of StochGRASP have a Gaussian for each scale and shift.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.base import AdapterLayer
from analog_grasp.adapters.config import (
    SIGMA_RANGE,
    Form,
    GraspConfig,
    Grouping,
    StochGraspConfig,
)
from analog_grasp.adapters.frozen import FrozenState, dense_weight, is_quantised
from analog_grasp.kernels.rng import normal
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.seed import derive_seed


def group_index(
    features: int, groups: int, grouping: Grouping = "contiguous", seed: int = 0
) -> Tensor:
    """Return the map g: {0..D-1} -> {0..K-1} from input features to groups, int64, ``(D,)``.

    The sizes of two groups differ by at most one, so K need not divide D.

    Args:
        features: D, the number of input features of the layer.
        groups: K, the number of scale-and-shift pairs, from 1 to D.
        grouping: See `GraspConfig`.
        seed: The seed of a random permutation, which is a function of it and of D alone.

    Raises:
        ValueError: K is below 1 or above D, or the grouping is unknown.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (contiguous blocks of the feature axis).

    Example:
        >>> group_index(7, 3).tolist(), group_index(7, 3, "strided").tolist()
        ([0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2, 0])
    """
    if not 1 <= groups <= features:
        raise ValueError(
            f"groups is {groups}; for a layer of {features} input features it must be from 1 to "
            f"{features}."
        )
    position = torch.arange(features)
    if grouping == "contiguous":
        return position * groups // features
    if grouping == "strided":
        return position % groups
    if grouping == "random":
        # Of hashes, which are the same in every version of torch that may read a saved adapter.
        order = sorted(range(features), key=lambda i: derive_seed(seed, "grouping", features, i))
        return torch.tensor(order) % groups
    raise ValueError(unknown_name("grouping", grouping, get_args(Grouping)))


class GraspLinear(AdapterLayer):
    """A frozen projection ``y = W x' + c`` of a modulated input ``x'_i = s[g(i)] x_i + b[g(i)]``.

    The input is ``(..., D)`` and the output ``(..., D_out)``; W has shape ``(D_out, D)`` and c
    ``(D_out,)``, and both are frozen. The K scales s and K shifts b are learned; g maps each of the
    D input features to its group, see `group_index`. Under the form ``"normalize"`` the modulated
    input is ``x'_i = (x_i - b[g(i)]) / s[g(i)]``. The frozen layer is an ``nn.Linear``, a quantised
    subclass of it, or the ``Conv1D`` of GPT-2. Several adapters apply one after another.

    Raises:
        ValueError: The layer is of another type, or K is above D.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296.

    Example:
        >>> layer = GraspLinear(nn.Linear(6, 2), "default", GraspConfig(groups=3))
        >>> layer(torch.ones(4, 6)).shape
        torch.Size([4, 2])
    """

    adapter_layer_names: tuple[str, ...] = ("grasp_scale", "grasp_shift")
    other_param_names: tuple[str, ...] = ("group_of", "form")
    group_of: BufferDict

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GraspConfig) -> None:
        super().__init__(base_layer)
        base: Any = self.get_base_layer()
        if isinstance(base, nn.Linear):
            self.in_features, self.out_features = base.in_features, base.out_features
        elif isinstance(base, Conv1D):
            self.in_features, self.out_features = base.nx, base.nf
        else:
            raise ValueError(
                f"A {type(base).__name__} cannot be modulated: target_modules must name nn.Linear "
                "or transformers' Conv1D layers."
            )
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.group_of = BufferDict(persistent=False)
        self.form: dict[str, Form] = {}
        self._frozen: FrozenState | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: GraspConfig) -> None:
        """Add the parameters of an adapter at the identity: s = 1, b = 0."""
        groups = config.groups_of(self.in_features)
        self.group_of[adapter_name] = group_index(
            self.in_features, groups, config.grouping, config.grouping_seed
        )
        self.form[adapter_name] = config.form
        scale, shift = self.adapter_layer_names[:2]
        getattr(self, scale)[adapter_name] = nn.Parameter(torch.ones(groups))
        if config.learn_shift:
            getattr(self, shift)[adapter_name] = nn.Parameter(torch.zeros(groups))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete the parameters of an adapter, and every trace of its name."""
        super().delete_adapter(adapter_name)
        self.group_of._non_persistent_buffers_set.discard(adapter_name)

    def means(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return the learned scales s and shifts b of an adapter, each of shape ``(K,)``."""
        scales, shifts = (getattr(self, name) for name in self.adapter_layer_names[:2])
        scale = cast(Tensor, scales[adapter_name])
        return scale, shifts[adapter_name] if adapter_name in shifts else torch.zeros_like(scale)

    def modulation(self, adapter_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the factor and the offset of every feature under adapters applied in order.

        Each has the shape ``(D,)``: s and b, or 1/s and -b/s under the form ``"normalize"``.
        """
        (scale, shift), *others = (
            self._factor_and_offset(n, *(mean[self.group_of[n]] for mean in self.means(n)))
            for n in adapter_names
        )
        for next_scale, next_shift in others:
            scale, shift = scale * next_scale, shift * next_scale + next_shift
        return scale, shift

    def _factor_and_offset(self, name: str, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return (scale, shift) if self.form[name] == "affine" else (1 / scale, -shift / scale)

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        scale, shift = self.modulation(names)
        return self.base_layer(modulated(x, scale, shift), *args, **kwargs)

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        found = {
            name: torch.stack(self.modulation([name]))
            for name in set(adapter_names)
            if self._has(name)
        }
        if not found:
            return self.base_layer(x, *args, **kwargs)
        scales = next(iter(found.values()))[0]
        identity = torch.stack([torch.ones_like(scales), torch.zeros_like(scales)])
        rows = torch.stack([found.get(name, identity) for name in adapter_names], dim=1)
        scale, shift = rows.view(2, len(adapter_names), *(1,) * (x.dim() - 2), self.in_features)
        return self.base_layer(modulated(x, scale, shift), *args, **kwargs)

    def _fold(self, names: list[str], safe: bool) -> None:
        """Replace W by W diag(s) and c by c + W b."""
        base: Any = self.get_base_layer()
        if is_quantised(base):
            raise ValueError(
                f"An adapter cannot be merged into the quantised weights of a "
                f"{type(base).__name__}: dequantise the base model first, or keep it unmerged."
            )
        if isinstance(self.base_layer, BaseTunerLayer) and not self.base_layer.merged:
            raise ValueError(
                f"The {type(self.base_layer).__name__} below a {type(self).__name__} is not "
                "merged: merge its adapters first."
            )
        weight, bias = base.weight.data, None if base.bias is None else base.bias.data
        scale, shift = self.modulation(names)
        wide = weight.to(scale.dtype)
        along_inputs = scale[:, None] if isinstance(base, Conv1D) else scale
        folded = wide * along_inputs
        offset = shift @ wide if isinstance(base, Conv1D) else wide @ shift
        folded_bias = offset if bias is None else bias.to(scale.dtype) + offset
        folded, folded_bias = folded.to(weight.dtype), folded_bias.to(weight.dtype)
        if safe and not (folded.isfinite().all() and folded_bias.isfinite().all()):
            raise ValueError(
                f"The adapter {names} cannot be merged: the folded weight or bias is not finite."
            )
        self._frozen = FrozenState(weight, folded, along_inputs, bias)
        base.weight.data = folded
        if bias is not None:
            base.bias.data = folded_bias
        elif any(name in getattr(self, self.adapter_layer_names[1]) for name in names):
            base.bias = nn.Parameter(folded_bias, requires_grad=False)

    def _unfold(self) -> None:
        assert self._frozen is not None
        base: Any = self.get_base_layer()
        base.weight.data = self._frozen.weight(base.weight.data)
        if self._frozen.bias is None:
            base.bias = None
        else:
            base.bias.data = self._frozen.bias.to(base.bias)
        self._frozen = None


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale x + shift`` in the type of x, computed in the type of the parameters."""
    return torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype)


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
        # Examples of a batch where known, as some models flatten them with their tokens.
        self.examples: int | None = None
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
        count = self.examples or len(x)
        if x.dim() == 2 and len(x) > count and len(x) % count == 0:
            # All tokens of an example have its samples.
            y = self._adapted(x.unflatten(0, (count, -1)), names, *args, **kwargs)
            return y.flatten(0, 1)
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
        scale, shift = (
            self._draw(x, name, mean, sigma)
            for mean, sigma in zip(self.means(name), self.sigmas(name), strict=True)
        )
        return modulated(x, *self._factor_and_offset(name, scale, shift))

    # A compiled backward pass would keep the `loss_scale` of the first one.
    @torch.compiler.disable
    def _draw(self, x: Tensor, name: str, mean: Tensor, sigma: Tensor) -> Tensor:
        """Return a sample per example: ``(B, 1, ..., D)`` for an input ``(B, ..., D)``."""
        group, by_feature = self.group_of[name], self.sampling[name] != "group"
        if by_feature:
            mean, sigma = mean[group], sigma[group]
        shape = (len(x), *(1,) * (x.dim() - 2)) if x.dim() > 1 else ()
        noise = torch.randn(*shape, len(mean), device=mean.device, dtype=mean.dtype)
        sample = _Sample.apply(mean, sigma, noise, self)
        return sample if by_feature else sample[..., group]

    def _sampled_output(self, x: Tensor, name: str, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output under a sample of every cross-point of the folded weight."""
        mean = super()._adapted(x, [name], *args, **kwargs)
        # Variances can be out of the range of float16.
        with torch.autocast(x.device.type, enabled=False):
            return mean + self._output_noise(x, name).to(mean.dtype)

    def _output_noise(self, x: Tensor, name: str) -> Tensor:
        sigma_scale, sigma_shift = (sigma[self.group_of[name]] for sigma in self.sigmas(name))
        weight = dense_weight(self.get_base_layer()).to(sigma_scale.dtype)
        scaled = x.to(sigma_scale.dtype) * sigma_scale
        # Also of no vectors: an empty batch has no samples to stack.
        one_vector = x.dim() < 3 or x.numel() <= len(x) * self.in_features
        if one_vector or self.sampling[name] == "token":
            std = _root((scaled.square() + sigma_shift.square()) @ weight.square().T)
            return std * torch.randn_like(std)
        seed = int(torch.randint(2**62, ()))
        noise = _CrossPointNoise.apply(scaled.flatten(1, -2), weight, seed)
        noise = noise.view(*x.shape[:-1], self.out_features)
        # The shifts' errors add up to one Gaussian per output, the same for every token.
        std = _root(weight.square() @ sigma_shift.square())
        shape = (len(x), *(1,) * (x.dim() - 2), self.out_features)
        return noise + std * torch.randn(shape, device=std.device, dtype=std.dtype)


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
        if gradient.dim() == 2:
            examples = ctx.layer.examples or examples
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
    for example in range(count):
        key = seed + example * len(weight)
        yield weight * normal(key, weight.shape, device=weight.device, dtype=weight.dtype)


def _bounded_exp(log_sigma: Tensor) -> Tensor:
    """Return the exponential within `SIGMA_RANGE`; the gradient leads back from beyond it."""
    low, high = (math.log(limit) for limit in SIGMA_RANGE)
    fixed = log_sigma.detach()
    return (fixed.clamp(low, high) + (log_sigma - fixed)).exp()


def _root(variance: Tensor) -> Tensor:
    # The square root has no slope at 0, where a layer's input and shifts are all 0.
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
