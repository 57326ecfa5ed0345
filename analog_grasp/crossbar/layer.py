"""An aihwkit layer that reads its tiles faster where only inference is asked."""

from typing import Any

import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from torch import Tensor

from analog_grasp.crossbar.kernels import convert_inputs, convert_outputs

_SCALINGS = (NoiseManagementType.ABS_MAX, NoiseManagementType.NONE)


class CrossbarLinear(AnalogLinear):
    """A linear layer on aihwkit tiles, its converters fused where that computes the same.

    Programming, drift and drift compensation are aihwkit's own. A forward pass in float32 on a
    CPU, for which no gradient is asked, takes all tiles that share their inputs in one product
    and the converters in one pass each; any other goes through aihwkit's tiles one by one, as
    does a batch in which an output is clipped and the inputs have to be scaled down.

    Without output noise the result is that of aihwkit's torch tile, up to the rounding of a sum
    in another order; with it, it is equal in distribution.

    Args:
        args: As `aihwkit.nn.AnalogLinear`.

    Example:
        >>> from aihwkit.simulator.configs import TorchInferenceRPUConfig
        >>> layer = CrossbarLinear(6, 2, rpu_config=TorchInferenceRPUConfig()).eval()
        >>> layer(torch.ones(4, 6)).shape
        torch.Size([4, 2])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stacked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``(..., D_out)`` from ``(..., D)``."""
        if not self._fusible(x):
            return super().forward(x)
        y = self._fused(x.reshape(-1, x.shape[-1]).contiguous())
        return super().forward(x) if y is None else y.view(*x.shape[:-1], -1)

    def _fusible(self, x: Tensor) -> bool:
        tile = _tiles(self)[0][0]
        if self.training or x.device.type != "cpu" or x.dtype != torch.float32:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or tile.tile.weight.requires_grad):
            return False
        config = tile.rpu_config
        return (
            isinstance(tile, TorchInferenceTile)
            and not config.forward.is_perfect
            and config.forward.noise_management in _SCALINGS
        )

    def _fused(self, x: Tensor) -> Tensor | None:
        """All tiles at once; None where an output was clipped and has to be read again."""
        columns = _tiles(self)
        io = columns[0][0].rpu_config.forward
        by_maximum = io.noise_management == NoiseManagementType.ABS_MAX
        y = x.new_zeros(x.shape[0], self.out_features)
        first = clipped = 0
        for tiles, weight in zip(columns, self._weights(columns), strict=True):
            inputs, gain = convert_inputs(
                x, first, weight.shape[1], 2 * io.inp_res * io.inp_bound, by_maximum
            )
            clipped += convert_outputs(
                inputs @ weight.T,
                gain,
                torch.cat([t.get_scales().view(-1) for t in tiles]),
                torch.cat([t.alpha.expand(t.out_size) for t in tiles]),
                noise=io.out_noise,
                step=2 * io.out_res * io.out_bound,
                bound=io.out_bound or float("inf"),
                # From torch's own random state, so that whoever seeds it seeds this noise.
                key=int(torch.randint(2**62, ())),
                y=y,
            )
            first += weight.shape[1]
        if clipped and io.bound_management == BoundManagementType.ITERATIVE:
            return None
        bias = getattr(self.analog_module, "bias", None)
        return y if bias is None else y.add_(bias)

    def _weights(self, columns: list[list[TorchInferenceTile]]) -> list[Tensor]:
        """The weights of the tiles that share inputs as one matrix ``(D_out, inputs)`` each.

        The tiles' own weights become views of it, so that it follows when they are programmed and
        there is no second copy. A copy of the layer, or a move of it, parts the two.
        """
        if not self._stacked or not all(map(_is_stacked, columns, self._stacked)):
            self._stacked = [torch.cat([t.tile.weight.data for t in tiles]) for tiles in columns]
            for tiles, stacked in zip(columns, self._stacked, strict=True):
                parts = stacked.split([t.out_size for t in tiles])
                for tile, part in zip(tiles, parts, strict=True):
                    tile.tile.weight.data = part
        return self._stacked


def _tiles(layer: AnalogLinear) -> list[list[TorchInferenceTile]]:
    """The tiles of a layer: a list for each split of the inputs."""
    module = layer.analog_module
    if isinstance(module, TileModuleArray):
        return [list(tiles) for tiles in module.array]
    return [[module]]


def _is_stacked(tiles: list[TorchInferenceTile], stacked: Tensor) -> bool:
    parts = stacked.split([t.out_size for t in tiles])
    return all(
        t.tile.weight.data_ptr() == part.data_ptr() for t, part in zip(tiles, parts, strict=True)
    )
