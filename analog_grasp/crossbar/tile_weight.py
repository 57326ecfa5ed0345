"""Weights on tiles, for code that takes ``layer.weight`` instead of calling the layer.

Products with such a weight are computed on the tiles. Every other use raises an error, because a
chip returns products and never its weights.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_ATTENTION = inspect.signature(functional.multi_head_attention_forward)


class OnTiles:
    """Base class of objects that functions of torch take as weights.

    ``torch.nn.functional.linear``, matrix products and ``multi_head_attention_forward`` are
    computed on the tiles; the fused inference kernels of torch, which read weights from memory,
    are not chosen for such objects.
    """

    name: str

    @property
    def frozen(self) -> Tensor:
        """The frozen weight or parameter."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """The shape of the frozen weight."""
        return self.frozen.shape

    @property
    def dtype(self) -> torch.dtype:
        """The type of the frozen weight."""
        return self.frozen.dtype

    @property
    def device(self) -> torch.device:
        """Device of the frozen weight."""
        return self.frozen.device

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        product = _PRODUCTS.get(function)
        result = NotImplemented if product is None else product(*args, **(kwargs or {}))
        if result is NotImplemented:
            weight = next(a for a in (*args, *(kwargs or {}).values()) if isinstance(a, OnTiles))
            raise RuntimeError(_sentence(weight.name, f"torch's {_name(function)}"))
        return result


class TileWeight(OnTiles):
    """The weight of one layer on tiles.

    Args:
        layer: The layer, `CrossbarLinear` or `AihwkitLinear`.
        transposed: Represent ``(D, D_out)``, as ``Conv1D`` stores its weight, in place of
            ``(D_out, D)``.

    Attributes:
        transposed: The weight represents ``(D, D_out)``.

    Raises:
        RuntimeError: A function other than a product is called with the weight.
        AttributeError: An attribute of a tensor is read that needs the values of the weight.

    Example:
        >>> from analog_grasp.crossbar.linear import CrossbarLinear
        >>> from analog_grasp.devices.card import DeviceCard
        >>> layer = CrossbarLinear(nn.Linear(3, 2), DeviceCard.load("ideal"), "dense")
        >>> functional.linear(torch.ones(5, 3), layer.weight, layer.bias).shape
        torch.Size([5, 2])
        >>> layer.weight.sum()
        Traceback (most recent call last):
        ...
        AttributeError: The weight of the layer dense is on crossbar tiles, which return products \
