"""Energy, latency and programming cost of a deployment, from published figures.

The package can be called as its function `costs`, so that ``analog_grasp.costs`` is one object,
whether it is taken as an attribute or imported as a package.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from analog_grasp.costs.estimate import Costs, Programming, Year, costs, year_of_operation
from analog_grasp.costs.work import LayerWork, Work, count_work
from analog_grasp.devices.cost_model import CostModel

__all__ = [
    "CostModel",
    "Costs",
    "LayerWork",
    "Programming",
    "Work",
    "Year",
    "costs",
    "count_work",
    "year_of_operation",
]


class _CallableModule(ModuleType):
    """This package as the function `costs`."""

    __signature__ = inspect.signature(costs)

    def __call__(self, *args: Any, **kwargs: Any) -> Costs:
        return costs(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
