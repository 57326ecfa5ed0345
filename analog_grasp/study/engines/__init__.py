"""Engines: they take jobs, chip by chip, and yield the cells that these measure."""

from collections.abc import Callable, Generator, Iterable
from importlib.util import find_spec

from analog_grasp.study.engines import local
from analog_grasp.study.evaluator import Cell, Evaluator, Job
from analog_grasp.study.sections import RunSettings

Engine = Callable[[Evaluator, Iterable[Job]], Generator[Cell, None, None]]
"""Takes jobs as it has room for them, and yields each cell as it is measured, in any order.

Failures that do not depend on the measured model, such as a worker that dies repeatedly, raise
RuntimeError. When the generator is closed, all work stops.
"""


def engine(run: RunSettings) -> Engine:
    """Return the engine that the settings of a run name.

    Raises:
        ValueError: It requires a package that is not installed.
    """
    if run.engine == "local":
        return lambda evaluator, jobs: local.measure(evaluator, jobs, run.workers)
    if find_spec("ray") is None:
        raise ValueError(
            "The engine ray requires the package ray, which is not installed: run pip install "
            "'analog-grasp[ray]', or use the engine local."
        )
    from analog_grasp.study.engines import ray

    return lambda evaluator, jobs: ray.measure(evaluator, jobs, run.workers, run.ray_address)
