"""Configurations of GRASP and StochGRASP, saved as adapter_config.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import PeftType

from analog_grasp.adapters.registry import check_sampling
from analog_grasp.devices.card import DeviceAtTime
from analog_grasp.utils.errors import check_finite, check_whole, shown, unknown_name
from analog_grasp.utils.types import DEFAULT_GROUPS, NoiseLoss, Sampling

Grouping = Literal["contiguous", "strided", "random"]
"""Division of the input features of a layer into groups."""

Form = Literal["affine", "normalize"]
"""The modulated input: ``s x + b``, or ``(x - b) / s``."""

SIGMA_RANGE = 1e-12, 10.0
"""Limits of a relative standard deviation: a step of training that is too large overflows none."""


@dataclass
class GraspConfig(PeftConfig):
    """Configuration of a [`GraspModel`][analog_grasp.adapters.model.GraspModel].

    Args:
        groups (`int`, *optional*):
            K, the number of scale-and-shift pairs that the input features of a layer share; from 1
            to D, the number of input features. By default 64, or D in layers where that is less.
        grouping (`"contiguous"`, `"strided"` or `"random"`):
            How the features are divided into groups: blocks of adjacent features, every K-th, or a
            random permutation of these, which layers of equal width share.
        grouping_seed (`int`):
            The seed of the permutation of `"random"`.
        form (`"affine"` or `"normalize"`):
            The modulated input: `s x + b`, or `(x - b) / s`. Both span the same functions, but
            train differently.
        target_modules (`list[str]` or `str`):
            The nn.Linear and Conv1D layers to modulate: a list of names or of their endings, a
            regular expression that matches the whole name, or `"all-linear"` for all layers but
            the output layer and the task head.
        exclude_modules (`list[str]` or `str`, *optional*):
            The layers not to modulate: a list of names or of their endings, or a regular
            expression.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and save with the adapter. The task head is always among them.
        layers_to_transform (`int` or `Sequence[int]`, *optional*):
            The indices of the transformer layers to modulate, at least one; all where None.
            Requires `target_modules` to be a list.
        layers_pattern (`str` or `list[str]`, *optional*):
            The name of the list of transformer layers in the model, such as `"layers"` or `"h"`,
            where `layers_to_transform` does not find it by itself.
        learn_shift (`bool`):
            Whether shifts are learned in addition to scales. Without them an adapter can be merged
            into layers without a bias, such as those of Llama, and the merged model be saved.
        in_features (`dict[str, int]`, *optional*):
            Written when the adapter is saved: the number of input features of each modulated
            layer. Loading into layers of another width raises an error.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296.

    Example:
        >>> GraspConfig(task_type="SEQ_CLS", groups=4).groups
        4
    """

    groups: int | None = None
    grouping: Grouping = "contiguous"
    grouping_seed: int = 0
    form: Form = "affine"
    target_modules: list[str] | set[str] | str | None = "all-linear"
    exclude_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    learn_shift: bool = True
    in_features: dict[str, int] | None = None

    def groups_of(self, in_features: int) -> int:
        """Return K for a layer with a number of input features.

        Example:
            >>> GraspConfig().groups_of(384), GraspConfig().groups_of(32)
            (64, 32)
        """
        return min(DEFAULT_GROUPS, in_features) if self.groups is None else self.groups

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["GRASP"]
        # Saved as in_features; apart from it, as one configuration may serve several models.
        self.present_in_features: dict[str, int] | None = None
        _check_choice("grouping", self.grouping, Grouping)
        _check_choice("form", self.form, Form)
        if not _is_whole(self.grouping_seed):
            raise ValueError(
                f"grouping_seed is {shown(self.grouping_seed)}: a whole number is accepted."
            )
        if self.groups is not None:
            check_whole("groups", self.groups)
            # Of Python's own types, as JSON takes no others.
            self.groups = int(self.groups)
        self.grouping_seed = int(self.grouping_seed)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        self.layers_to_transform = _layer_indices(self.layers_to_transform)
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                f"layers_to_transform requires target_modules to be a list of names, not the "
                f"string {self.target_modules!r}."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern requires layers_to_transform to be given too.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as saved, with the input features of the model that is saved."""
        return super().to_dict() | {"in_features": self.present_in_features or self.in_features}


