"""Digital GLUE scores of every adapter, with the number of trained parameters.

Trains every adapter without noise on CoLA, SST-2, MRPC, RTE and STS-B with the built-in model,
from three seeds. Prints mean and standard deviation of each score on the validation set, the mean
over tasks, and the number of trained parameters.

    python benchmarks/glue.py --data-dir path/to/glue

Each task has one number of epochs and one batch size for all adapters. Each adapter has its own
learning rate, reduced for LoRA and BitFit on three tasks where the full one makes the features
diverge and the model collapse to a constant prediction. The reduction was chosen with LoRA on
held-out rows of MRPC and CoLA and used for RTE and BitFit without a trial. The numbers of epochs
fit into some hours on two cores. An interrupted run resumes when started again, and processes with
other adapters or tasks can share a folder.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import markdown
from rich.console import Console

from analog_grasp.adapters.registry import ADAPTERS as METHODS
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.trained_adapters import learned_parameters, new_adapter, train_adapter
from analog_grasp.tasks import Task, load_task
from analog_grasp.utils.io import write_atomically


class Training(NamedTuple):
    """Training settings of a task; `share` is a factor on the learning rates of `REDUCED`."""

    epochs: float
    batch_size: int
    share: float


TRAININGS = {
    "glue/cola": Training(1.0, 16, 1 / 6),
    "glue/sst2": Training(0.15, 32, 1.0),
    "glue/mrpc": Training(1.25, 16, 1 / 6),
    "glue/rte": Training(0.75, 8, 1 / 6),
    "glue/stsb": Training(0.75, 16, 1.0),
}
REDUCED = ("lora", "bitfit")
ADAPTERS = ("head", "grasp", "stochgrasp", "ia3", "bitfit", "lora", "full")
TITLES = {
    "head": "linear head",
    "grasp": "GRASP",
    "stochgrasp": "StochGRASP",
    "ia3": "(IA)³",
    "bitfit": "BitFit",
    "lora": "LoRA, r = 8",
    "full": "full fine-tuning",
}
SEEDS = (0, 1, 2)

type Scores = Mapping[tuple[str, str], Sequence[float]]
"""The scores of an adapter on a task in per cent, one per seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with CoLA/ ...")
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    parser.add_argument("--tasks", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    asked = parser.parse_args()
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for seed in asked.seeds:
        for task in asked.tasks:
            for adapter in asked.adapters:
                path = asked.out / task.replace("/", "-") / f"{adapter}-{seed}.json"
                given = (task, adapter, seed, str(asked.data_dir), asked.bf16)
                found = once(path, lambda given=given: measure(*given))
                scores[adapter, task].append(100 * found["score"])
                sizes[adapter] = found["parameters"]
                Console(stderr=True).print(f"{task}, {adapter}, seed {seed}: {found}")
    print(table(scores, sizes, asked.adapters, asked.tasks))


def measure(task: str, adapter: str, seed: int, data_dir: str, bf16: bool) -> dict[str, float]:
    """Train once; return the digital score (the task's first metric) and the parameters."""
    training = TRAININGS[task]
    share = training.share if adapter in REDUCED else 1.0
    return trained_score(
        {
            "task": task,
            "data_dir": data_dir,
            "epochs": training.epochs,
            "batch_size": training.batch_size,
            "learning_rate": share * METHODS[adapter].learning_rate,
            "injection": 0.0,
            "seed": seed,
            "bf16": bf16,
        },
        _task(task, data_dir),
        adapter,
    )


def once(path: Path, measured: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Return the result in a file; measure and write it if there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(measured()).encode())
    return json.loads(path.read_text())


def trained_score(values: Mapping[str, Any], data: Task, adapter: str) -> dict[str, float]:
    """Train an adapter in one stage; return its digital score, parameters and time, s."""
    settings = resolve({"then": "none", **values})
    model = new_adapter(settings, data, adapter)
    seconds = train_adapter(model, settings, data, adapter, silent)
    parameters, _ = learned_parameters(model)
    return {"score": data.evaluate(model), "parameters": parameters, "seconds": seconds}


@cache
def _task(name: str, data_dir: str) -> Task:
    """Load a task; its tokenised sentences are shared by all trainings."""
    return load_task(name, data_dir)


def table(
    scores: Scores, sizes: Mapping[str, int], adapters: Sequence[str], tasks: Sequence[str]
) -> str:
    rows = []
    for adapter in adapters:
        runs = np.array([scores[adapter, task] for task in tasks])
        cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in mean_and_std(runs)]
        ((mean, std),) = mean_and_std(runs.mean(0, keepdims=True))
        rows.append((TITLES[adapter], f"{sizes[adapter]:,}", *cells, f"{mean:.1f} ± {std:.1f}"))
    header = ("", "parameters", *(task.removeprefix("glue/") for task in tasks), "mean")
    return markdown(header, rows)


def mean_and_std(runs: np.ndarray) -> list[tuple[float, float]]:
    """Return mean and standard deviation of each row; the latter is 0 for a single run."""
    one = runs.shape[1] == 1
    return [(row.mean(), 0.0 if one else row.std(ddof=1)) for row in runs]


if __name__ == "__main__":
    main()
