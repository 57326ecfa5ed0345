"""Search of the default learning rates, and of K for GRASP, with the same budget for all adapters.

Trains every adapter at four learning rates, a factor of two apart, on rows held out of the training
split of `reviews`, SST-2 and STS-B with the built-in model, and on `reviews` with a second model.
Prints the score on the held-out rows (accuracy; Pearson correlation for STS-B; times 100). The
validation splits are not used.

    python benchmarks/defaults.py --data-dir path/to/glue --second-model path/to/mpnet

About two hours on one core. An interrupted run resumes when started again, and processes with other
adapters or tasks can share a folder.
"""

import argparse
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from glue import once, trained
from peers import markdown, same_settings
from rich.console import Console

from analog_grasp.tasks import Task, load_task
from analog_grasp.tasks.base import tuning_task
from analog_grasp.utils.types import DEFAULT_GROUPS, SHIFT_LR_RATIO


class Setting(NamedTuple):
    """A task on a model, and how long an adapter is trained on it."""

    task: str
    second_model: bool
    epochs: float
    batch_size: int


# About 150 steps each; the second model is larger and is trained for one epoch.
SETTINGS = {
    "reviews": Setting("reviews", False, 3.0, 32),
    "sst2": Setting("glue/sst2", False, 0.06, 32),
    "stsb": Setting("glue/stsb", False, 0.5, 16),
    "reviews, second model": Setting("reviews", True, 1.0, 32),
}
# The rates in the order in which they are tried: the middle of the range first.
RATES = {
    "grasp": (0.02, 0.01, 0.04, 0.005),
    "stochgrasp": (0.02, 0.01, 0.04, 0.005),
    "lora": (0.004, 0.002, 0.008, 0.001),
    "lora-all-linear": (0.002, 0.001, 0.004, 0.0005),
    "ia3": (0.02, 0.01, 0.04, 0.08),
    "bitfit": (0.004, 0.002, 0.008, 0.001),
    "full": (1e-4, 5e-5, 2e-4, 4e-4),
    "head": (0.02, 0.01, 0.04, 0.08),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="the folder with SST-2/ and STS-B/")
    parser.add_argument("--second-model", help="the folder of a larger model; else it is omitted")
    parser.add_argument("--out", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--adapters", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument(
        "--groups", type=int, default=DEFAULT_GROUPS, help="K of GRASP and StochGRASP"
    )
    parser.add_argument("--shift-lr-ratio", type=float, default=SHIFT_LR_RATIO)
    parser.add_argument("--rates", type=int, default=4, help="learning rates per adapter")
    asked = parser.parse_args()
    free = ("settings", "adapters", "groups", "shift_lr_ratio", "rates")
    same_settings(asked.out / "settings.json", asked, *free)
    found: dict[tuple[str, str, float], dict[str, float]] = {}
    for trial in range(asked.rates):
        for adapter in asked.adapters:
            for name in asked.settings:
                if SETTINGS[name].second_model and asked.second_model is None:
                    continue
                rate = RATES[adapter][trial]
                found[adapter, name, rate] = cell(asked, adapter, name, rate)
                Console(stderr=True).print(adapter, name, rate, found[adapter, name, rate])
    for adapter in asked.adapters:
        rates = sorted(RATES[adapter][: asked.rates])
        names = [name for name in asked.settings if (adapter, name, rates[0]) in found]
        rows = []
        for rate in rates:
            scores = [100 * found[adapter, name, rate]["score"] for name in names]
            mean = sum(scores) / len(scores)
            rows.append((f"{rate:g}", *(f"{score:.1f}" for score in scores), f"{mean:.1f}"))
        parameters = found[adapter, names[0], rates[0]]["parameters"]
        print(f"\n**{adapter}**, {parameters:,} parameters\n")
        print(markdown(("learning rate", *names, "mean"), rows))


def cell(asked: argparse.Namespace, adapter: str, name: str, rate: float) -> dict[str, float]:
    """Return the held-out score and the number of parameters of a training, made once."""
    own = f"-{asked.groups}-{asked.shift_lr_ratio:g}" if "grasp" in adapter else ""
    path = asked.out / name.replace(", ", "-").replace(" ", "-") / f"{adapter}{own}-{rate:g}.json"
    return once(path, partial(measure, asked, adapter, name, rate))


def measure(asked: argparse.Namespace, adapter: str, name: str, rate: float) -> dict[str, float]:
    setting = SETTINGS[name]
    own: dict[str, Any] = {}
    if "grasp" in adapter:
        own = {"groups": asked.groups, "shift_lr_ratio": asked.shift_lr_ratio}
    data_dir = asked.data_dir if setting.task.startswith("glue/") else None
    _, found = trained(
        {
            "task": setting.task,
            "data_dir": data_dir,
            "model": asked.second_model if setting.second_model else None,
            "bf16": setting.second_model,
            "epochs": setting.epochs,
            "batch_size": setting.batch_size,
            "learning_rate": rate,
            **own,
        },
        held_out(setting.task, data_dir),
        adapter,
    )
    return found


@cache
def held_out(task: str, data_dir: str | None) -> Task:
    """Return a task whose validation rows come from the training split."""
    return tuning_task(load_task(task, data_dir), seed=0)


if __name__ == "__main__":
    main()
