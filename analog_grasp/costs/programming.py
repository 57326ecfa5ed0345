"""Programming of a chip, and a year of its operation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analog_grasp.devices.cost_model import CostModel, Range, times

if TYPE_CHECKING:
    from analog_grasp.costs.estimate import Costs


@dataclass(frozen=True)
class Programming:
    """Program-and-verify of a number of weights; None for what the cost model does not state.

    Attributes:
        devices: Memory devices.
        pulses: Pulses per device.
        energy: Energy, J.
        time: Time to program one tile after the other, s.
    """

    devices: int | None
    pulses: Range | None
    energy: Range | None
    time: Range | None

    @classmethod
    def of(cls, model: CostModel, weights: int, pulses: float | None = None) -> "Programming":
        """Return the programming of weights.

        Args:
            model: The cost model.
            weights: Weights on tiles.
            pulses: Pulses per device, where write tolerances set them; else the cost model's.

        Example:
            >>> Programming.of(CostModel.load("neurram"), 1000).devices
            2000
        """
        costs = model.programming
        if costs is None:
            return cls(None, None, None, None)
        devices = weights * costs.devices_per_weight
        stated = None if costs.pulses_per_device is None else costs.pulses_per_device.range
        per_device = stated if pulses is None else (pulses, pulses, pulses)
        at_once = 1.0 if costs.parallel_devices is None else costs.parallel_devices.value
        energy, time = (
            None if figure is None or per_device is None else _product(figure.range, per_device)
            for figure in (costs.pulse_energy, costs.pulse_time)
        )
        return cls(
            devices,
            per_device,
            None if energy is None else times(devices, energy),
            None if time is None else times(devices / at_once, time),
        )


@dataclass(frozen=True)
class Year:
    """Energy of a year of operation, J; None for what the cost model does not state.

    Attributes:
        inference: Of the batches of the year.
        recalibration: Of re-fitting the digital adapter on the chip, every month.
        reprogramming: Of programming the chip again, every month.
    """

    inference: Range | None
    recalibration: Range | None
    reprogramming: Range | None


def year_of_operation(
    costs: "Costs", *, batches_per_day: float = 10_000, examples: int = 64, passes: int = 3200
) -> Year:
    """Return the energy of a year with monthly recalibration, and of monthly reprogramming.

    A recalibration reads examples on the chip, again and again, with a backward pass of twice the
    multiply-adds in digital arithmetic for each; the digital model's outputs on the examples are
    computed once, and the adapter is rewritten once.

    Args:
        costs: The costs of one batch.
        batches_per_day: Batches per day.
        examples: Examples of a recalibration, each a sequence.
        passes: Passes of an example through the chip in one recalibration; by default those of
            `recalibrate`, 100 steps of 32 examples.

    Source:
        docs/method.md, "Energy, latency and programming cost".

    Example:
        ``year_of_operation(ag.costs(deployment, "neurram")).reprogramming``
    """
    model, work = costs.model, costs.work
    months = 12
    macs = work.macs // work.batch
    fit = _sum(
        None if costs.energy is None else times(passes / work.batch, costs.energy),
        model.digital_energy(macs * (2 * passes + examples)),
        model.memory_energy(work.adapter_bytes),
    )
    rewriting = costs.programming.energy
    return Year(
        None if costs.energy is None else times(365 * batches_per_day, costs.energy),
        None if fit is None else times(months, fit),
        None if rewriting is None else times(months, rewriting),
    )


def _sum(*parts: Range | None) -> Range | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    low, value, high = (sum(part[i] for part in known) for i in range(3))
    return low, value, high


def _product(first: Range, second: Range) -> Range:
    (low, value, high), (a, b, c) = first, second
    return low * a, value * b, high * c
