"""Full fine-tuning as a PEFT method: every weight of the model is trained and saved."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, PeftType
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from analog_grasp.adapters.tuner import Tuner


@dataclass
class FullConfig(PeftConfig):
    """Settings of a [`FullModel`][analog_grasp.adapters.full.FullModel].

    Example:
        >>> FullConfig(task_type="SEQ_CLS").peft_type.value
        'FULL'
    """

    target_modules: str = field(
        default=DUMMY_TARGET_MODULES,
        metadata={"help": "PEFT's word for: no layer is replaced. Not to be changed."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules that are kept apart from the rest (the task head)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["FULL"]


class FullModel(Tuner):
    """A model that is trained itself: what other methods are measured against.

    Its weights are trained in place and saved whole, tied ones once, so that a saved adapter is
    as large as the model. What it leaves is no frozen model: it cannot be disabled, nor share a
    chip with others.

    Raises:
        ValueError: A second adapter is added, the adapter is disabled, or a saved one has other
            weights than the model.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertModel
        >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                   intermediate_size=16, vocab_size=10)
        >>> model = get_peft_model(BertModel(tiny), FullConfig())
        >>> all(p.requires_grad for p in model.parameters())
        True
    """

    prefix: str = "full_"
    tuner_layer_cls = BaseTunerLayer

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        if len(self.peft_config) > 1:
            raise ValueError(
                "A model that is trained whole has no room for a second adapter: load another copy."
            )

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        training = not any(config.inference_mode for config in self.peft_config.values())
        for _, parameter in _own_parameters(model):
            parameter.requires_grad = training

    def disable_adapter_layers(self) -> None:
        """Refused: the weights that were there before training are not kept."""
        raise ValueError(
            "Full fine-tuning cannot be disabled, since it keeps no frozen weights: load the "
            "pre-trained model instead."
        )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        return {name: state_dict[name] for name, _ in _own_parameters(model)}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        known = dict(model.named_parameters(remove_duplicate=False))
        foreign = sorted(state_dict.keys() - known.keys())
        missing = sorted({name for name, _ in _own_parameters(model)} - state_dict.keys())
        if foreign or missing:
            raise ValueError(
                "The adapter was made for another model: "
                f"{(foreign or missing)[0]} is in only one of them."
            )
        return state_dict


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that peft does not keep apart, each once whatever is tied to it."""
    apart = tuple(
        f"{name}." for name, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if not name.startswith(apart):
            yield name, parameter
