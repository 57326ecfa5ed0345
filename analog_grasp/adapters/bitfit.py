"""BitFit: the biases of a frozen model, and nothing else, are trained."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import head_names
from analog_grasp.adapters.tuner import Tuner


@dataclass
class BitFitConfig(PeftConfig):
    """Settings of a [`BitFitModel`][analog_grasp.adapters.bitfit.BitFitModel].

    Example:
        >>> BitFitConfig(task_type="SEQ_CLS").peft_type.value
        'BITFIT'

    Source:
        Ben Zaken, Ravfogel and Goldberg, BitFit, ACL 2022, arXiv 2106.10199.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "The layers whose biases are trained, as PEFT has it; if left out, every "
            "linear, Conv1D and LayerNorm layer with a bias, the task head's apart."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Other modules to train and save with the adapter (the task head)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A layer whose bias c becomes c + d: the learned d is kept apart, so that c stays frozen.

    Training d from 0 is training c: both have the same gradient. Kept apart, the frozen layer can
    serve other adapters too, on a chip among others.

    Args:
        base_layer: A linear, Conv1D or LayerNorm layer with a bias of shape ``(D_out,)``.
        adapter_name: The name of the first adapter.
        config: The adapter's settings.

    Raises:
        ValueError: The layer is of another kind or has no bias.

    Example:
        >>> BitFitLayer(nn.Linear(6, 2), "default", BitFitConfig())(torch.ones(4, 6)).shape
        torch.Size([4, 2])
    """

    adapter_layer_names: tuple[str, ...] = ("bitfit_bias",)
    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BitFitConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        if not _has_bias(self.get_base_layer()):
            raise ValueError(
                f"A {type(self.get_base_layer()).__name__} has no bias that BitFit could train: "
                "target_modules must name linear, Conv1D or LayerNorm layers with one."
            )
        self.bitfit_bias = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # The frozen bias while a merge stands in its place.
        self._frozen: Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add the parameters of one more adapter, at d = 0."""
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros_like(self._bias()))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the adapters into the layer: c + d in place of c.

        Args:
            safe_merge: Refuse a fold that is not finite.
            adapter_names: The adapters to fold; all the active ones if left out.

        Raises:
            ValueError: With ``safe_merge``, the folded bias is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.bitfit_bias]
        if not names:
            return
        bias = self._bias()
        folded = bias.data + self._learned(names).detach().to(bias.dtype)
        if safe_merge and not folded.isfinite().all():
            raise ValueError(
                f"The adapter {names} cannot be merged: a bias that it learned is not finite."
            )
        if self._frozen is None:
            self._frozen = bias.data
        bias.data = folded
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the frozen bias back, bit for bit."""
        if self._frozen is None:
            return
        self._bias().data = self._frozen
        self._frozen = None
        self.merged_adapters.clear()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y = self.base_layer(x, *args, **kwargs)
        names = [n for n in self.active_adapters if n in self.bitfit_bias]
        if self.disable_adapters or self.merged or not names:
            return y
        return y + self._learned(names).to(y.dtype)

    def _bias(self) -> nn.Parameter:
        return cast(nn.Parameter, self.get_base_layer().bias)

    def _learned(self, names: list[str]) -> Tensor:
        first, *others = (self.bitfit_bias[name] for name in names)
        return sum(others, start=first)


class BitFitModel(Tuner):
    """A frozen model whose biases are trained.

    Source:
        Ben Zaken, Ravfogel and Goldberg, BitFit, ACL 2022, arXiv 2106.10199.

    Raises:
        ValueError: The model has no biases, as Llama and T5.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> tiny = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        ...                   intermediate_size=64, vocab_size=50)
        >>> config = BitFitConfig(task_type="SEQ_CLS")
        >>> model = get_peft_model(BertForSequenceClassification(tiny), config)
        >>> sum(p.numel() for n, p in model.named_parameters() if "bitfit_" in n)
        352
    """

    prefix: str = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        assert isinstance(config, BitFitConfig)
        if config.target_modules is None:
            config.target_modules = _biased_layers(model)


def _has_bias(module: nn.Module) -> bool:
    kinds = nn.Linear | Conv1D | nn.LayerNorm
    return isinstance(module, kinds) and module.bias is not None


def _biased_layers(model: nn.Module) -> set[str]:
    """The names of a model's layers with a bias, those of the task head and of adapters apart."""
    heads = tuple(f"{head}." for head in head_names(model))
    names = {
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if _has_bias(module) and not f"{name}.".startswith(heads)
    }
    if not names:
        raise ValueError(
            f"The {type(model).__name__} has no biases for BitFit to train: use another adapter."
        )
    return names
