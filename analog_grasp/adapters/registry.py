"""Registry of the adapters that can be compared, by name.

Importing this module loads neither torch nor peft.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.types import Placement, ProgrammingError

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.config import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel


# The endings of the names in transformers: query, key and value, or one layer with all of them.
_ATTENTION = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
    *((name,) for name in ("qkv_proj", "Wqkv", "query_key_value", "c_attn", "qkv", "in_proj")),
)
# The second layer of the feed-forward block. BERT's name is also that of its attention's output.
_FEED_FORWARD = (
    *("down_proj", "fc2", "ffn.lin2", "ffn_output", "wo", "mlp.c_proj", "mlp.Wo"),
    *("dense_4h_to_h", "output.dense"),
)


@dataclass(frozen=True)
class AdapterMethod:
    """An adapter as users name it.

    Attributes:
        title: Its name in figures and tables.
        trains: The parameters that it trains, with its fixed settings.
        placements: Where it can be placed once the model is deployed: ``"digital"``, exact
            arithmetic outside the tiles; ``"folded"``, merged into the weights that are programmed;
            ``"programmed"``, in analog devices of its own.
        learning_rate: The peak learning rate by default.
        reference: The publication.
        config: Returns the PEFT configuration; None for a model that is trained whole.
    """

    title: str
    trains: str
    placements: tuple[Placement, ...]
    learning_rate: float
    reference: str
    config: "Callable[..., PeftConfig] | None"


# Samplings of StochGRASP that draw cross-points of the folded matrix.
_CROSS_POINTS = ("weight", "token")
# Settings of GRASP, which StochGRASP has too.
_GRASP = ("groups", "grouping", "form", "target_modules")
_STOCHGRASP = (*_GRASP, "noise_weight", "noise_target", "noise_loss", "init_sigma", "sampling")


def _grasp(task_type: str | None, **settings: Any) -> "PeftConfig":
    from analog_grasp.adapters.config import GraspConfig

    return GraspConfig(task_type=task_type, **_chosen(settings, *_GRASP))


def _stochgrasp(task_type: str | None, **settings: Any) -> "PeftConfig":
    from analog_grasp.adapters.config import StochGraspConfig

    return StochGraspConfig(task_type=task_type, **_chosen(settings, *_STOCHGRASP))


def _chosen(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


def _lora(
    task_type: str | None,
    model: "nn.Module",
    target_modules: "str | list[str]" = "all-linear",
    **_: object,
) -> "PeftConfig":
    # "all-linear", the default of GRASP, leaves LoRA its own layers; see "lora-all-linear".
    if target_modules == "all-linear":
        found = _attention_layers(model)
        # Query and value of three, or the one that is fused.
        target_modules = sorted({found[0], found[-1]})
    return _lora_config(task_type, model, target_modules, alpha=16)


def _lora_all(task_type: str | None, model: "nn.Module", **_: object) -> "PeftConfig":
    from analog_grasp.adapters.frozen import exact_targets

    targets = exact_targets(_linear_names(model), model)
    return _lora_config(task_type, model, targets, alpha=32)


def _lora_config(
    task_type: str | None, model: "nn.Module", targets: "str | list[str]", alpha: int
) -> "PeftConfig":
    from peft import LoraConfig

    return LoraConfig(
        task_type=task_type,
        r=8,
        lora_alpha=alpha,
        target_modules=targets,
        fan_in_fan_out=_model_type(model) == "gpt2",
    )


def _ia3(task_type: str | None, model: "nn.Module", **_: object) -> "PeftConfig":
    from peft import IA3Config
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    targets, feed_forward = None, None
    if _model_type(model) not in KNOWN:
        present = (ending for ending in _FEED_FORWARD if _is_in(model, ending))
        feed_forward = list(present)[:1]
        # Key and value of three, or the one that is fused.
        targets = [*_attention_layers(model)[-2:], *feed_forward]
    return IA3Config(
        task_type=task_type,
        target_modules=targets,
        feedforward_modules=feed_forward,
        fan_in_fan_out=_model_type(model) == "gpt2",
    )


def _attention_layers(model: "nn.Module") -> tuple[str, ...]:
    """Return the endings of the names of the query, key and value layers, or of the fused one."""
    for endings in _ATTENTION:
        if all(_is_in(model, ending) for ending in endings):
            return endings
    raise ValueError(
        f"A {type(model).__name__} has no layers that are named like query and value projections: "
        "give target_modules, or use the adapter lora-all-linear."
    )


def _is_in(model: "nn.Module", ending: str) -> bool:
    return any(f".{name}".endswith(f".{ending}") for name in _linear_names(model))


def _linear_names(model: "nn.Module") -> list[str]:
    from analog_grasp.adapters.frozen import base_name, linear_paths

    return [base_name(path) for path in linear_paths(model)]


def _model_type(model: "nn.Module") -> str | None:
    """Return the architecture; the layers of ``"gpt2"`` store their weight transposed."""
    return getattr(getattr(model, "config", None), "model_type", None)


def _bitfit(task_type: str | None, **_: object) -> "PeftConfig":
    from analog_grasp.adapters.bitfit import BitFitConfig

    return BitFitConfig(task_type=task_type)


def _head(task_type: str | None, **_: object) -> "PeftConfig":
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    # With these, peft adapts no layer: the task head alone is trained and saved.
    return LoraConfig(task_type=task_type, target_modules=DUMMY_TARGET_MODULES)


_UNPROGRAMMED: tuple[Placement, ...] = ("digital", "folded")
_EVERYWHERE: tuple[Placement, ...] = (*_UNPROGRAMMED, "programmed")

ADAPTERS: dict[str, AdapterMethod] = {
    "grasp": AdapterMethod(
        "GRASP", "K shared scale-and-shift pairs on the inputs of linear layers",
        _EVERYWHERE, 2e-2, "Bal and Sengupta, arXiv 2512.04296", _grasp,
    ),
    "stochgrasp": AdapterMethod(
        "StochGRASP", "a Gaussian for each scale and shift of GRASP",
        _EVERYWHERE, 2e-2, "Bal and Sengupta, arXiv 2512.04296", _stochgrasp,
    ),
    "lora": AdapterMethod(
        "LoRA", "two matrices of rank 8 (alpha 16) for each query and value projection",
        _EVERYWHERE, 3e-3, "Hu et al., arXiv 2106.09685", _lora,
    ),
    "lora-all-linear": AdapterMethod(
        "LoRA, all layers", "two matrices of rank 8 (alpha 32) for each linear layer",
        _EVERYWHERE, 5e-4, "Li et al., arXiv 2411.17367", _lora_all,
    ),
    "ia3": AdapterMethod(
        "(IA)^3", "a scale for every key, value and feed-forward feature",
        _UNPROGRAMMED, 4e-2, "Liu et al., arXiv 2205.05638", _ia3,
    ),
    "bitfit": AdapterMethod(
        "BitFit", "the biases of linear and norm layers",
        _UNPROGRAMMED, 3e-3, "Ben Zaken, Ravfogel and Goldberg, arXiv 2106.10199", _bitfit,
    ),
    "head": AdapterMethod("linear head", "the task head alone", _UNPROGRAMMED, 1e-2, "-", _head),
    "full": AdapterMethod(
        "full fine-tuning", "all weights of the model", ("folded",), 5e-5, "-", None
    ),
}  # fmt: skip
_BUILT_IN = tuple(ADAPTERS.values())


def adapt(
    model: "PreTrainedModel", name: str, *, task_type: str | None = "SEQ_CLS", **settings: object
) -> "PeftModel | PreTrainedModel":
    """Return a model with a new adapter, whose task head is trained and saved with it.

    Args:
        model: The pre-trained model, which becomes part of the returned one.
        name: A key of `ADAPTERS`. With ``"full"`` the model itself is returned, all of its
            parameters trainable; it is saved and loaded as any transformers model.
        task_type: The task type as PEFT names it: ``"SEQ_CLS"``, ``"CAUSAL_LM"``, ...; or None.
        settings: ``groups``, ``grouping``, ``form``, ``target_modules``, ``noise_weight``,
            ``noise_target`` and ``sampling``; each adapter uses those that it has, and an entry
            that is added to `ADAPTERS` receives all that are given. LoRA is on the
            query and value projections where ``target_modules`` is ``"all-linear"``, which
            ``"lora-all-linear"`` takes literally.

    Raises:
        ValueError: An unknown adapter or setting, a setting that is out of range or does not fit
            the model, a name in ``target_modules`` that matches nothing, or a model in which LoRA
            or (IA)^3 recognises no layers.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertForSequenceClassification
        >>> tiny = DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=10)
        >>> adapted = adapt(DistilBertForSequenceClassification(tiny), "bitfit")
        >>> sorted(adapted.active_peft_config.modules_to_save)
        ['classifier', 'pre_classifier', 'score']
    """
    from peft import get_peft_model

    from analog_grasp.adapters.frozen import check_targets, head_names, save_head

    method = _method(name)
    unknown = [each for each in settings if each not in _STOCHGRASP]
    if unknown and method in _BUILT_IN:
        raise ValueError(unknown_name("setting", unknown[0], _STOCHGRASP))
    make = method.config
    if make is None:
        return model.requires_grad_(True)
    config = make(task_type=task_type, model=model, **settings)
    if name == "head" and not head_names(model):
        raise ValueError(
            f"A {type(model).__name__} has no task head to train: use another adapter."
        )
    check_targets(config, model)
    save_head(config, model)
    return get_peft_model(model, config)


def kind_of(model: "nn.Module") -> str | None:
    """Return the name in `ADAPTERS` of a model's active adapter, None for another PEFT method.

    A model without an adapter counts as one that is trained whole.

    Example:
        >>> from torch import nn
        >>> kind_of(nn.Linear(6, 2))
        'full'
    """
    from peft import PeftModel
    from peft.utils.constants import DUMMY_TARGET_MODULES

    from analog_grasp.adapters.frozen import are_all_wrapped

    if not isinstance(model, PeftModel):
        return "full"
    config = model.active_peft_config
    if getattr(config, "target_modules", None) == DUMMY_TARGET_MODULES:
        return "head"
    name = str(config.peft_type).rpartition(".")[2].lower()
    if name == "lora" and are_all_wrapped(model):
        return "lora-all-linear"
    return name if name in ADAPTERS else None


def own_learning_rate(model: "nn.Module") -> float:
    """Return the default peak learning rate of a model's adapter; GRASP's for other methods."""
    return ADAPTERS[kind_of(model) or "grasp"].learning_rate


def check_placement(name: str, placement: str) -> None:
    """Raise an error if an adapter does not have a placement.

    Raises:
        ValueError: The adapter is unknown, or cannot be placed there.

    Example:
        >>> check_placement("lora", "folded")
    """
    method = _method(name)
    if placement not in method.placements:
        raise ValueError(
            f"The adapter {name!r} cannot have the placement {placement!r}, as it trains "
            f"{method.trains}: use {' or '.join(method.placements)}."
        )


def check_sampling(form: str, sampling: str) -> None:
    """Raise ValueError where a form of GRASP has no such sampling.

    Example:
        >>> check_sampling("normalize", "group")
    """
    if form == "normalize" and sampling in _CROSS_POINTS:
        raise ValueError(
            f"The sampling is {sampling!r}, but the cross-points of the form 'normalize' have no "
            "Gaussian errors: sample by 'feature' or 'group', or use the form 'affine'."
        )


def check_programmable(form: str, sampling: str) -> None:
    """Raise ValueError where analog devices cannot store the parameters of GRASP.

    Example:
        >>> check_programmable("affine", "group")
    """
    stated = "The placement is 'programmed', but the adapter"
    if form == "normalize":
        raise ValueError(
            f"{stated} has the form 'normalize', which divides by values that devices would "
            "store: use the form 'affine', or the placement 'digital' or 'folded'."
        )
    if sampling in _CROSS_POINTS:
        raise ValueError(
            f"{stated} is sampled by {sampling}, so that its parameters are in the folded "
            "cross-points: use the placement 'folded'."
        )


def check_programming_error(adapter: str | None, error: ProgrammingError) -> None:
    """Raise ValueError where an adapter has not learned the error that programs it.

    Example:
        >>> check_programming_error("stochgrasp", "learned")
    """
    if error == "learned" and adapter != "stochgrasp":
        raise ValueError(
            "The setting programming_error is 'learned', but the standard deviations of "
            f"{adapter} are not learned: give StochGRASP adapters only, or 'device'."
        )


def _method(name: str) -> AdapterMethod:
    if name not in ADAPTERS:
        raise ValueError(unknown_name("adapter", name, ADAPTERS))
    return ADAPTERS[name]
