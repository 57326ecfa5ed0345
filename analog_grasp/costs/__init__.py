"""Energy, latency and programming cost of a deployment, from published figures."""

import sys
from types import ModuleType

from analog_grasp.costs.estimate import Costs, costs
from analog_grasp.costs.hardware import CostModel

__all__ = ["CostModel", "Costs", "costs"]


class _CallableModule(ModuleType):
    """This package as a function: importing it replaces the function `analog_grasp.costs`."""

    __call__ = staticmethod(costs)


sys.modules[__name__].__class__ = _CallableModule
