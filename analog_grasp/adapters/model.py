"""The PEFT tuners of GRASP and StochGRASP, and their start from a saved adapter."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from analog_grasp.adapters.base import AdapterModel, register
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.frozen import base_name, exact_targets
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.utils.errors import last_line, shown

# Settings under which transformers builds linear layers with a bias that have none otherwise.
_BIAS_SETTINGS = ("attention_bias", "mlp_bias", "qkv_bias", "use_bias")
# Settings under which equal parameters mean the same function.
_SAME_FUNCTION = (
    *("groups", "grouping", "grouping_seed", "form"),
    *("lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "feedforward_modules"),
)
# Largest configuration of an adapter that is read, in bytes.
_LARGEST_CONFIG = 1 << 20


def modulated_layers(model: nn.Module) -> Iterator[tuple[str, GraspLinear]]:
    """Yield the name and the layer, for every modulated layer of a model."""
    for name, module in model.named_modules():
        if isinstance(module, GraspLinear):
            yield name, module


class GraspModel(AdapterModel):
    """A frozen model whose chosen linear layers see a modulated input.

    Made by `peft.get_peft_model`; saved, loaded and merged like any PEFT adapter.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296.

    Example:
        >>> from peft import get_peft_model
        >>> config = GraspConfig(groups=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), config)
        >>> [name for name, _ in model.base_model.modulated_layers()]
        ['0']
    """

    prefix: str = "grasp_"
    tuner_layer_cls = GraspLinear

    def modulated_layers(self) -> Iterator[tuple[str, GraspLinear]]:
        """Yield the name in the base model and the layer, for every modulated layer."""
        return modulated_layers(self.model)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Return the plain model with the adapter folded into its weights.

        A layer without a bias gets one, which holds W b, the folded shifts. Where the architecture
        has a setting for biases, such as Llama's `attention_bias`, it is switched on in
        `model.config`, so that the biases are saved and loaded; elsewhere a warning is raised.
        Arguments are those of `peft.tuners.tuners_utils.BaseTuner.merge_and_unload`.

        Raises:
            ValueError: As `GraspLinear.merge`, or an adapter is unknown.
        """
        # A merged layer has the bias of the merge; its own is in the frozen state.
        layers: list[tuple[str, Any]] = list(self.modulated_layers())
        without = [n for n, each in layers if (each._frozen or each.get_base_layer()).bias is None]
        model = super().merge_and_unload(*args, **kwargs)
        new = [name for name in without if model.get_submodule(name).bias is not None]
        if new and not _keep_biases(model):
            warnings.warn(
                f"The merged model has {len(new)} biases that its architecture does not have, such "
                f"as that of {new[0]}: save_pretrained and from_pretrained would lose them; train "
                "with GraspConfig(learn_shift=False), or save the adapter instead.",
                stacklevel=2,
            )
        return model

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
    ) -> None:
        """Add an adapter that interpolates others, around the identity.

        ``s = 1 + sum_j w_j (s_j - 1)`` and ``b = sum_j w_j b_j`` in every layer, for adapters j; a
        layer that an adapter does not modulate counts as the identity. Relative standard deviations
        are averaged with the weights ``|w_j|``. The new adapter is frozen.

        Args:
            adapters: The adapters to combine, each once; of equal ``groups``, ``grouping``,
                ``form`` and ``learn_shift``, and without task heads or other modules of their own.
            weights: Their weights w_j; of any sign.
            adapter_name: The name of the new adapter.

        Raises:
            ValueError: An adapter is unknown, repeated or has a task head, the name is taken, or
                the adapters do not match.

        Example:
            ``model.add_weighted_adapter(["a", "b"], [0.3, 0.7], "mix")``
        """
        config = self._combinable(adapters, weights, adapter_name)
        layers = {
            name for name, layer in self.modulated_layers() if layer.group_of.keys() & {*adapters}
        }
        self.peft_config[adapter_name] = replace(
            config,
            target_modules=exact_targets(layers, self.model),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
        )
        self.inject_adapter(self.model, adapter_name)
        self.set_requires_grad(adapter_name, requires_grad=False)
        for _, layer in self.modulated_layers():
            if adapter_name in layer.group_of:
                _interpolate(layer, dict(zip(adapters, weights, strict=True)), adapter_name)

    def _combinable(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str
    ) -> GraspConfig:
        """Return the configuration of adapters that can be combined."""
        for name in adapters:
            if name not in self.peft_config:
                raise ValueError(f"Adapter {name} does not exist")
        if not adapters or len(weights) != len(adapters):
            raise ValueError(
                f"{len(adapters)} adapters and {len(weights)} weights were given; there must be "
                "one weight for each of at least one adapter."
            )
        if len({*adapters}) < len(adapters):
            raise ValueError(
                f"The adapters to combine are {shown(list(adapters), 200)}, one of them more than "
                "once: name each once, with the sum of its weights."
            )
        if adapter_name in self.peft_config:
            raise ValueError(f"Adapter with name '{adapter_name}' already exists.")
        wrappers = [m for m in self.modules() if isinstance(m, ModulesToSaveWrapper)]
        if with_head := [n for n in adapters if any(n in w.modules_to_save for w in wrappers)]:
            raise ValueError(
                f"The adapter {with_head[0]!r} has a task head or other modules_to_save, which "
                "cannot be interpolated: combine adapters without any."
            )
        for field in (*_SAME_FUNCTION, "learn_shift"):
            values = {getattr(self.peft_config[name], field, None) for name in adapters}
            if len(values) > 1:
                raise ValueError(
                    f"Adapters to combine must have the same {field}, but have "
                    f"{', '.join(sorted(map(str, values)))}."
                )
        return self.peft_config[adapters[0]]

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        # peft saves the configuration after the weights.
        assert isinstance(config, GraspConfig)
        config.present_in_features = _in_features(model, adapter_name)
        return super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Check that saved weights fit the layers of the model; K does not depend on its widths."""
        assert isinstance(config, GraspConfig)
        widths, recorded = _in_features(model, adapter_name), config.in_features or {}
        names = {_plain(name): name for name, _ in modulated_layers(model)}
        remapped, saved = {}, set()
        for key, value in state_dict.items():
            layer, dot, parameter = key.rpartition(".")
            # Not a saved head, under an adapter's name that begins like a parameter.
            if parameter in cls.tuner_layer_cls.adapter_layer_names:
                saved.add(_plain(layer))
                # Either of the two models may have been compiled.
                layer = names.get(_plain(layer), layer)
            remapped[layer + dot + parameter] = value
        problems = [
            f"its layer {name} has {width} features, and here {widths[name]}"
            for name, width in recorded.items()
            if widths.get(name, width) != width
        ]
        if recorded and (foreign := sorted(saved - widths.keys())):
            problems.append(
                f"it has {len(foreign)} layers that this model lacks, such as {foreign[0]}"
            )
        if problems:
            raise ValueError(f"The adapter was made for another model: {problems[0]}.")
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, remapped)


class StochGraspModel(GraspModel):
    """A GRASP model that learns a Gaussian for every scale and shift.

    Source:
        Bal and Sengupta, GRASP, arXiv 2512.04296 (StochGRASP).
    """

    prefix: str = "stochgrasp_"
    tuner_layer_cls = StochGraspLinear

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Within the block, draw samples in evaluation instead of using the means.

        Example:
            ``with model.base_model.sampling(): logits = model(**batch).logits``
        """
        layers: list[Any] = [layer for _, layer in self.modulated_layers()]
        before = [layer.sample_in_eval for layer in layers]
        for layer in layers:
            layer.sample_in_eval = True
        try:
            yield
        finally:
            for layer, sampled in zip(layers, before, strict=True):
                layer.sample_in_eval = sampled


