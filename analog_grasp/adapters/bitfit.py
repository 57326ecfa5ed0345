"""BitFit: training only the biases of a frozen model."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.config import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.base import AdapterLayer, AdapterModel, register
from analog_grasp.adapters.frozen import attention_paths, exact_targets, head_names


@dataclass
class BitFitConfig(PeftConfig):
    """Configuration of a [`BitFitModel`][analog_grasp.adapters.bitfit.BitFitModel].

    Args:
        target_modules (`list[str]` or `str`, *optional*):
            The layers whose biases are trained: a list of names or of their endings, or a regular
            expression. Where None, every nn.Linear, Conv1D and LayerNorm layer with a bias, but
            not those of the task head.
        modules_to_save (`list[str]`, *optional*):
            Further modules to train and save with the adapter. The task head is always among them.

    Source:
        Ben Zaken, Ravfogel and Goldberg, BitFit, ACL 2022, arXiv 2106.10199.

    Example:
        >>> BitFitConfig(task_type="SEQ_CLS").peft_type.value
        'BITFIT'
    """

    target_modules: list[str] | set[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["BITFIT"]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


class BitFitLayer(AdapterLayer):
    """A layer whose bias c becomes c + d, with d learned and c frozen.

    Training d from 0 equals training c, as both have the same gradient. Kept apart, the frozen
    layer can serve other adapters too. Several active adapters add up.

    Raises:
        ValueError: The layer is not a linear, Conv1D or LayerNorm layer with a bias.

    Example:
        >>> BitFitLayer(nn.Linear(6, 2), "default", BitFitConfig())(torch.ones(4, 6)).shape
        torch.Size([4, 2])
    """

    adapter_layer_names: tuple[str, ...] = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BitFitConfig) -> None:
        super().__init__(base_layer)
        if not _has_bias(base := self.get_base_layer()):
            raise ValueError(
                f"A {type(base).__name__} has no bias to train with BitFit: target_modules must "
                "name linear, Conv1D or LayerNorm layers with a bias."
            )
        self.bitfit_bias = nn.ParameterDict()
        self._frozen_bias: Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add the parameters of an adapter at d = 0."""
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros_like(self._bias()))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        return y + self._learned(names).to(y.dtype)

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        none = torch.zeros_like(self._bias())
        learned = [self.bitfit_bias[n] if self._has(n) else none for n in adapter_names]
        shape = (len(learned), *(1,) * (y.dim() - 2), y.shape[-1])
        return y + torch.stack([bias.to(y.dtype) for bias in learned]).view(shape)

    def _fold(self, names: list[str], safe: bool) -> None:
        bias = self._bias()
        folded = bias.data + self._learned(names).to(bias.dtype)
        if safe and not folded.isfinite().all():
            raise ValueError(f"The adapter {names} cannot be merged: a bias is not finite.")
        self._frozen_bias, bias.data = bias.data, folded

    def _unfold(self) -> None:
        bias, frozen = self._bias(), self._frozen_bias
        assert frozen is not None
        bias.data, self._frozen_bias = frozen.to(bias), None

    def _bias(self) -> nn.Parameter:
        return cast(nn.Parameter, self.get_base_layer().bias)

    def _learned(self, names: list[str]) -> Tensor:
        first, *others = (self.bitfit_bias[name] for name in names)
        return sum(others, start=first)


class BitFitModel(AdapterModel):
    """A frozen model whose biases are trained.

    Raises:
        ValueError: The model has no biases, such as Llama and T5.

    Example:
        >>> from peft import get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(6, 2)), BitFitConfig())
        >>> model.get_nb_trainable_parameters()
        (2, 16)
    """

    prefix: str = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare(self, config: PeftConfig, model: nn.Module) -> None:
        super()._prepare(config, model)
        assert isinstance(config, BitFitConfig)
        if config.target_modules is not None:
            return
        barred = tuple(f"{name}." for name in (*head_names(model), *attention_paths(model)))
        names = {
            name.removesuffix(".base_layer")
            for name, module in model.named_modules()
            if _has_bias(module) and not f"{name}.".startswith(barred)
        }
        if not names:
            raise ValueError(
                f"The {type(model).__name__} has no biases for BitFit to train: use another "
                "adapter."
            )
        targets = exact_targets(names, model)
        config.target_modules = targets if isinstance(targets, str) else set(targets)


def _has_bias(module: nn.Module) -> bool:
    kinds = nn.Linear | Conv1D | nn.LayerNorm
    return isinstance(module, kinds) and module.bias is not None


register("bitfit", BitFitConfig, BitFitModel)
