"""The adapters that can be compared, by name: GRASP, StochGRASP and what they are held against."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.config import PeftConfig
from peft.utils.constants import (
    DUMMY_TARGET_MODULES,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedModel

from analog_grasp.adapters.bitfit import BitFitConfig
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.frozen import head_names, save_head
from analog_grasp.adapters.full import FullConfig
from analog_grasp.utils.types import Placement


@dataclass(frozen=True)
class AdapterMethod:
    """One adapter as users name it.

    Attributes:
        title: As figures and tables spell it out.
        trains: What is learned, and with which fixed settings.
        placements: Where it can live once the model is deployed: ``"digital"``, exact arithmetic
            beside the chip; ``"folded"``, merged into the weights that are programmed;
            ``"programmed"``, in analog devices of its own.
        learning_rate: The peak learning rate that suits it.
        reference: The publication.
        config: Gives the PEFT configuration from the settings that its `PeftConfig` has.
    """

    title: str
    trains: str
    placements: tuple[Placement, ...]
    learning_rate: float
    reference: str
    config: Callable[..., PeftConfig]


def _grasp(
    task_type: str | None, groups: int, target_modules: str | list[str], **_: object
) -> PeftConfig:
    return GraspConfig(task_type=task_type, groups=groups, target_modules=target_modules)


def _stochgrasp(
    task_type: str | None,
    groups: int,
    target_modules: str | list[str],
    noise_weight: float,
    noise_target: float | str,
    sampling: str,
    **_: object,
) -> PeftConfig:
    return StochGraspConfig(
        task_type=task_type,
        groups=groups,
        target_modules=target_modules,
        noise_weight=noise_weight,
        noise_target=noise_target,
        sampling=sampling,  # type: ignore[arg-type]  # checked by the configuration itself
    )


# Where LoRA and (IA)^3 sit in models that peft has no entry for, by the same rule as in the others.
_LORA_TARGETS = {
    "albert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "vit": ["q_proj", "v_proj"],
}
_IA3_TARGETS = {
    "albert": ["key", "value", "ffn_output"],
    "distilbert": ["k_lin", "v_lin", "ffn.lin2"],
    "electra": ["key", "value", "output.dense"],
    "vit": ["k_proj", "v_proj", "mlp.fc2"],
}


def _lora(task_type: str | None, model_type: str | None = None, **_: object) -> PeftConfig:
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return LoraConfig(
        task_type=task_type,
        r=8,
        lora_alpha=16,
        target_modules=_place("LoRA", model_type, _LORA_TARGETS, known),
        # The Conv1D of GPT-2 stores its weight transposed.
        fan_in_fan_out=model_type == "gpt2",
    )


def _ia3(task_type: str | None, model_type: str | None = None, **_: object) -> PeftConfig:
    known = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    targets = _place("(IA)^3", model_type, _IA3_TARGETS, known)
    return IA3Config(
        task_type=task_type,
        target_modules=targets,
        # peft has its own, too, for the models that it knows.
        feedforward_modules=targets[2:] if targets else None,
        fan_in_fan_out=model_type == "gpt2",
    )


def _place(
    title: str, model_type: str | None, ours: dict[str, list[str]], known: Mapping[str, object]
) -> list[str] | None:
    """The layers that a method sits in; None leaves them to peft."""
    if model_type is not None and model_type not in ours.keys() | known.keys():
        raise ValueError(
            f"{title} has no set place in a {model_type}: use another adapter, or one of "
            f"{', '.join(sorted(ours.keys() | known.keys()))}."
        )
    return ours.get(model_type or "")


def _bitfit(task_type: str | None, **_: object) -> PeftConfig:
    return BitFitConfig(task_type=task_type)


def _head(task_type: str | None, **_: object) -> PeftConfig:
    # peft's own way to say: no module is adapted, only the task head is trained and saved.
    return LoraConfig(task_type=task_type, target_modules=DUMMY_TARGET_MODULES)


def _full(task_type: str | None, **_: object) -> PeftConfig:
    return FullConfig(task_type=task_type)


ADAPTERS: dict[str, AdapterMethod] = {
    "grasp": AdapterMethod(
        "GRASP",
        "K shared scale-and-shift pairs on the inputs of linear layers",
        ("digital", "folded", "programmed"),
        1e-2,
        "Bal and Sengupta, arXiv 2512.04296",
        _grasp,
    ),
    "stochgrasp": AdapterMethod(
        "StochGRASP",
        "a Gaussian for each of GRASP's numbers",
        ("digital", "folded", "programmed"),
        1e-2,
        "Bal and Sengupta, arXiv 2512.04296",
        _stochgrasp,
    ),
    "lora": AdapterMethod(
        "LoRA",
        "two matrices of rank 8 (alpha 16) beside the query and the value projections",
        ("digital", "folded", "programmed"),
        3e-3,
        "Hu et al., arXiv 2106.09685",
        _lora,
    ),
    "ia3": AdapterMethod(
        "(IA)^3",
        "a scale for every key, value and feed-forward feature, where peft places it",
        ("digital", "folded"),
        1e-2,
        "Liu et al., arXiv 2205.05638",
        _ia3,
    ),
    "bitfit": AdapterMethod(
        "BitFit",
        "the biases of linear and norm layers",
        ("digital", "folded"),
        3e-3,
        "Ben Zaken, Ravfogel and Goldberg, arXiv 2106.10199",
        _bitfit,
    ),
    "head": AdapterMethod(
        "linear head", "the task head alone", ("digital", "folded"), 1e-2, "-", _head
    ),
    "full": AdapterMethod(
        "full fine-tuning", "all weights of the model", ("folded",), 5e-5, "-", _full
    ),
}


def adapter_config(
    name: str, *, task_type: str | None = "SEQ_CLS", **settings: object
) -> PeftConfig:
    """Return the PEFT configuration of an adapter by its name.

    Args:
        name: A key of `ADAPTERS`.
        task_type: As peft names it: ``"SEQ_CLS"``, ``"CAUSAL_LM"``, ...; None for none of these.
        settings: ``groups``, ``target_modules``, ``noise_weight``, ``noise_target``, ``sampling``
            and ``model_type``, the transformers name of the model's kind, by which LoRA and
            (IA)^3 choose their layers; each adapter takes those that it has.

    Raises:
        ValueError: An unknown name, a setting out of its range, or a kind of model in which the
            method has no set place.

    Example:
        >>> adapter_config("lora", task_type="CAUSAL_LM", model_type="gpt2").r
        8
    """
    return _method(name).config(task_type=task_type, **settings)


def adapt(
    model: PreTrainedModel, name: str, *, task_type: str | None = "SEQ_CLS", **settings: object
) -> PeftModel:
    """Return a model with a new adapter, whose task head is trained and saved with it.

    Args:
        model: The pre-trained model, which becomes part of what is returned.
        name: A key of `ADAPTERS`.
        task_type: As in `adapter_config`.
        settings: As in `adapter_config`; the kind of model is known here.

    Raises:
        ValueError: As `adapter_config`; or the settings do not fit the model.

    Example:
        >>> from transformers import DistilBertConfig, DistilBertForSequenceClassification
        >>> tiny = DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=10)
        >>> adapted = adapt(DistilBertForSequenceClassification(tiny), "bitfit")
        >>> sorted(adapted.active_peft_config.modules_to_save)
        ['classifier', 'pre_classifier', 'score']
    """
    settings["model_type"] = model.config.model_type
    config = adapter_config(name, task_type=task_type, **settings)
    save_head(config, model)
    if name == "head" and not head_names(model):
        raise ValueError(
            f"A {type(model).__name__} has no task head to train: use another adapter."
        )
    adapted = get_peft_model(model, config)
    # peft adds the heads that it knows, even to a list that has them.
    config.modules_to_save = list(dict.fromkeys(config.modules_to_save or ())) or None
    return adapted


def kind_of(config: PeftConfig) -> str | None:
    """The name in `ADAPTERS` of the adapter that a PEFT configuration describes, if it has one.

    Example:
        >>> kind_of(adapter_config("head")), kind_of(adapter_config("lora"))
        ('head', 'lora')
    """
    if getattr(config, "target_modules", None) == DUMMY_TARGET_MODULES:
        return "full" if isinstance(config, FullConfig) else "head"
    name = str(config.peft_type).rpartition(".")[2].lower()
    return name if name in ADAPTERS else None


def check_placement(name: str, placement: str) -> None:
    """Refuse a placement that an adapter does not have.

    Args:
        name: A key of `ADAPTERS`.
        placement: One of `Placement`.

    Raises:
        ValueError: The adapter is unknown, or cannot live there.

    Example:
        >>> check_placement("lora", "folded")
    """
    method = _method(name)
    if placement not in method.placements:
        raise ValueError(
            f"The adapter '{name}' cannot have the placement '{placement}', as it trains "
            f"{method.trains}: use {' or '.join(method.placements)}."
        )


def _method(name: str) -> AdapterMethod:
    if name not in ADAPTERS:
        close = difflib.get_close_matches(name, ADAPTERS, n=1)
        hint = f"did you mean '{close[0]}'? The" if close else "the"
        raise ValueError(
            f"There is no adapter '{name}': {hint} adapters are {', '.join(ADAPTERS)}."
        )
    return ADAPTERS[name]
