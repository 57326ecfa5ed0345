"""Where the weights of adapted models lie: those of one pre-trained model once, and aligned."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from analog_grasp.adapters.frozen import base_name

# Bytes at whose multiples torch puts the tensors that it allocates.
_ALIGNMENT = 64


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


def align(models: Iterable[nn.Module]) -> None:
    """Move tensors to where torch itself would put them, in place.

    A tensor of a memory-mapped file may begin anywhere, and libraries for matrix products round
    their sums by where the numbers lie: in this process otherwise than in a worker, whose copy
    torch has placed.

    Args:
        models: Of which tensors may be shared, and remain so.

    Example:
        >>> model = nn.Linear(3, 3)
        >>> model.weight.data = torch.arange(10.0)[1:].view(3, 3)
        >>> align([model])
        >>> model.weight.data_ptr() % 64
        0
    """
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.data_ptr() % _ALIGNMENT:
                tensor.data = tensor.data.clone()


def _frozen(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every frozen parameter: its name in the base model, and where it is."""
    for path, module in model.named_modules():
        for part, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                yield f"{base_name(path)}.{part}", module, part, parameter


def _equal(first: nn.Parameter, second: nn.Parameter) -> bool:
    alike = (first.dtype, first.device) == (second.dtype, second.device)
    return alike and torch.equal(first, second)
