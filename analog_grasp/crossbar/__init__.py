"""Weights on crossbar tiles: programming, drift, reading, export."""

from analog_grasp.crossbar.api import deploy
from analog_grasp.crossbar.deployment import Deployment
from analog_grasp.crossbar.deployment_report import DeploymentReport, DigitalModule, LayerReport
from analog_grasp.crossbar.export import export_chip, read_chip
from analog_grasp.crossbar.tile_sets import TileBackend

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
