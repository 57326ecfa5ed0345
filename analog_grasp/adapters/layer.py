"""Modulated layers: frozen projections whose input features share K scale-and-shift pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.base import AdapterLayer
from analog_grasp.adapters.config import Form, GraspConfig, Grouping
from analog_grasp.adapters.frozen import is_quantised
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.seed import derive_seed


def group_index(
    features: int, groups: int, grouping: Grouping = "contiguous", seed: int = 0
) -> Tensor:
    """Return the map g: {0..D-1} -> {0..K-1} from input features to groups.

    The sizes of two groups differ by at most one, so K need not divide D.

    Args:
        features: D, the number of input features of the layer.
        groups: K, the number of scale-and-shift pairs, from 1 to D.
        grouping: ``"contiguous"``, K blocks of adjacent features; ``"strided"``, every K-th
            feature; or ``"random"``, a permutation of these.
        seed: The seed of the permutation, which is a function of it and of D alone.

    Returns:
        An int64 tensor of shape ``(D,)`` with values in 0..K-1.

    Raises:
        ValueError: K is below 1 or above D, or the grouping is unknown.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (contiguous blocks of the feature axis).

    Example:
        >>> group_index(7, 3).tolist()
        [0, 0, 0, 1, 1, 2, 2]
        >>> group_index(7, 3, "strided").tolist()
        [0, 1, 2, 0, 1, 2, 0]
        >>> group_index(7, 3, "random", seed=1).sort().values.tolist()
        [0, 0, 0, 1, 1, 2, 2]
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
    subclass of it, or the ``Conv1D`` of GPT-2. Several active adapters modulate the input one after
    another, in their order.

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
        self.in_features, self.out_features = _sizes(self.get_base_layer())
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self.group_of = BufferDict(persistent=False)
        self.form: dict[str, Form] = {}
        self._frozen: _FrozenState | None = None
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

        Returns:
            Each of shape ``(D,)``: s and b, or 1/s and -b/s under the form ``"normalize"``.
        """
        first, *others = (
            self._factor_and_offset(n, *(mean[self.group_of[n]] for mean in self.means(n)))
            for n in adapter_names
        )
        scale, shift = first
        for next_scale, next_shift in others:
            scale, shift = scale * next_scale, shift * next_scale + next_shift
        return scale, shift

    def _factor_and_offset(self, name: str, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return (scale, shift) if self.form[name] == "affine" else (1 / scale, -shift / scale)

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        scale, shift = self.modulation(names)
        return self.base_layer(modulated(x, scale, shift), *args, **kwargs)

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        names = sorted(name for name in set(adapter_names) if self._has(name))
        if not names:
            return self.base_layer(x, *args, **kwargs)
        scales, shifts = zip(*(self.modulation([name]) for name in names), strict=True)
        # The last row is the identity, for examples without an adapter in this layer.
        scale = torch.stack([*scales, torch.ones_like(scales[0])])
        shift = torch.stack([*shifts, torch.zeros_like(shifts[0])])
        row = [names.index(name) if name in names else -1 for name in adapter_names]
        shape = (len(row), *(1,) * (x.dim() - 2), self.in_features)
        return self.base_layer(
            modulated(x, scale[row].view(shape), shift[row].view(shape)), *args, **kwargs
        )

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
        with torch.no_grad():
            scale, shift = self.modulation(names)
            wide = weight.to(scale.dtype)
            along_inputs = scale[:, None] if isinstance(base, Conv1D) else scale
            folded = wide * along_inputs
            offset = shift @ wide if isinstance(base, Conv1D) else wide @ shift
            folded_bias = offset if bias is None else bias.to(scale.dtype) + offset
        if safe and not (folded.isfinite().all() and folded_bias.isfinite().all()):
            raise ValueError(
                f"The adapter {names} cannot be merged: the folded weight or bias is not finite."
            )
        folded = folded.to(weight.dtype)
        self._frozen = _FrozenState.of(weight, folded, along_inputs, bias)
        base.weight.data = folded
        if bias is not None:
            base.bias.data = folded_bias.to(weight.dtype)
        elif any(name in getattr(self, self.adapter_layer_names[1]) for name in names):
            base.bias = nn.Parameter(folded_bias.to(weight.dtype), requires_grad=False)

    def _unfold(self) -> None:
        assert self._frozen is not None
        base: Any = self.get_base_layer()
        base.weight.data = self._frozen.weight(base.weight.data)
        if self._frozen.bias is None:
            base.bias = None
        else:
            base.bias.data = self._frozen.bias.to(base.bias)
        self._frozen = None


@dataclass
class _FrozenState:
    """The state that restores a folded layer bit for bit, without a second copy of its weight.

    `steps` counts the representable numbers between the frozen weight and the folded one divided by
    the scales, in one byte per weight. Where that does not suffice (under a scale of 0, for
    instance), the frozen weight itself is kept.
    """

    scale: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    steps: Tensor
    index: Tensor
    kept: Tensor

    @classmethod
    def of(
        cls, weight: Tensor, folded: Tensor, scale: Tensor, bias: Tensor | None
    ) -> "_FrozenState":
        quotient = (folded.to(scale.dtype) / scale).to(weight.dtype)
        steps = weight.view(_bits(weight)) - quotient.view(_bits(weight))
        short = steps.to(torch.int8)
        index = (short != steps).flatten().nonzero()[:, 0]
        return cls(scale, bias, weight.dtype, short, index, weight.flatten()[index])

    def weight(self, folded: Tensor) -> Tensor:
        """Return the frozen weight, in the present type and on the present device of the folded."""
        scale, steps, index, kept = (
            held.to(folded.device) for held in (self.scale, self.steps, self.index, self.kept)
        )
        quotient = (folded.to(self.dtype).to(scale.dtype) / scale).to(self.dtype)
        weight = (quotient.view(_bits(quotient)) + steps).view(self.dtype).flatten()
        weight[index] = kept
        return weight.view(folded.shape).to(folded.dtype)


def _bits(value: Tensor) -> torch.dtype:
    return {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``scale x + shift`` in the type of x, computed in the type of the parameters."""
    return torch.addcmul(shift, x.to(scale.dtype), scale).to(x.dtype)


def _sizes(base_layer: nn.Module) -> tuple[int, int]:
    """Return D and D_out of a layer that can be modulated."""
    if isinstance(base_layer, nn.Linear):
        return base_layer.in_features, base_layer.out_features
    if isinstance(base_layer, Conv1D):
        return base_layer.nx, base_layer.nf
    raise ValueError(
        f"A {type(base_layer).__name__} cannot be modulated: target_modules must name nn.Linear "
        "or transformers' Conv1D layers."
    )