@torch.no_grad()
def _interpolate(layer: GraspLinear, weights: dict[str, float], adapter_name: str) -> None:
    """Set an adapter of a layer to the combination of others; see `add_weighted_adapter`."""
    scale, shift, *log_sigmas = layer.adapter_layer_names
    for kind, identity in ((scale, 1.0), (shift, 0.0)):
        values = getattr(layer, kind)
        if adapter_name in values:
            values[adapter_name].fill_(identity)
            for name in weights.keys() & values.keys():
                values[adapter_name] += weights[name] * (values[name] - identity)
    for kind in log_sigmas:
        values = getattr(layer, kind)
        shares = {n: abs(w) for n, w in weights.items() if n in values and w}
        if adapter_name in values and shares:
            mean = sum(share * values[name].exp() for name, share in shares.items())
            values[adapter_name].copy_((mean / sum(shares.values())).log())


def _in_features(model: nn.Module, adapter_name: str) -> dict[str, int]:
    return {
        _plain(name): layer.in_features
        for name, layer in modulated_layers(model)
        if adapter_name in layer.group_of
    }


def _plain(name: str) -> str:
    """Return a layer's name in the base model, without what torch.compile puts before it."""
    return base_name(name.replace("_orig_mod.", ""))


def _keep_biases(model: nn.Module) -> bool:
    """Switch on the settings under which a model is built with the biases that it has now, if any.

    Biases that come with them and that the model does not have are added as zeros.
    """
    if not isinstance(model, PreTrainedModel):
        return False
    off = [name for name in _BIAS_SETTINGS if getattr(model.config, name, None) is False]
    for names in (*([name] for name in off), off):
        config = copy.deepcopy(model.config)
        for name in names:
            setattr(config, name, True)
        with torch.device("meta"):
            built = type(model)(config).state_dict()
        if not names or model.state_dict().keys() - built.keys():
            continue
        for key in built.keys() - model.state_dict().keys():
            layer: Any = model.get_submodule(key.rpartition(".")[0])
            layer.bias = nn.Parameter(layer.weight.new_zeros(built[key].shape), requires_grad=False)
        for name in names:
            setattr(model.config, name, True)
        return True
    return False


