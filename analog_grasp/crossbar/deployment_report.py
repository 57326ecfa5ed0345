"""The report of a deployment: its layers on tiles, and what stays digital."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft.utils import ModulesToSaveWrapper
from torch import nn

from analog_grasp.adapters.frozen import base_name
from analog_grasp.crossbar.chip_layer import ChipLayer
from analog_grasp.crossbar.tile_sets import added_by_adapters

# More than these are summed up in the text of a report.
_LISTED = 5


@dataclass(frozen=True)
class LayerReport:
    """The tiles of one layer, and the difference of its weights from their targets.

    Attributes:
        name: The layer's name in the base model.
        tiles: Number of tiles.
        cells: Cross-points that store a weight.
        use: Share of the tiles' cross-points that store a weight.
        weight_error: Root mean square of (weight now - target), in units of the column maximum.
    """

    name: str
    tiles: int
    cells: int
    use: float
    weight_error: float


@dataclass(frozen=True)
class DigitalModule:
    """A module, or a parameter of one, whose weights are not on tiles.

    Attributes:
        name: The module's name in the base model, and the parameter's, unless it is a ``weight``.
        kind: The name of the module's class.
        weights: Elements of its parameters with two or more axes, without biases.
    """

    name: str
    kind: str
    weights: int


class DeploymentReport(list[LayerReport]):
    """The report of each layer on tiles, and what is not on tiles.

    Args:
        layers: The layers on tiles.
        digital: The modules with weights that are not on tiles, the largest first.
        unread: The names of layers on tiles that no forward pass has used; empty before the
            first pass.

    Example:
        >>> report = DeploymentReport(
        ...     [LayerReport("dense", 1, 300, 0.1, 0.02)], [DigitalModule("conv", "Conv1d", 100)])
        >>> print(report)
        75.0% of the weights are on tiles; digital: conv (Conv1d, 100)
    """

    def __init__(
        self,
        layers: Sequence[LayerReport],
        digital: Sequence[DigitalModule] = (),
        unread: Sequence[str] = (),
    ) -> None:
        super().__init__(layers)
        self.digital, self.unread = list(digital), list(unread)

    @property
    def share_on_tiles(self) -> float:
        """The share of the model's weights that is on tiles; adapters are not counted."""
        cells = sum(layer.cells for layer in self)
        return cells / max(cells + sum(module.weights for module in self.digital), 1)

    def __str__(self) -> str:
        listed = [f"{m.name} ({m.kind}, {m.weights:,})" for m in self.digital[:_LISTED]]
        if more := self.digital[_LISTED:]:
            listed.append(f"{len(more)} more ({sum(m.weights for m in more):,})")
        text = f"{self.share_on_tiles:.1%} of the weights are on tiles"
        text += f"; digital: {', '.join(listed)}" if listed else ""
        if self.unread:
            names = ", ".join(self.unread[:_LISTED])
            more_names = len(self.unread) - _LISTED
            names += f" and {more_names} more" if more_names > 0 else ""
            text += f"; on tiles but not used by any forward pass: {names}"
        return text


def digital_modules(model: nn.Module) -> list[DigitalModule]:
    """Return the modules of a deployed model that have weights of their own, the largest first.

    Parameters of adapters, biases and norms are not counted; a shared parameter is counted once.
    One whose name does not begin with ``weight``, as those of ``nn.LSTM`` do, is listed separately.
    """
    others = added_by_adapters(model)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            others.update(id(parameter) for parameter in module.original_module.parameters())
        elif isinstance(module, ChipLayer):
            others.update(id(parameter) for parameter in module.parameters())
    found = []
    for path, module in model.named_modules():
        sizes: dict[str, int] = {}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 2 or _is_bias(name) or id(parameter) in others:
                continue
            others.add(id(parameter))
            full = base_name(path)
            if not full or not name.startswith("weight"):
                full = f"{full}.{name}".removeprefix(".")
            sizes[full] = sizes.get(full, 0) + parameter.numel()
        kind = type(module).__name__
        found += [DigitalModule(name, kind, weights) for name, weights in sizes.items()]
    return sorted(found, key=lambda module: -module.weights)


def _is_bias(name: str) -> bool:
    # Also bias_k of nn.MultiheadAttention.
    return name.endswith("bias") or name.startswith("bias_")
