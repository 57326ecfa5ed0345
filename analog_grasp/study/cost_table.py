"""The costs of a study's adapters on the hardware of its devices: costs.csv."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from analog_grasp.costs.estimate import Costs
from analog_grasp.costs.table import CostRow, cost_rows, costs_csv
from analog_grasp.costs.work import count_work
from analog_grasp.crossbar import Deployment, deploy
from analog_grasp.devices.cost_model import CostModel
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.study.sections import RunSettings
from analog_grasp.tasks.base import position_limit
from analog_grasp.utils.io import write_atomically

COSTS_FILE = "costs.csv"
SEQUENCE = 128
"""Tokens per sequence, or as many as the model has positions for."""


def write_costs(
    directory: Path,
    models: Mapping[str, nn.Module],
    devices: Sequence[str],
    hardware: HardwareSettings,
    run: RunSettings,
) -> None:
    """Write costs.csv: every quantity of a sequence, for each adapter and device.

    Args:
        directory: The run's folder.
        models: The adapters.
        devices: The names of the devices.
        hardware: How adapters are deployed on the devices.
        run: The cost models, one for all devices or one per device, and the tiles.

    Raises:
        OSError: The file cannot be written.
    """
    rows = list(_rows(models, devices, hardware, run))
    write_atomically(directory / COSTS_FILE, costs_csv(rows).encode())


def sequence_costs(deployment: Deployment, run: RunSettings) -> list[Costs]:
    """Return the costs of one sequence of a deployment, one for each cost model."""
    sequence = min(SEQUENCE, position_limit(deployment.model) or SEQUENCE)
    work = count_work(deployment, sequence) if run.costs else None
    return [Costs(CostModel.load(name), work, run.tiles) for name in run.costs if work]


def _rows(
    models: Mapping[str, nn.Module],
    devices: Sequence[str],
    hardware: HardwareSettings,
    run: RunSettings,
) -> Iterator[CostRow]:
    for adapter, model in models.items():
        found = sequence_costs(deploy(model, "ideal", **hardware.deploy_arguments()), run)
        by_device = found if len(found) == len(devices) else found[:1] * len(devices)
        for device, costs in zip(devices, by_device, strict=True):
            yield from cost_rows(costs, adapter, device)
