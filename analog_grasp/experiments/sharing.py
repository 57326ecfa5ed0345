"""Adapters of one pre-trained model, which hold its weights together."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from analog_grasp.adapters.frozen import base_name


def share_frozen(models: Iterable[nn.Module]) -> None:
    """Let models that hold equal frozen parameters hold the same ones, in place.

    Adapters that were loaded one by one each bring their own copy of the pre-trained model; after
    this they take the memory of one, also when they are pickled together or moved to a GPU. What
    is trainable, or differs in a single bit, stays a model's own.

    Args:
        models: Under whichever adapters.

    Example:
        >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> for model in (first, second):
        ...     _ = model.requires_grad_(False)
        >>> second.weight.copy_(first.weight) is second.weight
        True
        >>> share_frozen([first, second])
        >>> second.weight is first.weight, second.bias is first.bias
        (True, False)
    """
    held: dict[str, nn.Parameter] = {}
    for model in models:
        for name, module, part, parameter in _frozen(model):
            first = held.setdefault(name, parameter)
            if first is not parameter and _equal(first, parameter):
                setattr(module, part, first)


def _frozen(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every frozen parameter: its name in the base model, and where it is."""
    for path, module in model.named_modules():
        for part, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                yield f"{base_name(path)}.{part}", module, part, parameter


def _equal(first: nn.Parameter, second: nn.Parameter) -> bool:
    alike = (first.dtype, first.device) == (second.dtype, second.device)
    return alike and torch.equal(first, second)