only, but 'sum' of the weight was used: keep the layer digital (argument layers), fold the adapter \
(placement='folded'), or read deployment.weights().
    """

    requires_grad = False
    grad = None
    is_meta = False

    def __init__(self, layer: nn.Module, transposed: bool = False) -> None:
        self._layer, self.transposed = layer, transposed
        self.name: str = cast(Any, layer).name

    @property
    def shape(self) -> torch.Size:
        """``(D_out, D)``, or ``(D, D_out)`` where transposed."""
        shape = self.frozen.shape
        return torch.Size(reversed(shape)) if self.transposed else shape

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def T(self) -> "TileWeight":  # noqa: N802 - as torch names it
        """The transposed weight."""
        return TileWeight(self._layer, not self.transposed)

    @property
    def mT(self) -> "TileWeight":  # noqa: N802 - as torch names it
        """The transposed weight."""
        return self.T

    def t(self) -> "TileWeight":
        """Return the transposed weight."""
        return self.T

    def dim(self) -> int:
        """Return 2."""
        return 2

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or the length of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        """Return the number of weights."""
        return self.shape.numel()

    def __matmul__(self, x: Tensor) -> Tensor:
        return torch.matmul(cast(Tensor, self), x)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        return torch.matmul(x, cast(Tensor, self))

    def _no_values(self, *_: object) -> Any:
        raise RuntimeError(_sentence(self.name, "the values"))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _no_values
    __neg__ = __getitem__ = _no_values

    def product(self, x: Tensor, transposed: bool) -> Any:
        """Return ``x W^T`` from the tiles, without the bias.

        Args:
            x: Inputs, ``(..., D)``.
            transposed: The caller multiplies by ``(D, D_out)`` from the right.
        """
        if transposed != self.transposed:
            return NotImplemented
        return self._layer(x, add_bias=False)

    @property
    def frozen(self) -> Tensor:
        """The frozen weight, ``(D_out, D)``."""
        return cast(Any, self._layer).frozen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_layer":
            raise AttributeError(name)
        raise AttributeError(_sentence(self.name, repr(name)))


class FusedTiles(nn.ModuleList, OnTiles):
    """The tile sets of one fused parameter: a set per expert, or per projection of attention.

    Takes the place of the parameter in its module. ``fused[i]`` is the `TileWeight` of set i.

    Args:
        name: The name of the parameter in the base model.
        layers: The layers on tiles, in their order in the parameter.
        parameter: The frozen parameter: ``(E, ., .)`` of E experts, or ``(3 D_out, D)``.
        transposed: Each expert is stored as ``(D, D_out)``.
    """

    def __init__(
        self, name: str, layers: Sequence[nn.Module], parameter: Tensor, transposed: bool
    ) -> None:
        super().__init__(layers)
        self.name = name
        # In a tuple, so that it is no parameter of the deployed model.
        self._parameter = (parameter.detach(),)
        self.transposed = transposed

    @property
    def frozen(self) -> Tensor:
        """The frozen parameter."""
        return self._parameter[0]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "name":
                raise
            raise AttributeError(_sentence(self.name, repr(name))) from None

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or (isinstance(index, Tensor) and index.numel() != 1):
            raise RuntimeError(_sentence(self.name, "a selection of several experts"))
        layer: Any = self._modules[str(int(index) % len(self))]
        return TileWeight(layer, self.transposed)

    def batched(self, x: Tensor) -> Tensor:
        """Return the products of the experts, ``(E, N, D_out)``, with inputs ``(E, N, D)``."""
        return torch.stack([self[i].product(part, self.transposed) for i, part in enumerate(x)])


def reject_loading(name: str) -> None:
    """Raise the error for a state dict that has weights for a layer on tiles."""
    raise RuntimeError(
        f"The state dict has weights for the layer {name}, which is on crossbar tiles and is "
        "programmed, not loaded: load it into the digital model and deploy that."
    )


def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, TileWeight):
        return NotImplemented
    y = weight.product(x, transposed=False)
    return y if bias is None or y is NotImplemented else y + bias.to(y.dtype)


def _matmul(a: Any, b: Any) -> Any:
    if isinstance(b, TileWeight):
        return b.product(a, transposed=True)
    if not isinstance(a, TileWeight):
        return NotImplemented
    if b.dim() == 1:
        return a.product(b, transposed=False)
    y = a.product(b.mT, transposed=False)
    return y if y is NotImplemented else y.mT


def _addmm(bias: Tensor, x: Tensor, weight: Any) -> Any:
    y = _matmul(x, weight)
    return y if y is NotImplemented else y + bias.to(y.dtype)


def _bmm(x: Any, weight: Any) -> Any:
    if not isinstance(weight, FusedTiles) or not weight.transposed:
        return NotImplemented
    return weight.batched(x)


def _attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """``multi_head_attention_forward``, with projections of which some are on tiles."""
    call = _ATTENTION.bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    if given["use_separate_proj_weight"]:
        weights = [given[f"{which}_proj_weight"] for which in "qkv"]
    else:
        fused = given["in_proj_weight"]
        weights = list(fused.chunk(3)) if isinstance(fused, Tensor) else [fused[i] for i in "012"]
    bias = given["in_proj_bias"]
    biases = (None, None, None) if bias is None else bias.chunk(3)
    for name, weight, part in zip(("query", "key", "value"), weights, biases, strict=True):
        given[name] = functional.linear(given[name], weight, part)
    # What is left is the attention itself: the projections that torch applies are the identity.
    size = given["embed_dim_to_check"]
    identity = torch.eye(size, dtype=given["query"].dtype, device=given["query"].device)
    projection, bias = given["out_proj_weight"], given["out_proj_bias"]
    given |= {"in_proj_weight": identity.repeat(3, 1), "in_proj_bias": None}
    given |= {"out_proj_weight": identity, "out_proj_bias": None, "use_separate_proj_weight": False}
    attended, weights_of_attention = functional.multi_head_attention_forward(**given)
    return functional.linear(attended, projection, bias), weights_of_attention


_PRODUCTS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    torch.addmm: _addmm,
    torch.bmm: _bmm,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.bmm: _bmm,
    functional.multi_head_attention_forward: _attention,
}


def _sentence(name: str, use: str) -> str:
    return (
        f"The weight of the layer {name} is on crossbar tiles, which return products only, but "
        f"{use} of the weight was used: keep the layer digital (argument layers), fold the "
        "adapter (placement='folded'), or read deployment.weights()."
    )


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", str(function))
