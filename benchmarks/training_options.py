"""Comparison of options of training: the form of GRASP, its groups, and the noise of training.

Trains an adapter with each option in turn and all other settings at their defaults, and distils it
on simulated chips of two PCM and two RRAM devices from 0 s to a year. Prints its digital score and
its mean score over three other chips of each device after a year, after the first stage and after
both, on rows held out of the training split (accuracy; Pearson correlation for STS-B; times 100).
The validation split is not used.

    python benchmarks/training_options.py
    python benchmarks/training_options.py --task glue/sst2 --data-dir path/to/glue --epochs 0.1

About five minutes of one core for each row of the table. An interrupted run resumes.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from glue import once
from peers import markdown
from rich.console import Console
from second_stage import score_cells, score_header, train

from analog_grasp.study.config import resolve
from analog_grasp.tasks import load_task
from analog_grasp.tasks.base import tuning_task

DEVICES = ("pcm-nandakumar2019", "pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone")
AGES = ",".join(f"{device}@0s..1y" for device in DEVICES)
WIDE_AGES = ",".join(f"{device}@0s..1y x1.5" for device in DEVICES)
# The adapter and the settings that differ from the defaults.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRASP": ("grasp", {}),
    "strided groups": ("grasp", {"grouping": "strided"}),
    "random groups": ("grasp", {"grouping": "random"}),
    "form normalize": ("grasp", {"form": "normalize"}),
    "injection 0.06": ("grasp", {"injection": 0.06}),
    "injection of pcm-hermes-2 from 0 s to a year": (
        "grasp",
        {"injection": "pcm-hermes-2@0s..1y"},
    ),
    "injection of the four devices from 0 s to a year": ("grasp", {"injection": AGES}),
    "the same, standard deviations x 1.5": ("grasp", {"injection": WIDE_AGES}),
    "converters of pcm-hermes-2": ("grasp", {"converters": "pcm-hermes-2"}),
    "StochGRASP": ("stochgrasp", {}),
    "StochGRASP, one draw per group": ("stochgrasp", {"sampling": "group"}),
    "StochGRASP, lambda and target raised linearly": (
        "stochgrasp",
        {"noise_weight_schedule": "linear", "noise_target_schedule": "linear"},
    ),
}
STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--data-dir", type=Path, help="the folder with the task's files")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/training-options"))
    asked = parser.parse_args()
    held_out = tuning_task(load_task(asked.task, asked.data_dir), seed=0)
    rows = []
    for seed, option in product(asked.seeds, asked.options):
        adapter, changed = OPTIONS[option]
        settings = resolve(
            {
                "task": asked.task,
                "data_dir": asked.data_dir and str(asked.data_dir),
                "adapters": (adapter,),
                "devices": DEVICES,
                "epochs": asked.epochs,
                "seed": seed,
                **changed,
            }
        )
        name = f"{option.replace(' ', '-')}-{asked.epochs:g}-{seed}.json"
        path = asked.out / asked.task.replace("/", "-") / name
        found = once(path, partial(train, settings, held_out, (0, STEPS)))
        Console(stderr=True).print(name, found)
        rows += [(option, str(seed), n, *score_cells(scores)) for n, scores in found.items()]
    print(markdown(("option", "seed", "steps on chips", *score_header(DEVICES)), rows))


if __name__ == "__main__":
    main()
