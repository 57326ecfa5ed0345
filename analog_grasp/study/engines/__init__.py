"""Where the work is done: an engine takes jobs, chip by chip, and yields the cells they measure."""

from collections.abc import Callable, Generator, Iterable
from importlib.util import find_spec

from analog_grasp.study.config import StudyConfig
from analog_grasp.study.engines import local
from analog_grasp.study.evaluator import Bench, Cell, Job

Engine = Callable[[Bench, Iterable[Job]], Generator[Cell, None, None]]
"""Takes jobs as it has room for them, and yields each cell as it is measured, in any order.

What does not depend on the measured model, such as a worker that dies again and again, raises
RuntimeError. When the generator is closed, all work stops.
"""


def engine(settings: StudyConfig) -> Engine:
    """The engine that the settings name.

    Raises:
        ValueError: It needs a package that is not installed.
    """
    if settings.run.engine == "local":
        return lambda bench, jobs: local.measure(bench, jobs, settings.run.workers)
    if find_spec("ray") is None:
        raise ValueError(
            "The engine ray needs the package ray, which is not installed: run pip install "
            "'analog-grasp[ray]', or use the engine local."
        )
    from analog_grasp.study.engines import ray

    return lambda bench, jobs: ray.measure(
        bench, jobs, settings.run.workers, settings.run.ray_address
    )
