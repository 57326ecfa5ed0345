"""Engines: they take jobs, chip by chip, and yield the cells that these measure."""

from collections.abc import Callable, Generator, Iterable

from analog_grasp.study.engines import local
from analog_grasp.study.evaluator import Cell, Evaluator, Job
from analog_grasp.study.sections import RunSettings

Engine = Callable[[Evaluator, Iterable[Job]], Generator[Cell, None, None]]
"""Takes jobs as it has room for them, and yields each cell as it is measured, in any order.

Failures that do not depend on the measured model, such as a worker that dies repeatedly, raise
RuntimeError. When the generator is closed, all work stops.
"""


def engine(run: RunSettings) -> Engine:
    """Return the engine that the settings of a run name."""
    if run.engine == "local":
        return lambda evaluator, jobs: local.measure(evaluator, jobs, run.workers)
    from analog_grasp.study.engines import ray

    return lambda evaluator, jobs: ray.measure(evaluator, jobs, run.workers, run.ray_address)
