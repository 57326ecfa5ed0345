"""The tuners: which layers of a model are replaced by modulated ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.config import PeftConfig
from torch import nn

from analog_grasp.adapters.config import GraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.adapters.tuner import Tuner


class GraspModel(Tuner):
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

    def modulated_layers(self) -> Iterator[tuple[str, GraspLinear]]:
        """Yield the name in the base model and the layer, for every modulated layer."""
        for name, module in self.model.named_modules():
            if isinstance(module, GraspLinear):
                yield name, module

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
        super()._create_and_replace(
            peft_config, adapter_name, target, target_name, parent, current_key, parameter_name
        )
        assert isinstance(peft_config, GraspConfig)
        layer = getattr(parent, target_name)
        expected = (peft_config.in_features or {}).get(current_key, layer.in_features)
        if layer.in_features != expected:
            raise ValueError(
                f"The adapter was made for another model: its layer {current_key} takes "
                f"{expected} features, and here it takes {layer.in_features}."
            )

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
