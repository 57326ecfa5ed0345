"""The parameters of an adapter that a fit on chips changes, and checks that it can change them."""

from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from analog_grasp.crossbar import Deployment

SAVED = ".modules_to_save."
"""Part of the names of parameters of the task head and other modules saved with an adapter."""


def adapter_parameters(model: PeftModel) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the active digital adapter and the task head, by name."""
    # PEFT's prompts and prefixes have no layers, and so no prefix of their names.
    own = (str(getattr(model.base_model, "prefix", "prompt_encoder.")), SAVED)
    active = f".{model.active_adapter}."
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if active in f"{name}." and any(part in name for part in own)
    ]


def set_parameters(model: PeftModel, values: dict[str, Tensor]) -> None:
    """Write the parameters of the adapter and the head, by name."""
    with torch.no_grad():
        for name, parameter in adapter_parameters(model):
            parameter.copy_(values[name])


def own_copy(deployment: Deployment, model: PeftModel) -> PeftModel:
    """Return a copy of a model on a chip with an adapter and a task head of its own."""
    return cast(PeftModel, deployment.copy_model(model, own=dict(adapter_parameters(model))))


def check_deployed(deployment: Deployment, model: nn.Module | None) -> PeftModel:
    """Return the model on a chip whose adapter is to be fitted: by default ``deployment.model``.

    Raises:
        ValueError: The adapter is folded, programmed or absent.
    """
    if not isinstance(deployment, Deployment):
        raise ValueError(
            f"The deployment is a {type(deployment).__name__}: what deploy returns is accepted."
        )
    model = deployment.model if model is None else model
    if deployment.placement != "digital":
        raise ValueError(
            f"The adapter is {deployment.placement}, on the devices of the chip, which stay as "
            "they are: only an adapter deployed with placement='digital' can be recalibrated."
        )
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"The model, a {type(model).__name__}, has no adapter: only a digital PEFT adapter can "
            "be recalibrated."
        )
    on_chip = set(map(id, model.modules()))
    if not all(id(layer) in on_chip for layer in deployment.layers.values()):
        raise ValueError(
            "The model is not on this chip: deployment.attach(model) returns one that is."
        )
    if not adapter_parameters(model):
        raise ValueError("The active adapter has no parameter and no task head to recalibrate.")
    check_enabled(model)
    return model


def check_adapter(model: nn.Module) -> None:
    """Raise ValueError unless a model has an adapter or a head that stays digital."""
    if not isinstance(model, PeftModel) or not adapter_parameters(model):
        raise ValueError(
            f"The model, a {type(model).__name__}, has no adapter to distil on simulated chips: a "
            "PEFT adapter or a task head, which stay digital, is required."
        )
    check_enabled(model)


def check_enabled(model: nn.Module) -> None:
    """Raise ValueError where an adapter has no effect of its own on the outputs."""
    layers = [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
    if any(layer.merged or layer.disable_adapters for layer in layers):
        raise ValueError(
            "The adapter is merged or disabled: only one that is unmerged and enabled can be "
            "trained or recalibrated."
        )
