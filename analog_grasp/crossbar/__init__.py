"""Where weights live: frozen layers on crossbar tiles that are programmed, drift and are read."""

from analog_grasp.crossbar.deployment import Deployment, LayerReport, deploy

__all__ = ["Deployment", "LayerReport", "deploy"]
