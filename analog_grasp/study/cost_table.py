"""The costs of a study's adapters on the hardware that its devices stand for: costs.csv."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from analog_grasp.costs.estimate import Costs
from analog_grasp.costs.table import CostRow, cost_rows, costs_csv
from analog_grasp.costs.work import count_work
from analog_grasp.crossbar import deploy
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


def _rows(
    models: Mapping[str, nn.Module],
    devices: Sequence[str],
    hardware: HardwareSettings,
    run: RunSettings,
) -> Iterator[CostRow]:
    names = run.costs if len(run.costs) == len(devices) else run.costs[:1] * len(devices)
    for adapter, model in models.items():
        sequence = min(SEQUENCE, position_limit(model) or SEQUENCE)
        work = count_work(deploy(model, "ideal", **hardware.deploy_arguments()), sequence)
        for device, name in zip(devices, names, strict=True):
            yield from cost_rows(Costs(CostModel.load(name), work, run.tiles), adapter, device)
