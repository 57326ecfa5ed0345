"""Search of the two stages of training: epochs, injected noise, and steps.

Trains GRASP, and then distils it on simulated chips of two PCM and two RRAM devices from 0 s to a
year. Prints its digital score and its mean score after a year, over three other chips of each
device, on rows held out of the training split (accuracy; Pearson correlation for STS-B; times
100). The validation split is not used.

    python benchmarks/second_stage.py
    python benchmarks/second_stage.py --task glue/stsb --data-dir path/to/glue --epochs 0.5
    python benchmarks/second_stage.py --epochs 5 --injection 0.04 --seeds 0 1 2

About five minutes of one core for each row of the table. An interrupted run resumes.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from glue import once
from peers import markdown
from peft import PeftModel
from rich.console import Console

from analog_grasp.crossbar import deploy
from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.trained_adapters import distil_adapter, new_adapter, train_adapter
from analog_grasp.tasks import Task, load_task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.training.adapter_parameters import adapter_parameters, set_parameters

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
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/second-stage"))
    asked = parser.parse_args()
    held_out = tuning_task(load_task(asked.task, asked.data_dir), seed=0)
    rows = []
    for seed, epochs, injection in product(asked.seeds, asked.epochs, asked.injection):
        settings = resolve(
            {
                "task": asked.task,
                "data_dir": asked.data_dir and str(asked.data_dir),
                "adapters": (asked.adapter,),
                "epochs": epochs,
                "injection": injection,
                "seed": seed,
            }
        )
        steps = "-".join(map(str, asked.steps))
        name = f"{asked.adapter}-{epochs:g}-{injection:g}-{steps}-{seed}.json"
        path = asked.out / asked.task.replace("/", "-") / name
        found = once(path, partial(train, settings, held_out, asked.steps))
        Console(stderr=True).print(name, found)
        for count, scores in found.items():
            rows.append((f"{epochs:g}", f"{injection:g}", count, str(seed), *score_cells(scores)))
    header = ("epochs", "injection", "steps on chips", "seed")
    print(markdown((*header, *score_header(settings.hardware.devices)), rows))


def score_header(devices: Sequence[str]) -> tuple[str, ...]:
    """Return the headings of the columns of `score_cells`."""
    return ("digital", *devices, f"mean at {AGE}")


def score_cells(scores: dict[str, float]) -> list[str]:
    """Return the digital score, those of each device and their mean, times 100."""
    by_device = list(scores.values())[1:]
    return [f"{100 * score:.1f}" for score in (*scores.values(), sum(by_device) / len(by_device))]


def train(settings: StudyConfig, task: Task, steps: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return the scores after a first stage, and after each length of a second one that follows."""
    (adapter,) = settings.model.adapters
    first = settings.replace(then="none")
    model = new_adapter(first, task, adapter)
    train_adapter(model, first, task, adapter, silent)
    assert isinstance(model, PeftModel)
    learned = {name: values.detach().clone() for name, values in adapter_parameters(model)}
    found = {}
    for count in steps:
        set_parameters(model, learned)
        if count:
            distil_adapter(model, settings.replace(then_steps=count), task)
        found[str(count)] = measure(settings, model, task)
    return found


def measure(settings: StudyConfig, model: PeftModel, task: Task) -> dict[str, float]:
    """Return the digital score and the mean score over chips of each device after a year."""
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
