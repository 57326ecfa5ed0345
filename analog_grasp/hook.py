"""GRASP known to peft from the moment that peft is imported, and peft not imported for it."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_with_peft() -> None:
    """Register GRASP and StochGRASP as PEFT methods: now, or right after peft is imported.

    peft takes seconds to import, together with the torch and transformers that it needs, which a
    process that lists devices can do without.

    Example:
        >>> import analog_grasp
        >>> from peft import PeftType
        >>> PeftType("GRASP").value
        'GRASP'
    """
    if "peft" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    import_module("analog_grasp.adapters")


class _PeftFinder(MetaPathFinder):
    """Finds peft as the other finders do, and has its execution followed by our registration."""

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
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
