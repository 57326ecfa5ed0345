"""The modulated layer: a frozen projection behind K shared scale-and-shift pairs."""

from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.grouping import group_index


class GraspLinear(nn.Module, BaseTunerLayer):
    """``y = W x' + c`` with ``x'_i = s[g(i)] x_i + b[g(i)]``, W and c frozen.

    Input ``(..., D)``, output ``(..., D_out)``; s and b hold K numbers each. Works on
    ``nn.Linear`` and on the ``Conv1D`` of GPT-2. With several active adapters the input passes
    through them in their order.

    Args:
        base_layer: The frozen projection.
        adapter_name: The name of the first adapter.
        config: The adapter's settings.

    Raises:
        ValueError: The layer is of another kind, or K is above D.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296.

    Example:
        >>> layer = GraspLinear(nn.Linear(6, 2), "default", GraspConfig(groups=3))
        >>> layer(torch.ones(4, 6)).shape
        torch.Size([4, 2])
    """

    adapter_layer_names: tuple[str, ...] = ("grasp_scale", "grasp_shift")
    other_param_names: tuple[str, ...] = ("group_of",)
    base_layer: nn.Module
    group_of: BufferDict

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GraspConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = _sizes(self.get_base_layer())
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.group_of = BufferDict(persistent=False)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # The frozen tensors while a merge stands in their place: dividing the scales out again
        # would not give the same bits, and fails where a scale is 0.
        self._frozen: tuple[Tensor, nn.Parameter | None] | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: GraspConfig) -> None:
        """Add the parameters of one more adapter, at the identity: s = 1, b = 0."""
        self.group_of[adapter_name] = group_index(self.in_features, config.groups, config.grouping)
        scale, shift = self.adapter_layer_names[:2]
        self._add(scale, adapter_name, torch.ones(config.groups))
        self._add(shift, adapter_name, torch.zeros(config.groups))
        self._finish(adapter_name, config)

    def means(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """The stored scales and shifts of an adapter, each of shape ``(K,)``."""
        scale, shift = self.adapter_layer_names[:2]
        return self._get(scale, adapter_name), self._get(shift, adapter_name)

    def modulation(self, adapter_names: list[str]) -> tuple[Tensor, Tensor]:
        """The scale and shift of every feature, each ``(D,)``, with the adapters in a row."""
        scale, shift = (
            mean[self.group_of[adapter_names[0]]] for mean in self.means(adapter_names[0])
        )
        for name in adapter_names[1:]:
            next_scale, next_shift = (mean[self.group_of[name]] for mean in self.means(name))
            scale, shift = scale * next_scale, shift * next_scale + next_shift
        return scale, shift

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the adapters into the layer: W diag(s), and c + W b in place of c.

        Args:
            safe_merge: Refuse a fold that is not finite.
            adapter_names: The adapters to fold; all the active ones if left out.

        Raises:
            ValueError: With ``safe_merge``, the folded weight or bias is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.group_of]
        if not names:
            return
        base = self.get_base_layer()
        weight, bias = cast(Tensor, base.weight).data, cast(nn.Parameter | None, base.bias)
        with torch.no_grad():
            scale, shift = self.modulation(names)
            wide = weight.to(scale.dtype)
            along_inputs = scale[:, None] if isinstance(base, Conv1D) else scale
            folded = wide * along_inputs
            offset = shift @ wide if isinstance(base, Conv1D) else wide @ shift
            folded_bias = offset if bias is None else bias.data.to(scale.dtype) + offset
        if safe_merge and not (folded.isfinite().all() and folded_bias.isfinite().all()):
            raise ValueError(
                f"The adapter {names} cannot be merged: the folded weight is not finite, "
                "so one of its scales or shifts is not either."
            )
        if self._frozen is None:
            self._frozen = (weight, bias)
        base.weight.data = folded.to(weight.dtype)
        # A new parameter, so that the frozen bias stays untouched for unmerge.
        base.bias = nn.Parameter(folded_bias.to(weight.dtype), requires_grad=False)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the frozen weight and bias back, bit for bit."""
        if self._frozen is None:
            return
        base: Any = self.get_base_layer()
        base.weight.data, base.bias = self._frozen
        self._frozen = None
        self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self._modulated(x, [n for n in self.active_adapters if n in self.group_of])

    def _modulated(self, x: Tensor, names: list[str]) -> Tensor:
        if not names:
            return self.base_layer(x)
        scale, shift = self.modulation(names)
        return self.base_layer(torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype))

    def _add(self, parameters: str, adapter_name: str, value: Tensor) -> None:
        getattr(self, parameters)[adapter_name] = nn.Parameter(value)

    def _get(self, parameters: str, adapter_name: str) -> Tensor:
        return cast(Tensor, getattr(self, parameters)[adapter_name])

    def _finish(self, adapter_name: str, config: GraspConfig) -> None:
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)


class StochGraspLinear(GraspLinear):
    """A GRASP layer whose every scale and shift is a Gaussian.

    ``s_i ~ N(mu_s[g(i)], sigma_s[g(i)]^2)`` and the same for b. The learned spread is stored as
    the logarithm of its ratio to the layer's largest mean of its kind, so that it is above 0 by
    construction and is the relative spread that a device card states.

    In training every example (the first axis of the input) draws its own samples. In evaluation
    the means are used, unless `sample_in_eval` is set.

    Raises:
        ValueError: As `GraspLinear`; and from a forward pass that samples by ``"weight"`` over a
            base layer without a weight of its own (one that is deployed).

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (StochGRASP); the local reparameterisation of
        ``"weight"``: Kingma, Salimans and Welling, NeurIPS 2015, equation 6.

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

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: StochGraspConfig) -> None:
        self.sampling: dict[str, str] = {}
        self.sample_in_eval = False
        super().__init__(base_layer, adapter_name, config)

    def update_layer(self, adapter_name: str, config: GraspConfig) -> None:
        """Add one more adapter: means at the identity, spreads at ``config.init_sigma``."""
        assert isinstance(config, StochGraspConfig)
        self.sampling[adapter_name] = config.sampling
        start = torch.full((config.groups,), float(config.init_sigma)).log()
        for name in self.adapter_layer_names[2:]:
            self._add(name, adapter_name, start.clone())
        super().update_layer(adapter_name, config)

    def relative_sigmas(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """The learned spreads of scales and of shifts, each ``(K,)``, relative to the largest."""
        scale, shift = self.adapter_layer_names[2:]
        return self._get(scale, adapter_name).exp(), self._get(shift, adapter_name).exp()

    def sigmas(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """The standard deviations of scales and of shifts, each ``(K,)``, in their own units."""
        relative = self.relative_sigmas(adapter_name)
        scale, shift = (
            # The largest mean sets the mapping, as on a device: it is a constant for the gradient.
            sigma * mean.detach().abs().max()
            for sigma, mean in zip(relative, self.means(adapter_name), strict=True)
        )
        return scale, shift

    def _modulated(self, x: Tensor, names: list[str]) -> Tensor:
        if not names or not (self.training or self.sample_in_eval):
            return super()._modulated(x, names)
        *first, last = names
        for name in first:
            x = self._sampled_input(x, name)
        if self.sampling[last] == "weight":
            return self._sampled_output(x, last)
        return self.base_layer(self._sampled_input(x, last))

    def _sampled_input(self, x: Tensor, name: str) -> Tensor:
        group = self.group_of[name]
        by_feature = self.sampling[name] != "group"
        scale, shift = (
            self._draw(x, mean, sigma, group, by_feature)
            for mean, sigma in zip(self.means(name), self.sigmas(name), strict=True)
        )
        return torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype)

    def _draw(
        self, x: Tensor, mean: Tensor, sigma: Tensor, group: Tensor, by_feature: bool
    ) -> Tensor:
        """One sample an example: shape ``(B, 1, ..., D)`` for an input ``(B, ..., D)``."""
        each = (x.shape[0],) if x.dim() > 1 else ()
        between = (1,) * max(x.dim() - 2, 0)
        if by_feature:
            mean, sigma = mean[group], sigma[group]
        noise = torch.randn(*each, *between, mean.shape[0], device=mean.device, dtype=mean.dtype)
        sample = torch.addcmul(mean, sigma, noise)
        return sample if by_feature else sample[..., group]

    def _sampled_output(self, x: Tensor, name: str) -> Tensor:
        """The output under a draw of every cross-point, through its exact mean and variance."""
        base = self.get_base_layer()
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(
                "sampling='weight' needs the digital weights of the layer, which a deployed "
                "model has not: sample by 'feature' or 'group', or use the means."
            )
        scale, shift = self.modulation([name])
        group = self.group_of[name]
        sigma_scale, sigma_shift = (sigma[group] for sigma in self.sigmas(name))
        wide = x.to(scale.dtype)
        mean = self.base_layer(torch.addcmul(shift, wide, scale).to(x.dtype))
        variance_in = (wide * sigma_scale).square() + sigma_shift.square()
        squared = base.weight.detach().to(scale.dtype).square()
        variance = variance_in @ (squared if isinstance(base, Conv1D) else squared.T)
        # The square root has no slope at 0, where a layer's input and shifts are all 0.
        spread = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return mean + (spread * torch.randn_like(spread)).to(mean.dtype)


def _sizes(base_layer: nn.Module) -> tuple[int, int]:
    """The input and output features of a layer that can be modulated."""
    if isinstance(base_layer, nn.Linear):
        return base_layer.in_features, base_layer.out_features
    if isinstance(base_layer, Conv1D):
        return base_layer.nx, base_layer.nf
    raise ValueError(
        f"A {type(base_layer).__name__} cannot be modulated: "
        "target_modules must name nn.Linear or transformers' Conv1D layers."
    )
