"""Search of the two stages of training: epochs, injected noise, and steps on simulated chips.

Trains GRASP and then distils it on simulated chips of two PCM and two RRAM devices from 0 s to a
year. Prints its digital score and its mean score after a year, over three other chips of each
device, on rows held out of the training split (accuracy; Pearson correlation for STS-B; times
100). The validation split is not used.

    python benchmarks/second_stage.py
    python benchmarks/second_stage.py --task glue/stsb --data-dir path/to/glue --epochs 0.5

About five minutes of one core for each row of the table. An interrupted run resumes.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

from glue import once
from peers import markdown
from rich.console import Console

from analog_grasp.crossbar import deploy
from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.trained_adapters import new_adapter, train_adapter
from analog_grasp.tasks import Task, load_task
from analog_grasp.tasks.base import tuning_task

# Seeds of chips that neither the second stage nor the default comparison programs.
CHIPS = (500, 501, 502)
AGE = "1y"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--data-dir", type=Path, help="the folder with the task's files")
    parser.add_argument("--adapter", default="grasp")
    parser.add_argument("--epochs", nargs="+", type=float, default=[3.0, 6.0])
    parser.add_argument("--injection", nargs="+", type=float, default=[0.0, 0.02, 0.04, 0.06])
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 150, 300])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/second-stage"))
    asked = parser.parse_args()
    held_out = tuning_task(load_task(asked.task, asked.data_dir), seed=0)
    rows = []
    for epochs, injection, steps in product(asked.epochs, asked.injection, asked.steps):
        settings = resolve(
            {
                "task": asked.task,
                "data_dir": asked.data_dir and str(asked.data_dir),
                "adapters": (asked.adapter,),
                "epochs": epochs,
                "injection": injection,
                "seed": asked.seed,
                **({"then_steps": steps} if steps else {"then": "none"}),
            }
        )
        name = f"{asked.adapter}-{epochs:g}-{injection:g}-{steps}-{asked.seed}.json"
        path = asked.out / asked.task.replace("/", "-") / name
        found = once(path, partial(measure, settings, held_out))
        Console(stderr=True).print(name, found)
        devices = settings.hardware.devices
        scores = [100 * found[device] for device in devices]
        mean = sum(scores) / len(scores)
        cells = (100 * found["digital"], *scores, mean)
        rows.append((f"{epochs:g}", f"{injection:g}", str(steps), *(f"{c:.1f}" for c in cells)))
    header = ("epochs", "injection", "steps on chips", "digital", *devices, f"mean at {AGE}")
    print(markdown(header, rows))


def measure(settings: StudyConfig, task: Task) -> dict[str, float]:
    """Return the digital score and the mean score over chips of each device after a year."""
    (adapter,) = settings.model.adapters
    model = new_adapter(settings, task, adapter)
    train_adapter(model, settings, task, adapter, silent)
    found = {"digital": task.evaluate(model)}
    for name, card in settings.hardware.cards().items():
        deployment = deploy(model, card)
        scores = [
            task.evaluate(deployment.program(seed=chip).drift_to(AGE).model) for chip in CHIPS
        ]
        found[name] = sum(scores) / len(scores)
    return found


if __name__ == "__main__":
    main()
