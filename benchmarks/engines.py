"""Time of the engines: processes of this machine compared with a Ray cluster on it.

The same chip instances are measured with two workers by the engines local and ray. Cold: the first
study of a process, including the start of the workers. Warm: local starts its workers from a server
that has loaded all modules; ray uses the workers of a running cluster.

    python benchmarks/engines.py

About seven minutes on 2 cores.
"""

import argparse
import time
from collections import defaultdict
from itertools import product

import ray
from peers import apart, machine, ratio_table

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.engines import measure
from analog_grasp.study.evaluator import Chip, Evaluator, Job, Subject
from analog_grasp.study.trained_adapters import new_adapter
from analog_grasp.tasks import load_task
from analog_grasp.utils.time import parse_time

WORKERS = 2
ENGINES = ("local", "ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hub id or folder; the built-in model by default")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each engine")
    parser.add_argument("--quick", action="store_true", help="two chips, one repeat")
    asked = parser.parse_args()
    settings = StudyConfig().replace(
        model=asked.model,
        adapters=("grasp", "stochgrasp"),
        devices=("pcm-hermes-2", "rram-wan2022"),
        times=("1h", "1y"),
        repeats=1 if asked.quick else 2,
        workers=WORKERS,
    )
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: {name: [] for name in ENGINES})
    for turn in range(1 if asked.quick else asked.repeats):
        for name in ENGINES if turn % 2 == 0 else reversed(ENGINES):
            cold, warm = apart(engine_seconds, settings.replace(engine=name))
            seconds["cold"][name].append(cold)
            seconds["warm"][name].append(warm)
    print(machine())
    count = len(work(settings)) * len(settings.model.adapters) * len(settings.run.times)
    for start, taken in seconds.items():
        print(
            f"\n{ratio_table(f'{count} cells, {WORKERS} workers, {start} start', taken, 'local')}"
        )


def engine_seconds(settings: StudyConfig) -> tuple[float, float]:
    """Return the seconds of the first study with an engine, and of the next."""
    task = load_task(settings.task.name)
    models = {(name, 0): new_adapter(settings, task, name) for name in settings.model.adapters}
    cards = {device: DeviceCard.load(device) for device in settings.hardware.devices}
    evaluator = Evaluator(task, models, cards, settings.hardware)
    jobs = work(settings)
    cold = measured(settings, evaluator, jobs)
    if settings.run.engine == "local":
        return cold, measured(settings, evaluator, jobs)
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    try:
        # Workers load everything with their first job.
        measured(settings, evaluator, [Job(job.chip, frozenset([min(job.cells)])) for job in jobs])
        return cold, measured(settings, evaluator, jobs)
    finally:
        ray.shutdown()


def work(settings: StudyConfig) -> list[Job]:
    """Return one job per chip instance, with all adapters and times."""
    times = map(parse_time, settings.run.times)
    cells = frozenset(Subject(name, 0, t) for name, t in product(settings.model.adapters, times))
    return [
        Job(Chip(device, repeat, settings.run.seed + repeat), cells)
        for device in settings.hardware.devices
        for repeat in range(settings.run.repeats)
    ]


def measured(settings: StudyConfig, evaluator: Evaluator, jobs: list[Job]) -> float:
    begin = time.perf_counter()
    cells = list(measure(evaluator, jobs, settings.run))
    assert len(cells) == sum(len(job.cells) for job in jobs)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
