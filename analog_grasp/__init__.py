"""Adapt frozen transformers for analog in-memory computing.

GRASP and StochGRASP adapters, trained, deployed on simulated PCM and RRAM crossbars, and compared
over devices and drift times. Importing this package registers both methods with PEFT; torch, peft
and aihwkit, which take seconds to import, are imported with the first name that needs them.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analog_grasp.adapters.config import GraspConfig as GraspConfig
    from analog_grasp.adapters.config import StochGraspConfig as StochGraspConfig
    from analog_grasp.costs.estimate import costs as costs
    from analog_grasp.crossbar import Deployment as Deployment
    from analog_grasp.crossbar import deploy as deploy
    from analog_grasp.devices.card import DeviceCard as DeviceCard
    from analog_grasp.study.api import compare as compare
    from analog_grasp.study.api import drift_sweep as drift_sweep
    from analog_grasp.tasks import load_task as load_task
    from analog_grasp.tasks.models import load_base_model as load_base_model
    from analog_grasp.training import train as train
    from analog_grasp.training.recalibration import recalibrate as recalibrate
    from analog_grasp.training.schedule import AgeSchedule as AgeSchedule
    from analog_grasp.training.schedule import fit_schedule as fit_schedule
    from analog_grasp.tuning.api import tune_noise_weight as tune_noise_weight

# Public names and the module that defines each.
_MODULES = {
    "AgeSchedule": "training.schedule",
    "Deployment": "crossbar",
    "DeviceCard": "devices.card",
    "GraspConfig": "adapters.config",
    "StochGraspConfig": "adapters.config",
    "compare": "study.api",
    "costs": "costs.estimate",
    "deploy": "crossbar",
    "drift_sweep": "study.api",
    "fit_schedule": "training.schedule",
    "load_base_model": "tasks.models",
    "load_task": "tasks",
    "recalibrate": "training.recalibration",
    "train": "training",
    "tune_noise_weight": "tuning.api",
}

__all__ = list(_MODULES)

# Not seen by type checkers, which would accept any name otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_MODULES[name]}")
        # The package `costs` is its function, and importing it has made it an attribute.
        return globals()[name] if name in globals() else getattr(module, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})


def _register_with_peft() -> None:
    """Import the modules that register our methods with PEFT."""
    # As where this package is reloaded: peft keeps the classes that it knows.
    if hasattr(sys.modules.get(f"{__name__}.adapters.bitfit"), "BitFitModel"):
        return
    # One of them that is importing peft itself is still empty, and is imported afresh.
    for name in ("base", "bitfit", "config", "frozen", "layer", "model"):
        sys.modules.pop(f"{__name__}.adapters.{name}", None)
    import_module(f"{__name__}.adapters.model")
    import_module(f"{__name__}.adapters.bitfit")


# Without the base class of importlib.abc, whose import takes longer than that of this package.
class _PeftFinder:
    """Finder that lets `_register_with_peft` follow the import of peft."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "peft":
            return None
        found = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register_with_peft()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    _register_with_peft()
else:
    sys.meta_path.insert(0, _PeftFinder())
