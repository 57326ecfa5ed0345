"""Energy, latency and programming cost of a deployment, from published figures."""

from analog_grasp.costs.estimate import Costs, costs
from analog_grasp.costs.hardware import CostModel

__all__ = ["CostModel", "Costs", "costs"]
