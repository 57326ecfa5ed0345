"""The settings of GRASP and StochGRASP: what a user writes, what adapter_config.json holds."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from peft.config import PeftConfig
from peft.utils import PeftType

from analog_grasp.adapters.grouping import Grouping
from analog_grasp.utils.types import Sampling

SpreadLoss = Literal["l2", "kl"]


@dataclass
class GraspConfig(PeftConfig):
    """Settings of a [`GraspModel`][analog_grasp.adapters.model.GraspModel].

    Example:
        >>> GraspConfig(task_type="SEQ_CLS", groups=4).groups
        4

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296.
    """

    groups: int = field(
        default=16,
        metadata={"help": "K, the number of scale-and-shift pairs that the features share."},
    )
    grouping: Grouping = field(
        default="contiguous",
        metadata={"help": "How features are shared out: 'contiguous' blocks or 'strided'."},
    )
    target_modules: list[str] | set[str] | str | None = field(
        default="all-linear",
        metadata={
            "help": "The linear and Conv1D layers to modulate, as PEFT has it: a list of names "
            "(or of their endings), a regular expression, or 'all-linear' for all but the "
            "output layer."
        },
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "Names, or a regular expression, of layers to leave as they are."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Other modules to train and save with the adapter (the task head)."},
    )
    in_features: dict[str, int] | None = field(
        default=None,
        metadata={
            "help": "Filled in by the model: the input size of every modulated layer. A saved "
            "adapter is refused by a base model whose layers differ."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["GRASP"]
        _check_choice("grouping", self.grouping, get_args(Grouping))
        if not isinstance(self.groups, int) or self.groups < 1:
            raise ValueError(f"groups is {self.groups!r}: it must be a whole number from 1.")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)


@dataclass
class StochGraspConfig(GraspConfig):
    """Settings of a [`StochGraspModel`][analog_grasp.adapters.model.StochGraspModel].

    Spreads are relative: a learned sigma of 0.1 is a standard deviation of a tenth of the
    layer's largest scale (for scales) or largest shift (for shifts), because a crossbar maps
    the largest stored value to its largest conductance.

    Example:
        >>> StochGraspConfig(task_type="SEQ_CLS", noise_target="pcm-hermes-2@1d").noise_loss
        'l2'

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (StochGRASP).
    """

    sampling: Sampling = field(
        default="feature",
        metadata={
            "help": "What draws its own sample in training: each 'feature', each 'group', or "
            "each cross-point of the folded 'weight'."
        },
    )
    init_sigma: float = field(
        default=0.05, metadata={"help": "The relative spread that training starts from."}
    )
    noise_weight: float = field(
        default=1.0,
        metadata={"help": "lambda, the weight of the noise-aware loss; 0 leaves sigma free."},
    )
    noise_target: float | str = field(
        default=0.1,
        metadata={
            "help": "sigma*, the relative spread that the learned one is pulled toward: a number, "
            "or a device card at a drift time, such as 'pcm-hermes-2@1d'."
        },
    )
    noise_loss: SpreadLoss = field(
        default="l2", metadata={"help": "The form of the noise-aware loss: 'l2' or 'kl'."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["STOCHGRASP"]
        _check_choice("sampling", self.sampling, get_args(Sampling))
        _check_choice("noise_loss", self.noise_loss, get_args(SpreadLoss))
        if not self.init_sigma > 0:
            raise ValueError(f"init_sigma is {self.init_sigma}: a spread must be above 0.")
        if not self.noise_weight >= 0:
            raise ValueError(f"noise_weight is {self.noise_weight}: it must be 0 or more.")
        if not isinstance(self.noise_target, str) and not self.noise_target > 0:
            raise ValueError(
                f"noise_target is {self.noise_target}: a number must be above 0, "
                "or name a device at a time, such as 'pcm-hermes-2@1d'."
            )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, which is unknown: use one of {', '.join(choices)}.")
