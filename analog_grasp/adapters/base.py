"""Base classes of our PEFT methods, and their registration with PEFT."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import peft
import torch
from aenum import extend_enum
from peft import PeftModel
from peft.config import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
)
from peft.utils import (
    AuxiliaryTrainingWrapper,
    ModulesToSaveWrapper,
    PeftType,
    register_peft_method,
)
from torch import Tensor, nn

from analog_grasp.adapters.frozen import (
    check_targets,
    exact_targets,
    has_encoder_and_decoder,
    save_head,
)
from analog_grasp.utils.errors import unknown_name


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A layer around a frozen one: merging, disabling, and batches that mix adapters.

    A subclass defines ``_adapted``, ``_mixed``, ``_fold`` and ``_unfold``.

    Args:
        base_layer: The frozen layer. A layer put into a model in evaluation mode is in it too.
    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.was_read = False
        self.training = base_layer.training
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # The adapters to merge again when adapters are enabled again.
        self._suspended: list[str] = []

    @property
    def weight(self) -> Tensor:
        """The weight of the frozen layer; a model that computes with it bypasses the adapter."""
        self.was_read = True
        return super().weight

    @property
    def bias(self) -> Tensor:
        """The bias of the frozen layer; a model that computes with it bypasses the adapter."""
        self.was_read = True
        return super().bias

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the frozen layer; in their order, in one call or in several.

        Args:
            safe_merge: Raise an error if a folded parameter is not finite.
            adapter_names: The adapters to merge; all active ones where None.

        Raises:
            ValueError: With ``safe_merge``, a folded parameter is not finite; or the frozen layer
                is quantised.
        """
        earlier = [name for name in self._suspended or self.merged_adapters if self._has(name)]
        asked = check_adapters_to_merge(self, adapter_names)
        once = dict.fromkeys(asked)
        names = [name for name in once if self._has(name) and name not in earlier]
        if not names:
            return
        self.unmerge()
        # Weights written in inference mode could not be trained with afterwards.
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._fold([*earlier, *names], safe_merge)
            except ValueError:
                if earlier:
                    self._fold(earlier, False)
                    self.merged_adapters = earlier
                raise
        self.merged_adapters = [*earlier, *names]

    def unmerge(self) -> None:
        """Restore the frozen layer, bit for bit unless its type was changed while merged."""
        if self.merged_adapters:
            with torch.inference_mode(False), torch.no_grad():
                self._unfold()
        self.merged_adapters = []
        self._suspended = []

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapters; if others were merged when disabled, they stay unmerged."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if names != self.active_adapters:
            self._suspended = []
        super().set_adapter(adapter_names, inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Enable or disable all adapters; merged ones are merged again when enabled again."""
        super().enable_adapters(enabled)
        if not enabled:
            self._suspend()
        elif self._suspended:
            names, self._suspended = self._suspended, []
            self.merge(adapter_names=[name for name in names if self._has(name)])

    def forward(
        self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the output of the frozen layer under the active adapters.

        Args:
            x: The input, whose first axis is that of the B examples.
            args, kwargs: Passed to the frozen layer.
            adapter_names: The adapter of each example; ``"__base__"`` for none.
        """
        if adapter_names is not None and len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if adapter_names is not None and self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first."
            )
        if self.disable_adapters:
            self._suspend()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed(x, adapter_names, *args, **kwargs)
        names = [name for name in self.active_adapters if self._has(name)]
        if self.merged or not names:
            return self.base_layer(x, *args, **kwargs)
        return self._adapted(x, names, *args, **kwargs)

    def _suspend(self) -> None:
        if merged := self.merged_adapters:
            self.unmerge()
            self._suspended = merged

    def _has(self, adapter_name: str) -> bool:
        return adapter_name in getattr(self, self.adapter_layer_names[0])

    def _adapted(self, x: Tensor, names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return the output under adapters, applied in order."""
        raise NotImplementedError

    def _mixed(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of a batch that mixes adapters."""
        raise NotImplementedError

    def _fold(self, names: list[str], safe: bool) -> None:
        """Write adapters into the frozen layer, without gradients."""
        raise NotImplementedError

    def _unfold(self) -> None:
        """Restore the frozen layer."""
        raise NotImplementedError


class AdapterModel(BaseTuner):
    """A PEFT tuner that wraps the chosen layers of a model and saves its task head with them.

    A subclass names the class of its layers, which take ``(base_layer, adapter_name, config)``.
    """

    tuner_layer_cls: Any
    _bypass_checked: bool = False
    # Models of an unknown architecture are treated like any other.
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - declared so by BaseTuner

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Put an adapter into the model; on an error, the model is left as it was."""
        config = self.peft_config[adapter_name]
        self._bypass_checked = False
        self._prepare(config, model)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            remove_adapter(model, adapter_name)
            raise

    def _prepare(self, config: PeftConfig, model: nn.Module) -> None:
        # Those of a saved adapter are compared with its weights as these are loaded.
        if not config.inference_mode:
            check_targets(config, model)
        save_head(config, model)
        targeted: Any = config
        if getattr(targeted, "target_modules", None) == "all-linear":
            targeted.target_modules = _all_linear_layers(config, model)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge adapters into the base model; see `peft.tuners.tuners_utils.BaseTuner`.

        Raises:
            ValueError: The model has no adapter of such a name; or as `AdapterLayer.merge`.
        """
        self._check_known(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        self._check_known(adapter_names)
        unload: Any = super()._unload_and_optionally_merge
        return unload(merge, progressbar, safe_merge, adapter_names)

    def _check_known(self, adapter_names: list[str] | None) -> None:
        # peft itself raises for a single text.
        for name in () if isinstance(adapter_names, str) else adapter_names or ():
            if name not in self.peft_config:
                raise ValueError(unknown_name("adapter", name, self.peft_config))

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
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"The layer {current_key} cannot be adapted: nn.MultiheadAttention does not call "
                "it, but reads its weight."
            )
        if isinstance(target, AdapterLayer) and type(target) is not self.tuner_layer_cls:
            raise ValueError(
                f"The layer {current_key} is a {type(target).__name__} already, which cannot hold "
                f"a {peft_config.peft_type} adapter: unload the first method, or load both on "
                "models of their own."
            )
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # A hook, whatever it does, keeps torch from its fast path, which reads weights alone.
            layer.register_forward_pre_hook(_no_change)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # Our layers move their parameters to the base layer's device themselves; what the inherited
        # method does beyond this fails on a saved head that has no weight of its own.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within the block, every layer gets the ``adapter_names`` of a forward pass.

        The first pass of training warns of layers that the model bypasses.

        Raises:
            ValueError: The model is in training mode, or has no adapter of such a name.
        """
        adapter_names = kwargs.get("adapter_names")
        if adapter_names is None:
            with self._warning_of_bypassed_layers():
                yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        layers = [m for m in self.modules() if isinstance(m, self.tuner_layer_cls)]
        known = {name for layer in layers for name in layer._get_available_adapters()}
        if unknown := sorted(set(adapter_names) - known - {"__base__"}):
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        # generate repeats each example, but not in the encoder of an encoder-decoder model.
        copies = _copies(kwargs)
        both = has_encoder_and_decoder(self.model)
        # A decoder alone returns itself as its encoder.
        in_encoder = set(self.model.get_encoder().modules()) if both and copies > 1 else set()
        repeated = [name for name in adapter_names for _ in range(copies)]
        with ExitStack() as hooks:
            for module in self.modules():
                if isinstance(module, self.tuner_layer_cls | AuxiliaryTrainingWrapper):
                    names = adapter_names if module in in_encoder else repeated
                    hook = partial(_with_adapter_names, names)
                    hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
            yield

    @contextmanager
    def _warning_of_bypassed_layers(self) -> Iterator[None]:
        """Warn of layers whose weights the block reads without calling them, as Mamba's dt_proj.

        Their adapters change nothing and get no gradient.
        """
        if self._bypass_checked or not self.model.training or torch.compiler.is_compiling():
            yield
            return
        self._bypass_checked = True
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, AdapterLayer)}
        called: set[nn.Module] = set()
        with ExitStack() as hooks:
            for layer in layers.values():
                layer.was_read = False
                mark = layer.register_forward_pre_hook(lambda layer, _: called.add(layer))
                hooks.enter_context(mark)
            yield
        bypassed = [n for n, layer in layers.items() if layer.was_read and layer not in called]
        if bypassed:
            warnings.warn(
                f"The model computes with the weights of {len(bypassed)} adapted layers without "
                f"calling them, such as {bypassed[0]}: their adapters change nothing and are not "
                "trained; choose target_modules without these layers.",
                stacklevel=4,
            )


def _all_linear_layers(config: PeftConfig, model: nn.Module) -> set[str] | str:
    """Return the targets "all-linear", by name where peft would match modules besides them."""
    expanded: Any = _maybe_include_all_linear_layers(copy.copy(config), model)
    found: set[str] = expanded.target_modules
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in found}
    # Attention reads the weight of its output projection instead of calling it.
    names = {n for n, m in parents.items() if not isinstance(m, nn.MultiheadAttention)}
    targets = exact_targets(names, model)
    if isinstance(targets, str):
        return targets
    return "all-linear" if names == found else names


def _copies(arguments: dict[str, Any]) -> int:
    """Return how often generate repeats each example, given its arguments."""
    config = arguments.get("generation_config")
    settings = ("num_beams", "num_return_sequences")
    return max(arguments.get(name) or getattr(config, name, None) or 1 for name in settings)


def _with_adapter_names(
    names: list[str], _: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _no_change(*_: Any) -> None: ...


def remove_adapter(model: nn.Module, adapter_name: str) -> None:
    """Remove an adapter of ours from a model; what it alone wrapped is unwrapped."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ModulesToSaveWrapper):
                if [*child.modules_to_save] == [adapter_name]:
                    setattr(parent, name, child.original_module)
                continue
            if not isinstance(child, AdapterLayer) or not child._has(adapter_name):
                continue
            with warnings.catch_warnings():
                # peft warns that another adapter becomes active.
                warnings.simplefilter("ignore")
                child.delete_adapter(adapter_name)
            if not child._get_available_adapters():
                setattr(parent, name, child.base_layer)


def remove_failed_loads() -> None:
    """Make peft remove an adapter of ours whose weights could not be loaded.

    peft adds an adapter to the model before it reads the weights, and leaves it there, at its
    initial values, if the file is missing, damaged or of another model.
    """
    model_cls: Any = PeftModel
    load_adapter, from_pretrained = model_cls.load_adapter, model_cls.from_pretrained.__func__

    @wraps(load_adapter)
    def load_or_remove(
        self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        present = adapter_name in self.peft_config
        try:
            return load_adapter(self, model_id, adapter_name, *args, **kwargs)
        except Exception:
            if not present and isinstance(self.base_model, AdapterModel):
                if adapter_name in self.peft_config:
                    self.delete_adapter(adapter_name)
                remove_adapter(self, adapter_name)
            raise

    @wraps(from_pretrained)
    def made_or_restored(
        cls: Any, model: nn.Module, model_id: Any, adapter_name: str = "default", *args: Any,
        **kwargs: Any,
    ) -> PeftModel:  # fmt: skip
        layers = (module for module in model.modules() if isinstance(module, AdapterLayer))
        present = any(layer._has(adapter_name) for layer in layers)
        try:
            return from_pretrained(cls, model, model_id, adapter_name, *args, **kwargs)
        except Exception:
            if not present:
                remove_adapter(model, adapter_name)
            raise

    model_cls.load_adapter = load_or_remove
    model_cls.from_pretrained = classmethod(made_or_restored)


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register a method with PEFT; a second call does nothing.

    peft's `register_peft_method` takes only members of its own `PeftType` enumeration, which offers
    no way to add one, so the enumeration is extended first.

    Raises:
        ImportError: The installed peft does not accept the method.
    """
    if name.upper() in PeftType.__members__:
        return
    try:
        extend_enum(PeftType, name.upper(), name.upper())
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImportError(
            f"peft {peft.__version__} does not accept {name} as a method ({error}): install a "
            "version of peft that analog-grasp requires."
        ) from error


remove_failed_loads()
