"""Hooks on the layers of a model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn


@contextmanager
def replaced_forward(functions: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Let modules compute by functions within the block.

    Example:
        >>> import torch
        >>> layer = nn.Linear(3, 2)
        >>> with replaced_forward({layer: lambda x: 2 * x}):
        ...     layer(torch.ones(2))
        tensor([2., 2.])
    """
    # An instance can have a forward of its own, such as that of accelerate's hooks.
    before = {module: vars(module).get("forward") for module in functions}
    try:
        for module, function in functions.items():
            vars(module)["forward"] = function
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


@contextmanager
def seen_inputs[Layer: nn.Module](
    layers: Mapping[str, Layer], see: Callable[[str, Layer, Tensor], object]
) -> Iterator[None]:
    """Pass the name, the layer and its inputs to `see` before a layer computes within the block.

    Example:
        >>> import torch
        >>> layer = nn.Linear(3, 2)
        >>> with seen_inputs({"dense": layer}, lambda name, _, x: print(name, tuple(x.shape))):
        ...     _ = layer(torch.ones(5, 3))
        dense (5, 3)
    """

    def before(name: str, layer: Layer, inputs: tuple[Tensor, ...]) -> None:
        see(name, layer, inputs[0])

    with ExitStack() as handles:
        for name, layer in layers.items():
            handles.enter_context(layer.register_forward_pre_hook(partial(before, name)))
        yield
