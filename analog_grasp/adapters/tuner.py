"""What our PEFT methods have in common: how layers of a model are replaced."""

from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from analog_grasp.adapters.frozen import save_head


class Tuner(BaseTuner):
    """A `peft` tuner whose layers wrap the chosen ones; the task head is saved with them.

    A subclass names the class of its layers, which take ``(base_layer, adapter_name, config)`` and
    have ``update_layer(adapter_name, config)``.
    """

    tuner_layer_cls: Any
    # A model of unknown architecture is treated like any other.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by BaseTuner

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
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # Our layers bring their numbers to the base layer's device themselves; what the inherited
        # method does beyond this fails on a saved head that has no weight of its own.
        setattr(parent, child_name, new_module)
