"""Layers on tiles, and their weights for code that takes ``layer.weight`` instead of calling them.

Products with such a weight are computed on the tiles. Every other use raises an error, because a
chip returns products and never its weights.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.frozen import FrozenLayer, by_output
from analog_grasp.crossbar.first_tokens import FirstTokens
from analog_grasp.devices.card import DeviceCard
from analog_grasp.utils.seed import derive_seed

_ATTENTION = inspect.signature(functional.multi_head_attention_forward)


class ChipLayer(nn.Module):
    """A frozen linear layer on tiles: `CrossbarLinear`, or `AihwkitLinear`.

    The layer refers to the frozen weight, which it never writes. ``to(device)`` moves the tiles; a
    conversion of the model to another type, such as ``half()``, does not change them, as a chip's
    precision is not that of the digital arithmetic. D: input features, D_out: output features.

    Args:
        layer: ``nn.Linear``, or ``Conv1D`` whose weight is stored transposed.
        card: The device.
        name: The layer's name in the base model, which determines its devices on a chip.

    Attributes:
        frozen: The frozen weight, ``(D_out, D)``.
        bias: The digital bias, ``(D_out,)``, or None.
        input_range: The DAC's full scale for the inputs; None for the converters' own scaling.
        output_ranges: The ADC's largest output for each tile; None for the converters' own.
        input_scale: The factors by which the tiles' inputs are divided, ``(D,)``; None for 1.
        exact: The first tokens, which are computed exactly; None for none.
        digital: Compute with the frozen weight, exactly.
        reads: The number of forward passes through the layer.
        tiles: The number of tiles.
        cells: The number of cross-points that store a weight.
    """

    input_range: float | None = None
    output_ranges: list[list[float]] | None = None
    input_scale: Tensor | None = None
    exact: FirstTokens | None = None
    digital = False
    reads = 0

    def __init__(self, layer: FrozenLayer, card: DeviceCard, name: str) -> None:
        super().__init__()
        self.name, self.card = name, card
        self.frozen = by_output(layer)
        self.bias: Tensor | None = None if layer.bias is None else layer.bias.detach().clone()
        self.out_features, self.in_features = self.frozen.shape
        self._transposed = isinstance(layer, Conv1D)
        self._version = version_of(self.frozen)
        self._rows = parts(self.in_features, card.tile.rows)
        self._columns = parts(self.out_features, card.tile.columns)
        self.tiles, self.cells = len(self._rows) * len(self._columns), self.frozen.numel()
        self._chip = 0

    @property
    def weight(self) -> "TileWeight":
        """The weight as other code may use it: its products are computed on the tiles."""
        return TileWeight(self, self._transposed)

    def erase(self) -> None:
        """Put the target weights on the tiles, without noise, as before the first programming."""
        raise NotImplementedError

    def program(self, chip: int) -> None:
        """Program the weights onto a chip instance; it is then 0 s old."""
        raise NotImplementedError

    def drift_to(self, seconds: float) -> None:
        """Age the tiles to a time since programming, in s; times can be in any order."""
        raise NotImplementedError

    def weight_error(self) -> float:
        """Return the root mean square of (weight now - target), in units of the column maximum.

        The weight now is the one that the digital side sees, after drift compensation.
        """
        raise NotImplementedError

    def present_weight(self) -> Tensor:
        """Return the weight now as the digital side sees it, ``(D_out, D)``, in frozen units."""
        raise NotImplementedError

    @torch.compiler.disable
    def forward(self, x: Tensor, add_bias: bool = True) -> Tensor:
        """Compute ``W x + c`` on the tiles.

        Args:
            x: Inputs, ``(..., D)``.
            add_bias: Add the digital bias c.

        Returns:
            ``(..., D_out)``, in the type of the inputs.
        """
        self.reads += 1
        bias = self.bias if add_bias else None
        if self.digital:
            return self._exactly(x, bias)
        y = self._read(x, bias)
        if self.exact is not None and (place := self.exact.places(x)) is not None:
            y = y.index_put(place, self._exactly(x[place], bias))
        return y

    def _exactly(self, x: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(x.dtype)
        return functional.linear(x, self.frozen.to(x.dtype), bias)

    def _check_frozen(self) -> None:
        if version_of(self.frozen) != self._version:
            raise RuntimeError(
                f"The frozen weight of the layer {self.name} was changed in place after it was "
                "deployed: deploy the model again, or fit its adapter to the chip by recalibrate."
            )

    def _read(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Read the tiles with inputs ``(..., D)``."""
        raise NotImplementedError

    def _move_tiles(self, device: torch.device) -> None:
        """Move the tiles to another device."""
        raise NotImplementedError

    def _tiles(self, rows: slice) -> list[tuple[slice, int]]:
        """Return the columns of each tile with some inputs, and the seed of its devices."""
        seed = partial(derive_seed, self._chip, self.name, rows.start)
        return [(columns, seed(columns.start)) for columns in self._columns]

    def _apply(self, fn: Any, recurse: bool = True) -> "ChipLayer":
        device = fn(self.frozen.new_empty(0)).device
        if self.frozen.device != device:
            self._move_tiles(device)
            self.frozen = self.frozen.to(device)
            self._version = version_of(self.frozen)
            self.bias = None if self.bias is None else self.bias.to(device)
            if self.input_scale is not None:
                self.input_scale = self.input_scale.to(device)
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        if f"{prefix}weight" in state or f"{prefix}bias" in state:
            raise RuntimeError(
                f"The state dict has weights for the layer {self.name}, which is on crossbar tiles "
                "and is programmed, not loaded: load it into the digital model and deploy that."
            )
        super()._load_from_state_dict(state, prefix, *more)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy has a frozen weight of its own, whose changes are counted from here.
        self._version = version_of(self.frozen)


