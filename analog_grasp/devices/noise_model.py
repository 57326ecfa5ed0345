"""The noise model of a device card, with the interface of aihwkit's noise models."""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import (
    clipped,
    device_parameters,
    drifted,
    exponents,
    only,
    read_factor,
    state_moments,
    summed,
    with_read_noise,
)
from analog_grasp.devices.programming import CardConductanceConverter, WriteTolerance
from analog_grasp.devices.schema import PowerLawDrift, RelaxationDrift, TabulatedDrift
from analog_grasp.kernels import DeviceParameters, TileParameters
from analog_grasp.kernels.noise import fits_kernel, read_tile
from analog_grasp.kernels.rng import normal, uniform
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.time import parse_time

# Cards that were used at an age for which they have no data, so that each is reported once.
_warned: set[str] = set()
# Files to skip when a warning is attributed to its caller: this package and torch.
_BETWEEN = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


class CardNoiseModel(BaseNoiseModel):
    """Programming noise, drift and read noise of the devices of one tile, from a card's data.

    `read_weights` returns the weights as read at a time in one step, the methods whose names begin
    with `apply_` in the two steps of aihwkit's noise models. The formulas are those of the card's
    sections; where a card restates an aihwkit model, both agree in distribution. Conductances are
    in µS and at least 0 (except under the mapping "signed"), times in seconds since programming.

    Every random number is a function of the seed, the purpose, the device of the cell (0 for g+, 1
    for g-), the time for read noise, and the position in the tile; see `kernels.rng.normal`. The
    same seed gives the same chip for any order of calls, number of threads and processor. Each tile
    needs a seed of its own.

    The programming error, drift exponent and relaxation of a device are drawn once for all times,
    so that its conductance follows one continuous path; the published distributions are those at
    single times, and the path is this project's choice. Accumulated read noise is drawn for each
    time, as in aihwkit.

    aihwkit's base class derives both conductances of a pair from the programmed weights before
    drift, which sets the smaller of the two to g_min, and rescales by the largest noisy weight.
    Here, as in aihwkit's `BaseNoiseModel.apply_noise`, each device drifts from its programmed
    conductance, and the scale is that of programming.

    Args:
        card: The device.
        seed: Identifies the tile's devices.
        chip: Identifies the chip instance, for variation from die to die; None: the seed.
        tolerance: Write tolerances in place of the card's own, in units of the conductance range,
            broadcast to the weights; see `analog_grasp.devices.programming`.

    Raises:
        ValueError: A tolerance is given, but the card states no program-and-verify.

    Attributes:
        card: The device on the chip instance's die.

    Example:
        >>> model = CardNoiseModel(DeviceCard.load("pcm-nandakumar2019"), seed=1)
        >>> weights, state = model.apply_programming_noise(torch.linspace(-1, 1, 8).view(2, 4))
        >>> a_day_later = model.apply_drift_noise(weights, state, 86400.0)
        >>> a_day_later.shape
        torch.Size([2, 4])
        >>> torch.allclose(model.read_weights(torch.linspace(-1, 1, 8).view(2, 4), 86400.0),
        ...                a_day_later, atol=1e-5)
        True
    """

    def __init__(
        self,
        card: DeviceCard,
        seed: int = 0,
        chip: int | None = None,
        tolerance: Tensor | None = None,
    ) -> None:
        super().__init__(CardConductanceConverter(card.conductance))
        chip = seed if chip is None else chip
        self.card = card if card.die_to_die is None else card_on_die(card, chip)
        self.seed = seed
        self._tolerance = tolerance
        self._write = None if tolerance is None else WriteTolerance(card)

    @torch.no_grad()
    def read_weights(
        self,
        targets: Tensor,
        time: float,
        *,
        out: Tensor | None = None,
        variance_out: Tensor | None = None,
    ) -> Tensor:
        """Return weights as read at a time after programming.

        Single precision on a CPU uses the compiled kernel; otherwise the two steps below are used,
        which agree with it to rounding.

        Args:
            targets: The target weights, ``(rows, columns)``.
            time: Time since programming, s.
            out: Filled with the weights, like `targets`, which it may be.
            variance_out: Filled with the variance of each weight from read to read, in squared
                units of the weights: the card's short-term noise at the conductances read,
                without the clipping of conductances at 0.

        Returns:
            The weights: `out`, or a new tensor.

        Raises:
            ValueError: A weight is not finite, or the time is negative or not finite.
        """
        time = parse_time(time)
        _warn_beyond_data(self.card, time)
        out = torch.empty_like(targets) if out is None else out
        if self.is_exact and variance_out is None:
            return out.copy_(targets)
        tensors = [tensor for tensor in (targets, out, variance_out) if tensor is not None]
        in_steps = self.is_exact or self._write is not None
        if in_steps or not all(fits_kernel(tensor) for tensor in tensors):
            return self._read_in_steps(targets, time, out, variance_out)
        scale, offset = (np.float32(term) for term in self.g_converter.scale_of(targets))
        parameters = device_parameters(self.card, time)
        tile = TileParameters(scale, offset, self._keys(parameters, time))
        read_tile(targets, parameters, tile, out, variance_out)
        return out

    @torch.no_grad()
    def read_tiles(
        self,
        targets: Tensor,
        ends: Tensor,
        tiles: Sequence[tuple[slice, int]],
        time: float,
        out: Tensor,
        variance_out: Tensor | None,
    ) -> None:
        """Do what `read_weights` does for several tiles at once, on a GPU, with its kernel.

        Args:
            targets: The target weights of all tiles, ``(rows, columns)``, float32, contiguous.
            ends: The smallest and the largest target of each tile, ``(tiles, 2)``.
            tiles: The rows of each tile, and its seed in place of this model's.
            time, out, variance_out: As for `read_weights`; of any floating type.
        """
        from analog_grasp.kernels.cuda_noise import read_tiles

        time = parse_time(time)
        _warn_beyond_data(self.card, time)
        mapping = torch.stack(self.g_converter.scale_between(*ends.float().unbind(1)), 1)
        parameters = device_parameters(self.card, time)
        rows = [part for part, _ in tiles]
        keys = [self._keys(parameters, time, seed) for _, seed in tiles]
        read_tiles(targets, parameters, mapping, rows, keys, out, variance_out)

    def constant_short_term_variance(self, targets: Tensor) -> float | None:
        """Return the variance of the weights from read to read, if it is the same for all.

        Returns:
            The variance, in squared units of the target weights: 0 for a card without short-term
            noise, None if it depends on the conductance.
        """
        curve, section = self.card.short_term, self.card.conductance
        if curve is None:
            return 0.0
        std = curve.constant(section.g_max)
        scale, _ = self.g_converter.scale_of(targets)
        devices = 2 if section.mapping == "pair" else 1
        return None if std is None else devices * (std / float(scale)) ** 2

    @torch.no_grad()
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return weights as programmed, of any shape, and the state that `apply_drift_noise` takes.

        Raises:
            ValueError: A weight is not finite.
        """
        if self.is_exact:
            return weights.clone(), []
        targets, params = self.g_converter.convert_to_conductances(_precise(weights))
        state = [params["scale"], params["offset"]]
        for device, g_target in enumerate(targets):
            coefficients = self.generate_drift_coefficients(g_target, device)
            g_prog = self.apply_programming_noise_to_conductance(g_target, device)
            state += [g_prog, g_prog.new_empty(0) if coefficients is None else coefficients]
        programmed = self.g_converter.convert_back_to_weights(state[2::2], params)
        return programmed.to(weights.dtype), state

    @torch.no_grad()
    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: list[Tensor], t_inference: float
    ) -> Tensor:
        """Return weights as read at a time after programming.

        Args:
            weights: The programmed weights, of whose type and shape the result is.
            drift_noise_parameters: The state from `apply_programming_noise`.
            t_inference: Time since programming, s; at 0 there is no drift, but read noise that has
                accumulated by the first reading.

        Raises:
            ValueError: The time is negative or not finite.
        """
        time = parse_time(t_inference)
        if not drift_noise_parameters:
            return weights.clone()
        params = {"scale": drift_noise_parameters[0], "offset": drift_noise_parameters[1]}
        read = self._conductances(drift_noise_parameters, time)
        return self.g_converter.convert_back_to_weights(read, params).to(weights.dtype)

    def apply_noise(self, weights: Tensor, t_inference: float) -> Tensor:
        """Program weights and return them as read at a time: the two steps above in one."""
        programmed, state = self.apply_programming_noise(weights)
        return self.apply_drift_noise(programmed, state, t_inference)

    @torch.no_grad()
    def apply_programming_noise_to_conductance(self, g_target: Tensor, device: int = 0) -> Tensor:
        """Return programmed conductances of targets, µS, of any shape; see `ProgrammedState`."""
        if self.card.programming is None:
            return self._stuck(g_target, device)
        deviate = self._normal(g_target, "programming", device)
        return self._stuck(self._state(g_target, deviate, 0.0), device)

    @torch.no_grad()
    def generate_drift_coefficients(self, g_target: Tensor, device: int = 0) -> Tensor | None:
        """Return the per-device random state of drift for target conductances, µS, of any shape.

        Returns:
            The exponents nu for power-law drift, the standard normal deviates for relaxation; the
            targets and the deviates of programming, stacked, for tabulated drift; None for a card
            without drift.
        """
        drift = self.card.drift
        if isinstance(drift, PowerLawDrift):
            z = self._normal(g_target, "drift", device)
            nu: Tensor = exponents(drift, g_target, self.card.conductance.g_max, z)
            return nu
        if isinstance(drift, TabulatedDrift):
            return torch.stack([g_target, self._normal(g_target, "programming", device)])
        if isinstance(drift, RelaxationDrift):
            return self._normal(g_target, "drift", device)
        return None

    @torch.no_grad()
    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor | None, t_inference: float, device: int = 0
    ) -> Tensor:
        """Return conductances, µS, as read at a time after programming.

        Args:
            g_prog: Programmed conductances, µS, of any shape.
            drift_noise_param: The result of `generate_drift_coefficients` for their targets.
            t_inference: Time since programming, s.
            device: Index of the device in its cell: 0 for g+, 1 for g-.

        Raises:
            ValueError: The time is negative or not finite.
        """
        time = parse_time(t_inference)
        _warn_beyond_data(self.card, time)
        drift, g = self.card.drift, g_prog
        if drift_noise_param is not None and time > 0:
            if not isinstance(drift, TabulatedDrift):
                g = drifted(self.card, g_prog, drift_noise_param, time)
            elif time > drift.table[0].time:
                g_target, deviate = drift_noise_param
                g = self._state(g_target, deviate, time)
        noisy = read_factor(self.card.read, time) > 0
        z = self._normal(g, "read", device, time) if noisy else 0.0
        return self._stuck(with_read_noise(self.card, g, g_prog, z, time), device)

    @property
    def is_exact(self) -> bool:
        """True if the devices are read as targeted, but for short-term noise."""
        card = self.card
        return card.programming is card.drift is card.read is card.stuck is None

    def _keys(
        self, device: DeviceParameters, time: float, seed: int | None = None
    ) -> NDArray[np.uint64]:
        """Return the keys of the random numbers that are drawn, by purpose and device, ``(4, 2)``.

        Each key is a hash; 0 stands for those of effects that the card does not have.
        """
        seed = self.seed if seed is None else seed
        keys = np.zeros((4, 2), np.uint64)
        drawn = (*device.draws, self.card.stuck is not None)
        for row, purpose in enumerate(("programming", "drift", "read", "stuck")):
            if drawn[row]:
                more = (time,) if purpose == "read" else ()
                keys[row] = [derive_seed(seed, purpose, side, *more) for side in (0, 1)]
        return keys

    def _key(self, purpose: str, device: int, *more: float) -> int:
        return derive_seed(self.seed, purpose, device, *more)

    def _read_in_steps(
        self, targets: Tensor, time: float, out: Tensor, variance_out: Tensor | None
    ) -> Tensor:
        """`read_weights` by the two steps of aihwkit's interface."""
        if self.is_exact:
            conductances, params = self.g_converter.convert_to_conductances(_precise(targets))
            weights = targets
        else:
            _, state = self.apply_programming_noise(targets)
            conductances = self._conductances(state, time)
            params = {"scale": state[0], "offset": state[1]}
            weights = self.g_converter.convert_back_to_weights(conductances, params)
        if variance_out is not None:
            stds = [summed(self.card, only(self.card.short_term), g) for g in conductances]
            variance = torch.stack([std.square() for std in stds]).sum(0)
            variance_out.copy_(variance.div_(params["scale"].square()))
        return out.copy_(weights)

    def _conductances(self, state: list[Tensor], time: float) -> list[Tensor]:
        """Return the conductances as read, one tensor per device of a cell."""
        devices = zip(state[2::2], state[3::2], strict=True)
        return [
            self.apply_drift_noise_to_conductance(g_prog, coefficients, time, device)
            for device, (g_prog, coefficients) in enumerate(devices)
        ]

    def _state(self, g_target: Tensor, deviate: Tensor, time: float) -> Tensor:
        """Return conductances as programmed, or as relaxed by the card's table."""
        mean, std = state_moments(self.card, g_target, time)
        if self._write is not None and self._tolerance is not None and self.card.programming:
            # Without programming noise the spread is relaxation alone, which no tolerance changes.
            std = self._write.std(std, self._tolerance)
        state: Tensor = clipped(self.card, std * deviate + mean)
        return state

    def _stuck(self, g: Tensor, device: int) -> Tensor:
        """Return conductances of which stuck devices are at g_min or g_max."""
        stuck = self.card.stuck
        if stuck is None:
            return g
        u = uniform(self._key("stuck", device), tuple(g.shape), device=g.device)
        g = g.masked_fill(u < stuck.off, self.card.conductance.g_min)
        return g.masked_fill(u >= 1.0 - stuck.on, self.card.conductance.g_max)

    def _normal(self, like: Tensor, purpose: str, device: int, *more: float) -> Tensor:
        """Return standard normal deviates of the shape, type and device of `like`."""
        key = self._key(purpose, device, *more)
        return normal(key, tuple(like.shape), device=like.device, dtype=like.dtype)


def _precise(weights: Tensor) -> Tensor:
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


# Every tile of a chip asks for its card.
@functools.lru_cache(maxsize=32)
def card_on_die(card: DeviceCard, chip: int) -> DeviceCard:
    """Return a card that varies from die to die with the factors of a chip instance applied.

    Example:
        >>> card = DeviceCard.load("gaussian").with_(die_to_die=0.1)
        >>> card_on_die(card, 1).programming == card_on_die(card, 2).programming
        False
    """
    assert card.die_to_die is not None
    key = derive_seed(chip, "die-to-die")
    first, second = normal(key, (2,), device="cpu", dtype=torch.float64).tolist()
    means = max(1.0 + card.die_to_die.mean * first, 0.0)
    die = card.scaled(means, max(1.0 + card.die_to_die.std * second, 0.0))
    return die.model_copy(update={"die_to_die": None})


def _warn_beyond_data(card: DeviceCard, time: float) -> None:
    """Warn, once per card, of an age for which the card has no data."""
    if card.name not in _warned and (message := card.beyond_data(time)):
        _warned.add(card.name)
        warnings.warn(message, skip_file_prefixes=_BETWEEN, stacklevel=2)