def start_from(model: PeftModel, path: str | Path) -> None:
    """Set the active adapter and the task head of a model to those of a saved adapter, in place.

    A StochGRASP adapter also starts from a GRASP adapter: it takes its scales and shifts as means,
    and its standard deviations stay as they are.

    Raises:
        FileNotFoundError: The folder holds no adapter; the Hub is not searched.
        ValueError: The saved adapter is of another pre-trained model, of another method, of other
            layers or groups, or of a task with another head; or a file is damaged.

    Example:
        ``start_from(get_peft_model(base_model, StochGraspConfig(groups=64)), "runs/train/grasp")``
    """
    folder = Path(path)
    saved, own = saved_config(folder), model.active_peft_config
    models = [config.base_model_name_or_path or "" for config in (saved, own)]
    # All paths of a folder resolve to one; Hub ids are compared whole.
    if Path(models[0]).resolve() != Path(models[1]).resolve():
        raise ValueError(
            f"The adapter in {path} is of the model {models[0]!r} and cannot start one of the "
            f"model {models[1]!r}: give one of the same model, or, if that has moved, correct "
            f"base_model_name_or_path in {folder / CONFIG_NAME}."
        )
    there, here = (
        {
            "method": str(config.peft_type).rpartition(".")[2],
            **{name: getattr(config, name, None) for name in _SAME_FUNCTION},
        }
        for config in (saved, own)
    )
    to_stochastic = (there["method"], here["method"]) == ("GRASP", "STOCHGRASP")
    if None in (there["groups"], here["groups"]):
        # Without a number a layer has its own; the shapes are compared below.
        there["groups"] = here["groups"]
    for name, value in there.items():
        if value != here[name] and not (name == "method" and to_stochastic):
            raise ValueError(
                f"The adapter in {path} has {name} {value} and cannot start one with "
                f"{here[name]}: give one with the same {name}."
            )
    adapter = str(model.active_adapter)
    present = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    try:
        state = load_peft_weights(str(path), device="cpu")
    except SafetensorError as error:
        raise ValueError(
            f"The file {folder / SAFETENSORS_WEIGHTS_NAME} is damaged ({error}): train the adapter "
            "again."
        ) from error
    if to_stochastic:
        state = {name.replace(".grasp_", ".stochgrasp_"): v for name, v in state.items()}
        state |= {name: v for name, v in present.items() if name.endswith("_log_sigma")}
    found, shapes = ({n: tuple(v.shape) for n, v in each.items()} for each in (state, present))
    if wrong := sorted(dict(found.items() ^ shapes.items())):
        raise ValueError(
            f"The adapter in {path} cannot start this one: {len(wrong)} parameters differ, such as "
            f"{wrong[0]}, of shape {found.get(wrong[0])} there and {shapes.get(wrong[0])} here; "
            "method, layers, groups and task must be the same."
        )
    set_peft_model_state_dict(model, state, adapter_name=adapter)


def saved_config(folder: Path) -> PeftConfig:
    """Return the configuration of a saved adapter, of which both files are there.

    Raises:
        FileNotFoundError: The folder holds no adapter; the Hub is not searched.
        ValueError: The configuration is not one that peft wrote.
    """
    file = folder / CONFIG_NAME
    if not (file.is_file() and (folder / SAFETENSORS_WEIGHTS_NAME).is_file()):
        raise FileNotFoundError(
            f"The folder {folder} holds no adapter: it should hold {CONFIG_NAME} and "
            f"{SAFETENSORS_WEIGHTS_NAME}, which save_pretrained writes."
        )
    if file.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(
            f"The file {file} is larger than {_LARGEST_CONFIG >> 20} MiB: one that peft wrote is "
            "a few kilobytes."
        )
    try:
        saved = PeftConfig.from_pretrained(str(folder))
        if saved.peft_type is None:
            raise ValueError("it states no peft_type")
        if not isinstance(saved.base_model_name_or_path, str | None):
            raise ValueError("base_model_name_or_path is no text")
    except Exception as error:
        # Any error: peft checks few values of a configuration.
        raise ValueError(
            f"The file {file} is not one that peft wrote ({last_line(error)}): train the adapter "
            "again."
        ) from error
    return saved


register("grasp", GraspConfig, GraspModel)
register("stochgrasp", StochGraspConfig, StochGraspModel)