@dataclass
class StochGraspConfig(GraspConfig):
    """Configuration of a [`StochGraspModel`][analog_grasp.adapters.model.StochGraspModel].

    Standard deviations are relative: a sigma of 0.1 is a tenth of the layer's largest scale (for
    scales) or largest shift (for shifts), because a crossbar maps the largest stored value to its
    largest conductance.

    It has the settings of [`GraspConfig`][analog_grasp.adapters.config.GraspConfig] too. Under the
    form `"normalize"` the Gaussians are those of s and b, sampled by feature or group.

    Args:
        sampling (`"feature"`, `"group"`, `"weight"` or `"token"`):
            What draws a sample of its own in training, for every example of a batch: each input
            feature, each group, or each cross-point of the folded weight matrix. With `"token"`
            every token draws every cross-point again, like read noise; that costs one more
            product, while `"weight"` costs a sample of the whole matrix for every example.
        init_sigma (`float`):
            The relative standard deviation at the start of training; above 0 and at most 10.
        noise_weight (`float`):
            lambda, the weight of the noise-aware loss, which `analog_grasp.train` and
            `AdapterTrainer` add to the loss; at 0 the standard deviations are free.
        noise_target (`float`, `str` or `DeviceAtTime`):
            sigma*, the relative standard deviation toward which the learned one is regularised: a
            number above 0, or a device at a drift time, such as `"pcm-hermes-2@1d"` or
            `card.at("1d")`, whose standard deviations `"pcm-hermes-2@1d x1.5"` multiplies. A device
            is saved by its name and time.
        noise_loss (`"l2"` or `"kl"`):
            The form of the noise-aware loss.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (StochGRASP).

    Example:
        >>> StochGraspConfig(task_type="SEQ_CLS", noise_target="pcm-hermes-2@1d").noise_loss
        'kl'
    """

    sampling: Sampling = "feature"
    init_sigma: float = 0.05
    noise_weight: float = 0.01
    noise_target: float | str | DeviceAtTime = 0.1
    noise_loss: NoiseLoss = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["STOCHGRASP"]
        _check_choice("sampling", self.sampling, Sampling)
        _check_choice("noise_loss", self.noise_loss, NoiseLoss)
        check_sampling(self.form, self.sampling)
        low, high = SIGMA_RANGE
        if not isinstance(self.init_sigma, Real) or not low <= self.init_sigma <= high:
            raise ValueError(
                f"init_sigma is {shown(self.init_sigma)}: a number above 0 (at least {low:g}) and "
                f"at most {high:g} is accepted."
            )
        check_finite("noise_weight", self.noise_weight)
        self.init_sigma, self.noise_weight = float(self.init_sigma), float(self.noise_weight)
        if isinstance(self.noise_target, Real):
            check_finite("noise_target", self.noise_target, above=True)
            self.noise_target = float(self.noise_target)
        # A text is read when training begins: an adapter is loaded without its device's card too.
        elif not isinstance(self.noise_target, str | DeviceAtTime):
            raise ValueError(
                f"noise_target is {shown(self.noise_target)}: a number above 0 or a device at a "
                "time, such as 'pcm-hermes-2@1d' or card.at('1d'), is accepted."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as saved: a device at a time by its name."""
        target = self.noise_target
        saved = str(target) if isinstance(target, DeviceAtTime) else target
        return super().to_dict() | {"noise_target": saved}


def _layer_indices(layers: Any) -> list[int] | int | None:
    """Return the indices of transformer layers as peft takes them: a list, one, or None."""
    if layers is None:
        return None
    given = layers if isinstance(layers, Sequence) and not isinstance(layers, str) else [layers]
    if not given or not all(_is_whole(index) and index >= 0 for index in given):
        raise ValueError(
            f"layers_to_transform is {shown(layers)}: an index of at least 0, or a list of at "
            "least one such index, is accepted."
        )
    return [int(index) for index in given] if given is layers else int(given[0])


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_choice(name: str, value: object, literal: Any) -> None:
    if value not in (known := get_args(literal)):
        raise ValueError(unknown_name(name, value, known))