def version_of(tensor: Tensor) -> int:
    """Return the number of in-place changes of a tensor; 0 where torch does not count them."""
    return 0 if tensor.is_inference() else tensor._version


def parts(size: int, largest: int) -> list[slice]:
    """Split an axis as aihwkit does: into parts as even as possible, the larger ones first."""
    count = math.ceil(size / largest)
    base, extra = divmod(size, count)
    ends = [base * i + min(i, extra) for i in range(count + 1)]
    return [slice(*ends[i : i + 2]) for i in range(count)]


@contextmanager
def computed_digitally(layers: Iterable[ChipLayer]) -> Iterator[None]:
    """Let layers compute with their frozen weights, exactly, within the block."""
    before = [(layer, layer.digital) for layer in layers]
    for layer, _ in before:
        layer.digital = True
    try:
        yield
    finally:
        for layer, digital in before:
            layer.digital = digital


class OnTiles:
    """Base class of objects that functions of torch take as weights.

    ``torch.nn.functional.linear``, matrix products and ``multi_head_attention_forward`` are
    computed on the tiles; the fused inference kernels of torch, which read weights from memory,
    are not chosen for such objects.

    Attributes:
        name: The name of the layer or parameter in the base model.
        transposed: The weight is stored as ``(D, D_out)``, as by ``Conv1D``.
    """

    name: str
    transposed: bool

    @property
    def frozen(self) -> Tensor:
        """The frozen weight or parameter, whose shape, type and device the object has."""
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
            used = getattr(function, "__name__", str(function))
            raise RuntimeError(_sentence(weight.name, f"torch's {used}"))
        return result


class TileWeight(OnTiles):
    """The weight of one layer on tiles.

    Args:
        layer: The layer.
        transposed: Represent ``(D, D_out)``, as ``Conv1D`` stores its weight, in place of
            ``(D_out, D)``.

    Raises:
        RuntimeError: A function other than a product is called with the weight.
        AttributeError: An attribute of a tensor is read that needs the values of the weight.

    Example:
        >>> from analog_grasp.crossbar.linear import CrossbarLinear
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
    ndim = 2

    def __init__(self, layer: ChipLayer, transposed: bool) -> None:
        self._layer, self.transposed = layer, transposed
        self.name = layer.name

    @property
    def frozen(self) -> Tensor:
        """The frozen weight, ``(D_out, D)``."""
        return self._layer.frozen

    @property
    def shape(self) -> torch.Size:
        """``(D_out, D)``, or ``(D, D_out)`` where transposed."""
        shape = self.frozen.shape
        return torch.Size(reversed(shape)) if self.transposed else shape

    def t(self) -> "TileWeight":
        """Return the transposed weight."""
        return TileWeight(self._layer, not self.transposed)

    T = mT = property(t)  # noqa: N815 - as torch names them

    def dim(self) -> int:
        """Return 2."""
        return 2

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or the length of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        """Return the number of weights."""
        return self.frozen.numel()

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
        return self._layer(x, add_bias=False) if transposed == self.transposed else NotImplemented

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
        self, name: str, layers: Sequence[ChipLayer], parameter: Tensor, transposed: bool
    ) -> None:
        super().__init__(layers)
        self.name, self.transposed = name, transposed
        self._parameter = parameter.detach()

    @property
    def frozen(self) -> Tensor:
        """The frozen parameter."""
        return self._parameter

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
        layer = cast(ChipLayer, self._modules[str(int(index) % len(self))])
        return TileWeight(layer, self.transposed)


# The parameters have torch's names, as callers may give them by name.
def _linear(input: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, TileWeight):
        return NotImplemented
    y = weight.product(input, transposed=False)
    return y if bias is None or y is NotImplemented else y + bias.to(y.dtype)


def _matmul(input: Any, other: Any) -> Any:
    if isinstance(other, TileWeight):
        return other.product(input, transposed=True)
    if not isinstance(input, TileWeight):
        return NotImplemented
    if other.dim() == 1:
        return input.product(other, transposed=False)
    y = input.product(other.mT, transposed=False)
    return y if y is NotImplemented else y.mT


def _addmm(input: Tensor, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    y = _matmul(mat1, mat2)
    return y if y is NotImplemented else beta * input.to(y.dtype) + alpha * y


def _bmm(input: Any, mat2: Any) -> Any:
    if not isinstance(mat2, FusedTiles) or not mat2.transposed:
        return NotImplemented
    return torch.stack([mat2[i].product(part, True) for i, part in enumerate(input)])


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
        # Torch multiplies other layouts by a batched product, as it does in attention itself.
        given[name] = functional.linear(given[name].contiguous(), weight, part)
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
    torch.mm: lambda input, mat2: _matmul(input, mat2),
    torch.addmm: _addmm,
    torch.bmm: _bmm,
    Tensor.matmul: _matmul,
    Tensor.mm: lambda input, mat2: _matmul(input, mat2),
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
