"""Does GRASP reach LoRA's quality on real GLUE with a tenth of its numbers?

Trains every adapter, digital and without noise, on CoLA, SST-2, MRPC, RTE and STS-B with the
built-in model, from three seeds, and prints a table: mean and spread of each task's score on its
validation set, the mean over tasks, and how many numbers were trained.

    python benchmarks/glue.py --data-dir path/to/glue

Each task has the passes and the batch below for all of its adapters, and a share of the learning
rate that is each adapter's own: on a small task the whole of it can make features run away, until
an adapter gives one answer to everything, which the training loss shows by staying where it began.
Some hours on 2 cores; stopped, it goes on where it was when started again.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peers import markdown
from rich.console import Console

from analog_grasp import compare
from analog_grasp.adapters.baselines import ADAPTERS as METHODS


class Training(NamedTuple):
    """What a task's adapters have in common; the share is of their own learning rates."""

    epochs: float
    batch_size: int
    share: float


TRAININGS = {
    "glue/cola": Training(1.0, 8, 0.25),
    "glue/sst2": Training(0.15, 32, 1.0),
    "glue/mrpc": Training(1.5, 8, 0.25),
    "glue/rte": Training(1.0, 8, 0.25),
    "glue/stsb": Training(0.75, 8, 1.0),
}
OWN_RATE = ("head", "full")
"""Frozen features cannot run away, and full fine-tuning's rate is small already."""
ADAPTERS = ("head", "grasp", "stochgrasp", "ia3", "bitfit", "lora", "full")
TITLES = {
    "head": "linear head",
    "grasp": "GRASP, K = 16",
    "stochgrasp": "StochGRASP, K = 16",
    "ia3": "(IA)³",
    "bitfit": "BitFit",
    "lora": "LoRA, r = 8",
    "full": "all weights",
}
SEEDS = (0, 1, 2)

type Scores = Mapping[tuple[str, str], Sequence[float]]
"""The scores of an adapter on a task, in per cent, one a seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with CoLA/ ...")
    parser.add_argument("--out", type=Path, default=Path("runs/glue"))
    parser.add_argument("--tasks", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    asked = parser.parse_args()
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for seed in asked.seeds:
        for task in asked.tasks:
            for adapter in asked.adapters:
                score, sizes[adapter] = measure(task, adapter, seed, asked.data_dir, asked.out)
                scores[adapter, task].append(100 * score)
                Console(stderr=True).print(f"{task}, {adapter}, seed {seed}: {100 * score:.1f}")
    print(table(scores, sizes, asked.adapters, asked.tasks))


def measure(task: str, adapter: str, seed: int, data_dir: Path, out: Path) -> tuple[float, int]:
    """The digital score of one training (the task's first metric), and the numbers it learned."""
    training = TRAININGS[task]
    share = 1.0 if adapter in OWN_RATE else training.share
    results = compare(
        out / task.replace("/", "-") / f"{adapter}-{seed}",
        task=task,
        data_dir=str(data_dir),
        adapters=(adapter,),
        devices=("ideal",),
        times=("0s",),
        repeats=1,
        placement="folded" if adapter == "full" else "digital",
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=share * METHODS[adapter].learning_rate,
        injection=0.0,
        seed=seed,
    )
    (record,) = results.adapters
    return next(iter(record.digital.values())), record.trainable_parameters


def table(
    scores: Scores, sizes: Mapping[str, int], adapters: Sequence[str], tasks: Sequence[str]
) -> str:
    rows = []
    for adapter in adapters:
        runs = np.array([scores[adapter, task] for task in tasks])
        cells = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in spreads(runs)]
        ((mean, spread),) = spreads(runs.mean(0, keepdims=True))
        rows.append((TITLES[adapter], f"{sizes[adapter]:,}", *cells, f"{mean:.1f} ± {spread:.1f}"))
    header = ("", "numbers trained", *(task.removeprefix("glue/") for task in tasks), "mean")
    return markdown(header, rows)


def spreads(runs: np.ndarray) -> list[tuple[float, float]]:
    """Mean and standard deviation of each row; the latter is 0 for a single run."""
    one = runs.shape[1] == 1
    return [(row.mean(), 0.0 if one else row.std(ddof=1)) for row in runs]


if __name__ == "__main__":
    main()
