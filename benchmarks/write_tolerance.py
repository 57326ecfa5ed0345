"""Accuracy against programming effort: write tolerances of the frozen weights, compared.

On the chips of one device, a saved StochGRASP adapter is scored with its weights written to
tolerances that are the same for all (uniform), learned per group (StochGRASP), or tight for the
largest (magnitude) or the most sensitive weights (SWIM) and without verification for the others.

    python benchmarks/write_tolerance.py runs/train/stochgrasp --repeats 3
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import analog_grasp as ag
from analog_grasp.adapters.layer import StochGraspLinear
from analog_grasp.crossbar.write_tolerance import (
    learned_tolerances,
    magnitudes,
    mean_pulses,
    selected_tolerances,
    sensitivities,
    set_write_tolerances,
)
from analog_grasp.report.tables import TextTable, markdown_table
from analog_grasp.study.trained_adapters import load_adapter

# With 0.115, and with equal standard deviations x 2.7, writing takes two pulses per device, as with
# StochGRASP's x 4.
UNIFORM = (math.inf, 0.2, 0.115, 0.1, 0.05, 0.025)
FACTORS = (4.0, 2.0, 1.0, 0.5)
EQUAL = (4.0, 2.7, 2.0, 1.0, 0.5)
SHARES = (0.1, 0.3, 0.5, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path, help="folder of a StochGRASP adapter")
    parser.add_argument("--model", help="the adapter's pre-trained model")
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="rram-wan2022")
    parser.add_argument("--time", default="0s")
    parser.add_argument("--repeats", type=int, default=3, help="chips")
    parser.add_argument("--examples", type=int, default=32, help="of the sensitivity")
    options = parser.parse_args()
    task = ag.load_task(options.task, options.data_dir)
    model = load_adapter(options.adapter, options.model, task, False)
    print(f"digital: {task.evaluate(model):.3f}\n")
    mapped = ag.deploy(model, options.device)
    rows = []
    for label, tolerances in settings(mapped, model, task, options.examples):
        deployment = set_write_tolerances(ag.deploy(model, options.device), tolerances)
        scores, errors = [], []
        for chip in range(options.repeats):
            deployment.program(chip).drift_to(options.time)
            errors.append(mean(layer.weight_error for layer in deployment.report()))
            scores.append(task.evaluate(deployment.model))
        spread = f"{100 * min(scores):.1f} to {100 * max(scores):.1f}"
        entries = (
            f"{mean_pulses(deployment):.2f}", f"{100 * mean(scores):.1f}", spread,
            f"{mean(errors):.2%}",
        )  # fmt: skip
        rows.append((label, *entries))
        print(label, *entries, flush=True)
    columns = ("write tolerance", "pulses per device", task.metrics[0], "chips", "weight error")
    title = f"{options.device} at {options.time}, {options.repeats} chips"
    print(markdown_table(TextTable(title, columns, tuple(rows))))


def settings(
    deployment: ag.Deployment, model, task, examples: int
) -> Iterator[tuple[str, float | Mapping[str, Tensor]]]:
    """Yield each setting of the tolerances with its label."""
    for tolerance in UNIFORM:
        yield f"uniform, {tolerance:g}", tolerance
    for factor in FACTORS:
        yield f"StochGRASP, x {factor:g}", learned_tolerances(deployment, factor)
    # The control: groups of the same weights, with one standard deviation for all.
    make_sigmas_equal(deployment)
    for factor in EQUAL:
        yield f"equal sigmas, x {factor:g}", learned_tolerances(deployment, factor)
    by_size = magnitudes(deployment)
    by_loss = sensitivities(deployment, model, batches(model, task, examples))
    for name, scores in (("magnitude", by_size), ("SWIM", by_loss)):
        for share in SHARES:
            chosen = selected_tolerances(scores, share, UNIFORM[-1])
            yield f"{name}, {share:.0%} verified", chosen


def make_sigmas_equal(deployment: ag.Deployment) -> None:
    """Give all groups of all layers the mean relative standard deviation of the scales."""
    layers = [m for m in deployment.model.modules() if isinstance(m, StochGraspLinear)]
    learned = [layer.relative_sigmas(layer.active_adapters[0])[0] for layer in layers]
    average = torch.cat(learned).mean().log()
    for layer in layers:
        logarithms = getattr(layer, layer.adapter_layer_names[2])
        logarithms[layer.active_adapters[0]].data.fill_(average)


def batches(model, task, examples: int) -> Iterator[Mapping[str, Tensor]]:
    """Yield training examples, one at a time, with their labels."""
    tokenizer = task.tokenizer_of(model)
    for row in task.subset(train=examples).train:
        tokens = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=128)
        yield {**tokens, "labels": torch.tensor([row["label"]])}


if __name__ == "__main__":
    main()
