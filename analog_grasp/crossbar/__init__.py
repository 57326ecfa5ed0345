"""Weights on crossbar tiles: programming, drift, reading, export."""

from analog_grasp.crossbar.deployment import Deployment, deploy
from analog_grasp.crossbar.export import export_chip, read_chip
from analog_grasp.crossbar.tile_sets import (
    DeploymentReport,
    DigitalModule,
    LayerReport,
    TileBackend,
)

__all__ = [
    "Deployment",
    "DeploymentReport",
    "DigitalModule",
    "LayerReport",
    "TileBackend",
    "deploy",
    "export_chip",
    "read_chip",
]
