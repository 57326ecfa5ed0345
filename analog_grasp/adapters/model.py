"""The tuners: which layers of a model are replaced by modulated ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.frozen import save_head
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear


class GraspModel(BaseTuner):
    """A frozen model whose chosen projections see a modulated input.

    Made by `peft.get_peft_model`; saves, loads and merges like any PEFT adapter.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> tiny = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        ...                   intermediate_size=64, vocab_size=50)
        >>> config = GraspConfig(task_type="SEQ_CLS", groups=4)
        >>> model = get_peft_model(BertForSequenceClassification(tiny), config)
        >>> len(list(model.base_model.modulated_layers()))
        7
    """

    prefix: str = "grasp_"
    tuner_layer_cls = GraspLinear
    # A model of unknown architecture is treated like any other: all its linear layers.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by BaseTuner

    def modulated_layers(self) -> Iterator[tuple[str, GraspLinear]]:
        """Yield the name in the base model and the layer, for every modulated layer."""
        for name, module in self.model.named_modules():
            if isinstance(module, GraspLinear):
                yield name, module

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        save_head(config, model)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, GraspConfig)
        if isinstance(target, GraspLinear):
            layer = target
            layer.update_layer(adapter_name, peft_config)
        else:
            layer = self.tuner_layer_cls(target, adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)
        expected = (peft_config.in_features or {}).get(current_key, layer.in_features)
        if layer.in_features != expected:
            raise ValueError(
                f"The adapter was made for another model: its layer {current_key} takes "
                f"{expected} features, and here it takes {layer.in_features}."
            )

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # Our layers bring their numbers to the base layer's device themselves; what the inherited
        # method does beyond this fails on a saved head that has no weight of its own.
        setattr(parent, child_name, new_module)

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Record the layers of a new adapter; hold those of a loaded one against the model."""
        assert isinstance(config, GraspConfig)
        found = {
            name: layer.in_features
            for name, layer in self.modulated_layers()
            if adapter_name in layer.group_of
        }
        if config.in_features is None:
            config.in_features = found
        missing = sorted(config.in_features.keys() - found.keys())
        if missing:
            raise ValueError(
                f"The adapter was made for another model: it modulates {len(missing)} layers "
                f"that this one has not, {missing[0]} among them."
            )


class StochGraspModel(GraspModel):
    """A GRASP model that learns a Gaussian for every stored number.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (StochGRASP).
    """

    prefix: str = "stochgrasp_"
    tuner_layer_cls = StochGraspLinear

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Within the block, evaluation draws samples where it would use the means.

        Example:
            ``with model.base_model.sampling(): logits = model(**batch).logits``
        """
        layers = [layer for _, layer in self.modulated_layers()]
        self._sample_in_eval(layers, True)
        try:
            yield
        finally:
            self._sample_in_eval(layers, False)

    @staticmethod
    def _sample_in_eval(layers: list[Any], value: bool) -> None:
        for layer in layers:
            layer.sample_in_eval = value
