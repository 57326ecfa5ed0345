"""E2E NLG with a language model: adapters, digital and on a chip, by the official metrics.

    python benchmarks/e2e_nlg.py --model FOLDER --data-dir path/to/e2e

FOLDER is that of `benchmarks/pretrained.py smollm2`, or any other causal model. Each adapter is
trained on `e2e/dev`. On the chip weights are rescaled and clipped, ADC ranges are of least error,
one per tile, and each age is measured with the adapter as it was trained and with one that is
fitted to the age on simulated chips. METEOR, ROUGE-L and CIDEr require Java. An interrupted run
resumes.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peers import same_settings
from peft import PeftModel
from torch import nn

from analog_grasp import deploy, fit_schedule, train
from analog_grasp.adapters.registry import adapt
from analog_grasp.crossbar import Deployment
from analog_grasp.study.evaluator import processor
from analog_grasp.tasks import Task, load_base_model, load_task
from analog_grasp.training.adapter_parameters import check_deployed
from analog_grasp.training.examples import draw_examples

# Half of GRASP's default and a third of LoRA's, as the model is deeper than those they suit.
LEARNING_RATES = {"grasp": 0.01, "stochgrasp": 0.01, "lora": 0.001}
DIGITAL = "digital"
_CALIBRATION = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder, or an id on the Hub")
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with devset.csv")
    parser.add_argument("--adapters", nargs="+", choices=LEARNING_RATES, default=["grasp", "lora"])
    parser.add_argument("--device", default="pcm-hermes-2")
    parser.add_argument("--times", nargs="+", default=["0s", "1d", "1y"])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--schedule-steps", type=int, default=40, help="of a fit to an age")
    parser.add_argument("--batch-size", type=int, default=16, help="examples per step")
    parser.add_argument("--out", type=Path, default=Path("runs/e2e-nlg"))
    asked = parser.parse_args()
    same_settings(asked.out / "settings.json", asked, "adapters", "times")
    task = load_task("e2e/dev", asked.data_dir)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.adapters:
        measure(asked, task, name)
    print(table(asked.out, task.metrics))


def measure(asked: argparse.Namespace, task: Task, name: str) -> None:
    """Measure what is missing of one adapter: digital, then on the chip at each age."""
    model = trained(asked, task, name)
    keep(asked.out, task, name, DIGITAL, "", lambda: model)
    deployment = mapped(asked.device, task, model)
    for time in asked.times:
        deployment.drift_to(time)
        keep(asked.out, task, name, f"{asked.device} {time}", "", lambda: deployment.model)
        if deployment.time_s:
            fitted = partial(scheduled, asked, task, deployment, time)
            keep(asked.out, task, name, f"{asked.device} {time}", "adapter of the age", fitted)


def trained(asked: argparse.Namespace, task: Task, name: str) -> PeftModel:
    """Return the model with an adapter, which is trained unless it was saved before."""
    base = load_base_model(task, asked.model).to(processor())
    folder = asked.out / name
    if folder.is_dir():
        return PeftModel.from_pretrained(base, str(folder)).eval()
    places = {} if name == "lora" else {"target_modules": "all-linear"}
    torch.manual_seed(0)
    model = adapt(base, name, task_type=task.task_type, **places).to(processor())
    rate, size = LEARNING_RATES[name], asked.batch_size
    train(model, task, epochs=asked.epochs, batch_size=size, learning_rate=rate, seed=0)
    model.save_pretrained(str(folder))
    return model


def mapped(device: str, task: Task, model: PeftModel) -> Deployment:
    """Return a chip with the model, rescaled and calibrated with a few training examples."""
    batch = draw_examples(task, _CALIBRATION, model, seed=1, at_most=True)
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    deployment = deploy(model, device, dtype=torch.bfloat16, clip="least-error")
    with torch.no_grad():
        deployment.rescale(lambda each: each(**inputs), 0.5)
        deployment.calibrate_outputs(lambda each: each(**inputs), "least-error")
    return deployment.program(0)


def scheduled(
    asked: argparse.Namespace, task: Task, deployment: Deployment, time: str
) -> nn.Module:
    """Return the model with an adapter fitted to an age on simulated chips."""
    steps, size = asked.schedule_steps, asked.batch_size
    schedule = fit_schedule(deployment, task, [time], steps=steps, batch_size=size)
    return schedule.applied(deployment, check_deployed(deployment, None))


def keep(
    out: Path, task: Task, name: str, place: str, treatment: str, model: Callable[[], nn.Module]
) -> None:
    """Measure one condition and write it, unless it was written before."""
    if (name, place, treatment) in read(out):
        return
    found = {"adapter": name, "place": place, "treatment": treatment, **task.scores(model())}
    print(json.dumps(found), flush=True)
    with (out / "measured.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


def read(out: Path) -> dict[tuple[str, str, str], dict]:
    """Return what was measured so far, by adapter, place and treatment."""
    path = out / "measured.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = map(json.loads, lines)
    return {(row["adapter"], row["place"], row["treatment"]): row for row in rows}


def table(out: Path, metrics: tuple[str, ...]) -> str:
    """Return all scores as a table in Markdown."""
    lines = [f"| adapter | where | treatment | {' | '.join(metrics)} |"]
    lines.append("| :-- | :-- | :-- |" + " --: |" * len(metrics))
    for key, row in read(out).items():
        lines.append(f"| {' | '.join(key)} | {' | '.join(f'{row[m]:.3f}' for m in metrics)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
