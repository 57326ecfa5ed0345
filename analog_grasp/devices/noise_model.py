"""One noise model for every device card, usable wherever aihwkit takes a noise model."""

import functools
import warnings
from pathlib import Path

import numpy as np
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from numpy.typing import NDArray
from torch import Tensor

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import CardConductanceConverter
from analog_grasp.devices.schema import (
    LogarithmicRead,
    PowerLawDrift,
    RelaxationDrift,
    TabulatedDrift,
)
from analog_grasp.devices.snapshot import (
    Weighted,
    encode,
    growth,
    level,
    read_strength,
    relaxation,
)
from analog_grasp.kernels.noise import fits_kernel, read_tile
from analog_grasp.kernels.parameters import TileParameters
from analog_grasp.kernels.rng import normal, uniform
from analog_grasp.utils.seed import derive_seed
from analog_grasp.utils.time import format_time, parse_time

# Cards whose table a run has left behind, so that the user is told once a card.
_warned: set[str] = set()
# The files between the user and a warning: this package and torch.
_BETWEEN = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


class CardNoiseModel(BaseNoiseModel):
    """Programming noise, drift and read noise of the devices of one tile, from a card's data.

    `read_weights` gives the weights as read at a time in one step. The methods whose names begin
    with `apply_` give the same in the two steps of aihwkit's noise models.

    The formulas are those of the card's sections; where a card restates an aihwkit model, the two
    agree in distribution. Conductances are in µS and never negative (but for the generic mapping
    "signed"), times in seconds since programming.

    Every random number is a function of the seed, the purpose, the device of the cell (0 for g+, 1
    for g-), for read noise the time, and the place in the tile; see `random.normal`. So the same
    seed gives the same chip in whatever order the methods are called, on any number of threads
    and on any processor; the global generator is untouched, and two tiles need two seeds; see
    `derive_seed`.

    A device keeps its own programming error, drift exponent and relaxation: the deviate of a
    device is one draw for all times, so that its conductance follows one continuous path and
    each single time has the published distribution (ours: published are only the latter).
    Accumulated read noise is drawn apart for each time, as in aihwkit.

    aihwkit's base class derives both conductances of a pair anew from the programmed weights
    before drift, which takes the smaller of the two to g_min, and rescales by the largest noisy
    weight. Here, as in aihwkit's own `BaseNoiseModel.apply_noise`, each device drifts from what it
    was programmed to, and the scale is the one found at programming.

    Args:
        card: the device.
        seed: names the tile's devices.
        chip: names the chip instance, for what differs from die to die; None: the seed.

    Attributes:
        card: the device, as it is on the chip instance's die.

    Example:
        >>> import torch
        >>> model = CardNoiseModel(DeviceCard.load("pcm-nandakumar2019"), seed=1)
        >>> weights, state = model.apply_programming_noise(torch.linspace(-1, 1, 8).view(2, 4))
        >>> a_day_later = model.apply_drift_noise(weights, state, 86400.0)
        >>> a_day_later.shape
        torch.Size([2, 4])
        >>> torch.allclose(model.read_weights(torch.linspace(-1, 1, 8).view(2, 4), 86400.0),
        ...                a_day_later, atol=1e-5)
        True
    """

    def __init__(self, card: DeviceCard, seed: int = 0, chip: int | None = None) -> None:
        super().__init__(CardConductanceConverter(card.conductance))
        self.card = card.die(seed if chip is None else chip)
        self.seed = seed

    @torch.no_grad()
    def read_weights(
        self,
        targets: Tensor,
        time: float,
        *,
        out: Tensor | None = None,
        variance_out: Tensor | None = None,
    ) -> Tensor:
        """Weights as read at a time after programming.

        Single precision on a CPU takes one fused pass that stores nothing; elsewhere the two
        steps below, which agree with it to rounding. Nothing need be kept for another time: the
        same devices are drawn again.

        Args:
            targets: the target weights, of shape (rows, columns).
            time: time since programming, s.
            out: where the weights are written, of the shape, type and place of `targets`; may be
                `targets` itself.
            variance_out: where the variance of each weight from read to read is written, in
                squared units of the weights: the card's short-term noise at the conductances
                read. That no conductance is below 0 is left out of it.

        Returns:
            The weights: `out`, or a new tensor.

        Raises:
            ValueError: if a weight is not finite, or the time is negative or not finite.
        """
        time = parse_time(time)
        _tell_beyond(self.card, time)
        out = torch.empty_like(targets) if out is None else out
        noiseless = self._is_exact()
        if noiseless and variance_out is None:
            return out.copy_(targets)
        tensors = [tensor for tensor in (targets, out, variance_out) if tensor is not None]
        if noiseless or not all(fits_kernel(tensor) for tensor in tensors):
            return self._read_in_steps(targets, time, out, variance_out)
        scale, offset = (np.float32(term) for term in self.g_converter.scale_of(targets))
        tile = TileParameters(scale, offset, self._keys(time))
        read_tile(targets, encode(self.card, time), tile, out, variance_out)
        return out

    def constant_short_term_variance(self, targets: Tensor) -> float | None:
        """The variance of every weight from read to read, where it is one number for all.

        Args:
            targets: the target weights, of any shape.

        Returns:
            The variance, in squared units of the weights: 0 for a card without short-term noise,
            None where it depends on the conductance; see `read_weights`.
        """
        if self.card.short_term is None:
            return 0.0
        spread = self.card.short_term.constant(self.card.conductance.g_max)
        if spread is None:
            return None
        devices = 2 if self.card.conductance.mapping == "pair" else 1
        scale, _ = self.g_converter.scale_of(targets)
        return devices * (spread / float(scale)) ** 2

    @torch.no_grad()
    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Program weights.

        Args:
            weights: the target weights, of any shape.

        Returns:
            The weights as programmed, before any read noise, and the state of the devices that
            `apply_drift_noise` takes. A card without any noise returns the weights bit for bit.

        Raises:
            ValueError: if a weight is not finite.
        """
        if self._is_exact():
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
        """Weights as read at a time after programming.

        Args:
            weights: the programmed weights; their devices' state is in `drift_noise_parameters`.
            drift_noise_parameters: the state from `apply_programming_noise`.
            t_inference: time since programming, s; at 0 there is no drift, but read noise where
                the card's devices have accumulated it by then.

        Returns:
            The weights, of the shape and type of `weights`.

        Raises:
            ValueError: if the time is negative or not finite.
        """
        time = parse_time(t_inference)
        if not drift_noise_parameters:
            return weights.clone()
        params = {"scale": drift_noise_parameters[0], "offset": drift_noise_parameters[1]}
        read = self._conductances(drift_noise_parameters, time)
        return self.g_converter.convert_back_to_weights(read, params).to(weights.dtype)

    def apply_noise(self, weights: Tensor, t_inference: float) -> Tensor:
        """Program weights and read them at a time: the two steps above in one."""
        programmed, state = self.apply_programming_noise(weights)
        return self.apply_drift_noise(programmed, state, t_inference)

    @torch.no_grad()
    def apply_programming_noise_to_conductance(self, g_target: Tensor, device: int = 0) -> Tensor:
        """Program conductances: N(g_target, sigma(g_target)^2), clipped at 0.

        Args:
            g_target: target conductances, µS, of any shape.
            device: which device of a cell.

        Returns:
            The conductances reached, µS.
        """
        if self.card.programming is None:
            return self._stuck(g_target.clone(), device)
        g = self._normal(g_target, "programming", device)
        spread = self.card.programming.at(g_target, self.card.conductance.g_max)
        return self._stuck(self._clipped(g.mul_(spread).add_(g_target)), device)

    @torch.no_grad()
    def generate_drift_coefficients(self, g_target: Tensor, device: int = 0) -> Tensor | None:
        """Draw what makes a device drift its own way.

        Args:
            g_target: target conductances, µS, of any shape.
            device: which device of a cell.

        Returns:
            For power-law drift the exponents nu, for relaxation the standard normal deviates,
            both of the shape of `g_target`; for tabulated drift the targets and the deviates of
            programming, stacked; None for a card without drift.
        """
        drift = self.card.drift
        if isinstance(drift, PowerLawDrift):
            g_max = self.card.conductance.g_max
            nu = self._normal(g_target, "drift", device).mul_(drift.nu_std.at(g_target, g_max))
            return nu.add_(drift.nu_mean.at(g_target, g_max)).abs_()
        if isinstance(drift, TabulatedDrift):
            return torch.stack([g_target, self._normal(g_target, "programming", device)])
        if isinstance(drift, RelaxationDrift):
            return self._normal(g_target, "drift", device)
        return None

    @torch.no_grad()
    def apply_drift_noise_to_conductance(
        self,
        g_prog: Tensor,
        drift_noise_param: Tensor | None,
        t_inference: float,
        device: int = 0,
    ) -> Tensor:
        """Conductances as read at a time after programming.

        Args:
            g_prog: programmed conductances, µS, of any shape.
            drift_noise_param: what `generate_drift_coefficients` returned for their targets.
            t_inference: time since programming, s.
            device: which device of a cell.

        Returns:
            The conductances read, µS.

        Raises:
            ValueError: if the time is negative or not finite.
        """
        time = parse_time(t_inference)
        _tell_beyond(self.card, time)
        g = self._drifted(g_prog, drift_noise_param, time)
        # Noise of a tabulated state goes by that state, which the programmed one is only the first.
        base = g.clone() if isinstance(self.card.drift, TabulatedDrift) else g_prog
        g = self._clipped(self._read(g, base, time, device))
        if isinstance(self.card.drift, RelaxationDrift) and time > 0:
            g.clamp_(self.card.conductance.g_min, self.card.conductance.g_max)
        return self._stuck(g, device)

    def _is_exact(self) -> bool:
        card = self.card
        return card.programming is card.drift is card.read is card.stuck is None

    def _keys(self, time: float) -> NDArray[np.uint64]:
        """The keys of all random numbers, of shape (4, 2): by purpose and device."""
        keys = self._timeless_keys.copy()
        keys[2] = [self._key("read", device, time) for device in (0, 1)]
        return keys

    @functools.cached_property
    def _timeless_keys(self) -> NDArray[np.uint64]:
        purposes = ("programming", "drift", "read", "stuck")
        return np.array([[self._key(p, device) for device in (0, 1)] for p in purposes], np.uint64)

    def _key(self, purpose: str, device: int, *more: float) -> int:
        return derive_seed(self.seed, purpose, device, *more)

    def _read_in_steps(
        self, targets: Tensor, time: float, out: Tensor, variance_out: Tensor | None
    ) -> Tensor:
        """`read_weights` by the two steps of aihwkit's interface."""
        if self._is_exact():
            conductances, params = self.g_converter.convert_to_conductances(_precise(targets))
            weights = targets
        else:
            _, state = self.apply_programming_noise(targets)
            conductances = self._conductances(state, time)
            params = {"scale": state[0], "offset": state[1]}
            weights = self.g_converter.convert_back_to_weights(conductances, params)
        if variance_out is not None:
            spread = self.card.short_term
            curves: Weighted = () if spread is None else ((1.0, spread),)
            variance = torch.stack([self._sum(curves, g).square_() for g in conductances]).sum(0)
            variance_out.copy_(variance.div_(params["scale"].square()))
        return out.copy_(weights)

    def _conductances(self, state: list[Tensor], time: float) -> list[Tensor]:
        """The conductances as read, a tensor a device, from what was kept at programming."""
        devices = zip(state[2::2], state[3::2], strict=True)
        return [
            self.apply_drift_noise_to_conductance(g_prog, coefficients, time, device)
            for device, (g_prog, coefficients) in enumerate(devices)
        ]

    def _drifted(self, g_prog: Tensor, coefficients: Tensor | None, time: float) -> Tensor:
        """A new tensor: `g_prog` after drift, before read noise."""
        drift = self.card.drift
        if drift is None or coefficients is None or time == 0:
            return g_prog.clone()
        if isinstance(drift, PowerLawDrift):
            return coefficients.mul(-growth(drift, time)).exp_().mul_(g_prog)
        if isinstance(drift, RelaxationDrift):
            mean, std = relaxation(drift, time)
            return coefficients.mul(std).add_(mean).add_(g_prog)
        if time <= drift.table[0].time:
            return g_prog.clone()
        now = level(self.card, time)
        g_target, deviate = coefficients
        mean = g_target + self._sum(now.shifts, g_target)
        return self._clipped(self._sum(now.spreads, mean).mul_(deviate).add_(mean))

    def _sum(self, curves: Weighted, g: Tensor) -> Tensor:
        """A weighted sum of curves at conductances `g`."""
        total = torch.zeros_like(g)
        for part, curve in curves:
            total.add_(curve.at(g, self.card.conductance.g_max), alpha=part)
        return total

    def _read(self, g: Tensor, g_prog: Tensor, time: float, device: int) -> Tensor:
        """Add accumulated 1/f noise to `g` in place."""
        read = self.card.read
        strength = 0.0 if read is None else read_strength(read, time)
        if read is None or strength == 0:
            return g
        noise = self._normal(g, "read", device, time).mul_(strength)
        if isinstance(read, LogarithmicRead):
            return g.add_(noise.mul_(g.clamp(min=1.0).log10_()))
        q = read.q.at(g_prog, self.card.conductance.g_max).clamp_(min=0.0)
        return g.mul_(noise.mul_(q).add_(1.0))

    def _clipped(self, g: Tensor) -> Tensor:
        return g if self.card.conductance.mapping == "signed" else g.clamp_(min=0.0)

    def _stuck(self, g: Tensor, device: int) -> Tensor:
        """Put the stuck devices where they are stuck, in place."""
        stuck = self.card.stuck
        if stuck is None:
            return g
        u = uniform(self._key("stuck", device), tuple(g.shape), device=g.device)
        g.masked_fill_(u < stuck.off, self.card.conductance.g_min)
        return g.masked_fill_(u >= 1.0 - stuck.on, self.card.conductance.g_max)

    def _normal(self, like: Tensor, purpose: str, device: int, *more: float) -> Tensor:
        """Standard normal deviates, of the shape, type and place of `like`."""
        key = self._key(purpose, device, *more)
        return normal(key, tuple(like.shape), device=like.device, dtype=like.dtype)


def _precise(weights: Tensor) -> Tensor:
    return weights.to(torch.promote_types(weights.dtype, torch.float32))


def _tell_beyond(card: DeviceCard, time: float) -> None:
    """Tell the user, once a card, that its table ends before the time asked for."""
    if not isinstance(card.drift, TabulatedDrift) or card.name in _warned:
        return
    last = card.drift.table[-1].time
    if time <= last:
        return
    _warned.add(card.name)
    held = card.drift.beyond == "hold"
    there = f"that of {format_time(last)}" if held else "extrapolated in ln t"
    warnings.warn(
        f'device card "{card.name}" is tabulated up to {format_time(last)}: at '
        f"{format_time(time)} its spread is {there}.",
        skip_file_prefixes=_BETWEEN,
        stacklevel=2,
    )
