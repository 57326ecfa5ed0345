"""One noise model for every device card, usable wherever aihwkit takes a noise model."""

import math
import warnings

import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from torch import Tensor

from analog_grasp.devices.card import DeviceCard
from analog_grasp.devices.conductance import CardConductanceConverter
from analog_grasp.devices.sections import (
    PowerLawDrift,
    RelativeRead,
    RelaxationDrift,
    TabulatedDrift,
)
from analog_grasp.devices.seed import derive_seed
from analog_grasp.devices.time import format_time, parse_time

# Cards whose table a run has left behind, so that the user is told once a card.
_warned: set[str] = set()


class CardNoiseModel(BaseNoiseModel):
    """Programming noise, drift and read noise of the devices of one tile, from a card's data.

    The formulas are those of the card's sections; where a card restates an aihwkit model, the two
    agree in distribution. Conductances are in µS and never negative (but for the generic mapping
    "signed"), times in seconds since programming.

    Every random number comes from a generator of its own, keyed by the seed, the purpose, the
    device of the cell (0 for g+, 1 for g-) and, for read noise, the time. So the same seed gives
    the same bits in whatever order the methods are called, the global generator is untouched, and
    two tiles need two seeds; see `derive_seed`. A CPU and a GPU draw different chips.

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

    Example:
        >>> import torch
        >>> model = CardNoiseModel(DeviceCard.load("pcm-nandakumar2019"), seed=1)
        >>> weights, state = model.apply_programming_noise(torch.linspace(-1, 1, 8).view(2, 4))
        >>> a_day_later = model.apply_drift_noise(weights, state, 86400.0)
        >>> a_day_later.shape
        torch.Size([2, 4])
    """

    def __init__(self, card: DeviceCard, seed: int = 0) -> None:
        super().__init__(CardConductanceConverter(card.conductance))
        self.card = card
        self.seed = seed

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
        precise = weights.to(torch.promote_types(weights.dtype, torch.float32))
        targets, params = self.g_converter.convert_to_conductances(precise)
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
        scale, offset, *devices = drift_noise_parameters
        read = [
            self.apply_drift_noise_to_conductance(g_prog, coefficients, time, device)
            for device, (g_prog, coefficients) in enumerate(
                zip(devices[::2], devices[1::2], strict=True)
            )
        ]
        params = {"scale": scale, "offset": offset}
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
            return g_target.clone()
        g = self._normal(g_target, "programming", device)
        spread = self.card.programming.at(g_target, self.card.conductance.g_max)
        return self._clipped(g.mul_(spread).add_(g_target))

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
        g = self._drifted(g_prog, drift_noise_param, time)
        g = self._clipped(self._read(g, g_prog, time, device))
        if isinstance(self.card.drift, RelaxationDrift) and time > 0:
            g.clamp_(self.card.conductance.g_min, self.card.conductance.g_max)
        return g

    def _is_exact(self) -> bool:
        return self.card.programming is None and self.card.drift is None and self.card.read is None

    def _drifted(self, g_prog: Tensor, coefficients: Tensor | None, time: float) -> Tensor:
        """A new tensor: `g_prog` after drift, before read noise."""
        drift = self.card.drift
        if drift is None or coefficients is None or time == 0:
            return g_prog.clone()
        if isinstance(drift, PowerLawDrift):
            growth = math.log(time + drift.t0) - math.log(drift.t0)
            return coefficients.mul(-growth).exp_().mul_(g_prog)
        if isinstance(drift, TabulatedDrift):
            return self._tabulated(drift, g_prog, coefficients, time)
        log_time = math.log(time)
        std = max(drift.std[0] + drift.std[1] * log_time, 0.0)
        mean = drift.mean[0] + drift.mean[1] * log_time
        return coefficients.mul(std).add_(mean).add_(g_prog)

    def _tabulated(
        self, drift: TabulatedDrift, g_prog: Tensor, coefficients: Tensor, time: float
    ) -> Tensor:
        table = drift.table
        if time <= table[0].time:
            return g_prog.clone()
        if time > table[-1].time:
            _warn_beyond(self.card.name, time, table[-1].time)
        g_target, deviate = coefficients
        g_max = self.card.conductance.g_max
        after = next((i for i, row in enumerate(table) if time <= row.time), len(table) - 1)
        spread = table[after].at(g_target, g_max)
        if time < table[after].time:
            before = table[after - 1]
            fraction = math.log(time / before.time) / math.log(table[after].time / before.time)
            spread = torch.lerp(before.at(g_target, g_max), spread, fraction)
        if self.card.programming is None:
            # Programmed exactly, a device still relaxes by what the spread has grown since.
            spread.sub_(table[0].at(g_target, g_max))
        return spread.mul_(deviate).add_(g_target)

    def _read(self, g: Tensor, g_prog: Tensor, time: float, device: int) -> Tensor:
        """Add accumulated 1/f noise to `g` in place."""
        read = self.card.read
        if read is None:
            return g
        age = time + read.t0 if isinstance(read, RelativeRead) else time
        # The difference of logarithms stays finite where the ratio of the times would not.
        growth = math.log(age + read.t_read) - math.log(2 * read.t_read)
        if growth <= 0:
            return g
        noise = self._normal(g, "read", device, time).mul_(math.sqrt(growth))
        if isinstance(read, RelativeRead):
            q = read.q.at(g_prog, self.card.conductance.g_max).clamp_(min=0.0)
            return g.mul_(noise.mul_(q).add_(1.0))
        return g.add_(noise.mul_(read.k).mul_(g.clamp(min=1.0).log10_()))

    def _clipped(self, g: Tensor) -> Tensor:
        return g if self.card.conductance.mapping == "signed" else g.clamp_(min=0.0)

    def _normal(self, like: Tensor, purpose: str, device: int, *more: float) -> Tensor:
        """Standard normal deviates, of the shape, type and place of `like`."""
        generator = torch.Generator(device=like.device)
        generator.manual_seed(derive_seed(self.seed, purpose, device, *more))
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _warn_beyond(name: str, time: float, last: float) -> None:
    """Tell the user, once a card, that its table ends before the time asked for."""
    if name in _warned:
        return
    _warned.add(name)
    # The level of whoever called apply_drift_noise, past torch's two no_grad wrappers.
    warnings.warn(
        f'device card "{name}" is tabulated up to {format_time(last)}: at {format_time(time)} its '
        f"spread is that of {format_time(last)}.",
        stacklevel=8,
    )
