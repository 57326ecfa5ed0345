"""Digital GLUE scores of every adapter, with the number of trained parameters.

Trains every adapter without noise on CoLA, SST-2, MRPC, RTE and STS-B, from three seeds. Prints
mean and standard deviation of each score on the validation set, the mean over tasks, the number of
trained parameters, and the learning rates.

    python benchmarks/glue.py --data-dir path/to/glue --model path/to/all-mpnet-base-v2 --bf16

A fifth of the training rows, and at most 1,000, are held out of every training. With the first seed
each adapter is trained at each of some shares of its default learning rate; the one that is best on
the held-out rows is used for the other seeds. All adapters have the same number of epochs and the
same batch size on a task. An interrupted run resumes when started again, and processes that are
started with the same folder share the work.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from peers import markdown, same_settings
from torch import nn

from analog_grasp.adapters.registry import ADAPTERS as METHODS
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.trained_adapters import learned_parameters, new_adapter, train_adapter
from analog_grasp.tasks import Task, load_task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.utils.io import write_atomically


class Training(NamedTuple):
    """Training settings of a task."""

    epochs: float
    batch_size: int


TRAININGS = {
    "glue/sst2": Training(0.25, 32),
    "glue/cola": Training(2.0, 32),
    "glue/stsb": Training(3.0, 32),
    "glue/mrpc": Training(4.0, 32),
    "glue/rte": Training(5.0, 32),
}
ADAPTERS = ("grasp", "stochgrasp", "lora", "lora-all-linear", "ia3", "bitfit", "full")
SHARES = (1.0, 0.25)
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """One training."""

    seed: int
    task: str
    adapter: str
    share: float

    def path(self, out: Path) -> Path:
        name = f"{self.adapter}-{self.share:g}-{self.seed}.json"
        return out / self.task.replace("/", "-") / name


type Found = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with CoLA/ ...")
    parser.add_argument("--model", help="Hub id or folder; the built-in model if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    parser.add_argument("--tasks", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    asked = parser.parse_args()
    same_settings(asked.out / "settings.json", asked, "tasks", "adapters", "seeds", "shares")
    pending = [
        (seed, task, adapter)
        for seed in asked.seeds
        for task in asked.tasks
        for adapter in asked.adapters
    ]
    while pending:
        left = [each for each in pending if not _is_measured(asked, *each)]
        # Another process measures what is left.
        time.sleep(float(left == pending))
        pending = left
    print(table(asked))


def _is_measured(asked: argparse.Namespace, seed: int, task: str, adapter: str) -> bool:
    """Measure what is missing and not in progress elsewhere; return whether nothing is missing."""
    first = asked.seeds[0]
    shares = asked.shares
    if seed != first:
        searched = [Run(first, task, adapter, share).path(asked.out) for share in shares]
        if not all(path.is_file() for path in searched):
            return False
        shares = [best_share(asked, task, adapter)]
    # All of them, also where another process is at work on one.
    done = [_is_done(asked, Run(seed, task, adapter, share)) for share in shares]
    return all(done)


def _is_done(asked: argparse.Namespace, run: Run) -> bool:
    """Measure a run, unless its file exists or another process does; return whether it exists."""
    path = run.path(asked.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            once(path, lambda: measure(asked, run))
    except Timeout:
        return False
    return True


def measure(asked: argparse.Namespace, run: Run) -> Found:
    """Train once; return scores (the task's first metric), parameters, learning rate and time."""
    whole, data = _tasks(run.task, str(asked.data_dir))
    training = TRAININGS[run.task]
    values = {
        "task": run.task,
        "data_dir": str(asked.data_dir),
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "learning_rate": run.share * METHODS[run.adapter].learning_rate,
        "injection": 0.0,
        "seed": run.seed,
        "bf16": asked.bf16,
        "model": asked.model,
    }
    model, found = trained(values, data, run.adapter)
    rate = {"learning_rate": values["learning_rate"]}
    return found | rate | {"held_out": found["score"], "score": whole.evaluate(model)}


def trained(values: Mapping[str, Any], data: Task, adapter: str) -> tuple[nn.Module, Found]:
    """Train an adapter in one stage; return it, its digital score, parameters and time, s."""
    settings = resolve({"then": "none", **values})
    model = new_adapter(settings, data, adapter)
    seconds = train_adapter(model, settings, data, adapter, silent)
    parameters, _ = learned_parameters(model)
    return model, {"score": data.evaluate(model), "parameters": parameters, "seconds": seconds}


def once(path: Path, measured: Callable[[], Found]) -> Found:
    """Return the result in a file; measure and write it if there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured()).encode())
    return json.loads(path.read_text())


@cache
def _tasks(name: str, data_dir: str) -> tuple[Task, Task]:
    """Return a task, and the one with the held-out rows; tokenised texts are kept."""
    whole = load_task(name, data_dir)
    return whole, tuning_task(whole, 0)


def best_share(asked: argparse.Namespace, task: str, adapter: str) -> float:
    """Return the share of the learning rate that is best on the held-out rows."""
    first = asked.seeds[0]
    return max(asked.shares, key=lambda s: _read(asked, Run(first, task, adapter, s))["held_out"])


def _read(asked: argparse.Namespace, run: Run) -> Found:
    found: Found = json.loads(run.path(asked.out).read_text())
    return found


def table(asked: argparse.Namespace) -> str:
    """Return the scores in per cent as a table in Markdown."""
    rows = []
    for adapter in asked.adapters:
        runs = [
            [_read(asked, Run(seed, task, adapter, best_share(asked, task, adapter)))
             for seed in asked.seeds]
            for task in asked.tasks
        ]  # fmt: skip
        scores = 100 * np.array([[found["score"] for found in seeds] for seeds in runs])
        cells = [_mean_and_std(of_task) for of_task in scores]
        parameters = f"{runs[0][0]['parameters']:,}"
        rows.append((METHODS[adapter].title, parameters, *cells, _mean_and_std(scores.mean(0))))
        rates = [f"{seeds[0]['learning_rate']:.2g}" for seeds in runs]
        rows.append(("learning rate", "", *rates, ""))
    header = ("", "parameters", *(task.removeprefix("glue/") for task in asked.tasks), "mean")
    return markdown(header, rows)


def _mean_and_std(scores: Sequence[float]) -> str:
    """Return mean and standard deviation; the latter only of several scores."""
    spread = f" ± {np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.1f}{spread}"


if __name__ == "__main__":
    main()
