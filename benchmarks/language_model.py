"""Perplexity of a language model on chips, with what language models need on tiles added in turn.

    direct         the weights as they are, inputs scaled vector by vector
    rescaled       inputs and weights rescaled by calibration (NORA, exponent 0.5)
    clipped        rescaled, and the weights clipped by least error under the card's noise
    static         clipped, with static input ranges of least error and first tokens digital
    static-P       the same with ranges at the percentile P
    adc            clipped, with output ranges of least error, one per tile
    grasp-K        clipped, with GRASP of K groups, distilled from the digital model on simulated
                   chips of all ages
    recalibrated   as adc, with GRASP, untrained, re-fitted to each chip at each age with unlabelled
                   examples
    scheduled      as adc, with GRASP, untrained, fitted to each age on simulated chips
    both           scheduled, then re-fitted to each chip
    unclipped      as adc, without clipping, and unclipped-scheduled as scheduled, without clipping
    scheduled-lora scheduled, with LoRA on all linear layers
    rescaled-E     rescaled, with one effect of the device alone, E: programming, drift, read or
                   converters; adc-E is adc so

    python benchmarks/language_model.py --model FOLDER --data-dir path/to/glue

FOLDER is that of `benchmarks/pretrained.py smollm2`, or any other causal model. The text is the
premises of GLUE's RTE: those of the training rows to calibrate, distil and recalibrate on, those of
the validation rows to measure, each premise once. Weights on tiles are stored in bfloat16. An
interrupted run resumes when started again.
"""

import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peers import same_settings
from torch import nn

from analog_grasp import AgeSchedule, deploy, fit_schedule, recalibrate
from analog_grasp.adapters.registry import adapt, kind_of
from analog_grasp.crossbar import Deployment
from analog_grasp.devices.ages import parse_ages
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.evaluator import processor
from analog_grasp.tasks import LanguageModelingTask, load_base_model, load_task
from analog_grasp.training.adapter_parameters import check_deployed, set_parameters
from analog_grasp.training.distillation import fit_on_chips, refit_rate
from analog_grasp.training.examples import draw_examples

DEVICES = (
    *("pcm-hermes-2", "pcm-nandakumar2019", "pcm-afm-2025"),
    *("rram-wan2022", "rram-cmo-falcone"),
)
TIMES = ("0s", "1d", "1y")
CLIPPED = {"rescale": 0.5, "clip": "least-error"}
TREATMENTS: dict[str, dict[str, Any]] = {
    "direct": {},
    "rescaled": {"rescale": 0.5},
    "clipped": CLIPPED,
    "static": CLIPPED | {"ranges": "least-error", "first_token": "digital"},
    "static-99.9": CLIPPED | {"ranges": 99.9, "first_token": "digital"},
    "static-99.99": CLIPPED | {"ranges": 99.99, "first_token": "digital"},
    "adc": CLIPPED | {"output_ranges": "least-error"},
    "grasp-16": CLIPPED | {"groups": 16},
    "grasp-64": CLIPPED | {"groups": 64},
    "recalibrated": CLIPPED | {"output_ranges": "least-error", "recalibrate": True},
    "scheduled": CLIPPED | {"output_ranges": "least-error", "schedule": True},
    "both": CLIPPED | {"output_ranges": "least-error", "schedule": True, "recalibrate": True},
    "unclipped": {"rescale": 0.5, "output_ranges": "least-error"},
    "unclipped-scheduled": {"rescale": 0.5, "output_ranges": "least-error", "schedule": True},
    "scheduled-lora": CLIPPED
    | {"output_ranges": "least-error", "schedule": True, "adapter": "lora-all-linear"},
}
EFFECTS = ("programming", "drift", "read", "converters")
for _name in ("rescaled", "adc"):
    TREATMENTS |= {f"{_name}-{only}": TREATMENTS[_name] | {"only": only} for only in EFFECTS}


@dataclass(frozen=True)
class Asked:
    """The texts, and the effort of the fits."""

    model: str
    task: LanguageModelingTask
    calibration: LanguageModelingTask
    steps: int
    batch_size: int
    examples: int
    groups: int
    schedule_steps: int
    schedule_batch_size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder, or an id on the Hub")
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with RTE/")
    parser.add_argument("--devices", nargs="+", default=DEVICES)
    parser.add_argument("--times", nargs="+", default=TIMES)
    parser.add_argument("--treatments", nargs="+", choices=TREATMENTS, default=list(TREATMENTS))
    parser.add_argument("--chips", type=int, default=1, help="chip instances per device")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens to measure, about")
    parser.add_argument("--calibration-tokens", type=int, default=1024, help="about")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    parser.add_argument("--steps", type=int, default=150, help="of a fit")
    parser.add_argument("--batch-size", type=int, default=4, help="windows per step")
    parser.add_argument("--examples", type=int, default=16, help="windows for recalibration")
    parser.add_argument("--groups", type=int, default=64, help="of adapters fitted to an age")
    parser.add_argument("--schedule-steps", type=int, default=80, help="of a fit to an age")
    parser.add_argument("--schedule-batch-size", type=int, default=4, help="windows per step")
    parser.add_argument("--out", type=Path, default=Path("runs/language-model.jsonl"))
    given = parser.parse_args()
    free = ("devices", "times", "treatments", "chips")
    same_settings(given.out.with_suffix(".settings.json"), given, *free)
    task = premises(given.data_dir, given.window)
    asked = Asked(
        given.model,
        shortened(task, given.tokens),
        shortened(task, given.calibration_tokens, "train"),
        given.steps, given.batch_size, given.examples, given.groups,
        given.schedule_steps, given.schedule_batch_size,
    )  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = read(given.out)
    if "digital" not in known:
        digital = asked.task.evaluate(load_base_model(asked.task, asked.model).to(processor()))
        known["digital"] = append(given.out, "digital", {"digital": digital})
    for device in given.devices:
        for treatment in given.treatments:
            for chip in range(given.chips):
                key = f"{device} {treatment} {chip}"
                missing = [time for time in given.times if time not in known.get(key, {})]
                if missing:
                    found = measure(asked, device, TREATMENTS[treatment], missing, chip)
                    known[key] = known.get(key, {}) | append(given.out, key, found)
                    print(key, json.dumps(found), flush=True)
    print(f"digital {known['digital']['digital']:.4g}\n")
    print(table(known, given.devices, given.treatments, given.times, given.chips))


def premises(data_dir: Path, window: int) -> LanguageModelingTask:
    """Return the premises of RTE as texts, in windows without overlap; each premise is one text."""
    rte = load_task("glue/rte", data_dir)
    parts = [sorted(set(rte.rows(split)["text"])) for split in ("train", "validation")]
    # Longer documents give most tokens a context of many others.
    texts = [["\n\n".join(part[i : i + 8]) for i in range(0, len(part), 8)] for part in parts]
    train, validation = (Dataset.from_dict({"text": text}) for text in texts)
    return LanguageModelingTask("rte-premises", train, validation, stride=window, max_length=window)


def shortened(
    task: LanguageModelingTask, tokens: int, split: str = "validation"
) -> LanguageModelingTask:
    """Return a task with the first texts of a split, of about a number of tokens together."""
    texts, shown = task.rows(split)["text"], []
    for text in texts:
        shown.append(text)
        # English has about 4.5 characters per token.
        if sum(map(len, shown)) >= 4.5 * tokens:
            break
    few = Dataset.from_dict({"text": shown})
    return task.with_rows(*((few, task.validation) if split == "train" else (task.train, few)))


def measure(
    asked: Asked, device: str, treatment: dict[str, Any], times: list[str], chip: int
) -> dict[str, float]:
    """Return the perplexity at each time, on one chip."""
    model: nn.Module = load_base_model(asked.task, asked.model).to(processor())
    groups = treatment.get("groups")
    if {"groups", "schedule", "recalibrate"} & treatment.keys():
        adapter = treatment.get("adapter", "grasp")
        model = adapt(model, adapter, task_type="CAUSAL_LM", groups=groups or asked.groups)
        model = model.to(processor())
    deployment = mapped(asked, model, device, treatment)
    if groups:
        distilled_adapter = distilled(asked, deployment, device, groups)
        set_parameters(check_deployed(deployment, None), distilled_adapter)
    deployment.program(chip)
    found = {}
    for time in times:
        deployment.drift_to(time)
        student: nn.Module = deployment.model
        if "schedule" in treatment:
            student = scheduled(asked, deployment, time)
        if "recalibrate" in treatment:
            student = recalibrate(
                deployment, asked.task, examples=asked.examples, batch_size=asked.batch_size,
                steps=asked.steps, seed=chip, start=student, groups=asked.groups,
            ).model  # fmt: skip
        found[time] = asked.task.evaluate(student)
        if DeviceCard.load(device).drift is None:
            # Without drift every age is the same.
            return dict.fromkeys(times, found[time])
    return found


def mapped(asked: Asked, model: nn.Module, device: str, treatment: dict[str, Any]) -> Deployment:
    """Return a deployment, rescaled and calibrated as a treatment says."""
    settings = {name: treatment[name] for name in ("clip", "first_token") if name in treatment}
    card = DeviceCard.load(device)
    if "only" in treatment:
        card = card.without(*(effect for effect in EFFECTS if effect != treatment["only"]))
    deployment = deploy(model, card, dtype=torch.bfloat16, **settings)
    observe = partial(asked.calibration.scores, split="train")
    if "rescale" in treatment:
        deployment.rescale(observe, treatment["rescale"])
    if "ranges" in treatment:
        deployment.calibrate(observe, treatment["ranges"])
    if "output_ranges" in treatment and card.converters:
        deployment.calibrate_outputs(observe, treatment["output_ranges"])
    return deployment


_DISTILLED: dict[tuple[str, int], dict[str, torch.Tensor]] = {}


def distilled(
    asked: Asked, deployment: Deployment, device: str, groups: int
) -> dict[str, torch.Tensor]:
    """Return the adapter's parameters, fitted to simulated chips of all ages.

    The chips are mapped as the deployment is. Each device and number of groups is fitted once.
    """
    if (device, groups) not in _DISTILLED:
        rows = draw_examples(
            asked.task, asked.steps * asked.batch_size, deployment.model, seed=0, at_most=True
        )
        _DISTILLED[device, groups] = fit_on_chips(
            [deployment], [deployment.model], rows, parse_ages(f"{device}@0s..1y"),
            steps=asked.steps, learning_rate=refit_rate(deployment.model),
            batch_size=asked.batch_size, seed=0,
        )  # fmt: skip
    return _DISTILLED[device, groups]


_SCHEDULES: dict[tuple[str, str, str | None], AgeSchedule] = {}


def scheduled(asked: Asked, deployment: Deployment, time: str) -> nn.Module:
    """Return the model with an adapter fitted to an age on simulated chips, once per device."""
    kind = kind_of(deployment.model)
    key = (deployment.card.name, time, kind)
    if key not in _SCHEDULES:
        _SCHEDULES[key] = fit_schedule(
            deployment, asked.task, [time], steps=asked.schedule_steps,
            batch_size=asked.schedule_batch_size,
            groups=asked.groups if kind == "grasp" else None,
        )  # fmt: skip
    return _SCHEDULES[key].applied(deployment, check_deployed(deployment, None))


def read(path: Path) -> dict[str, dict[str, float]]:
    """Return the perplexities measured so far, by device, treatment and chip."""
    known: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        for key, found in json.loads(line).items():
            known.setdefault(key, {}).update(found)
    return known


def append(path: Path, key: str, found: dict[str, float]) -> dict[str, float]:
    """Write one measurement, and return it."""
    with path.open("a") as file:
        file.write(json.dumps({key: found}) + "\n")
    return found


def table(
    known: dict[str, dict[str, float]],
    devices: list[str],
    treatments: list[str],
    times: list[str],
    chips: int,
) -> str:
    """Return the geometric mean of the perplexity over the chips, as a table in Markdown."""
    lines = [f"| device | treatment | {' | '.join(times)} |", "|---|---|" + "---|" * len(times)]
    for device in devices:
        for treatment in treatments:
            found = [known[f"{device} {treatment} {chip}"] for chip in range(chips)]
            means = [torch.tensor([each[t] for each in found]).log().mean().exp() for t in times]
            lines.append(f"| {device} | {treatment} | {' | '.join(f'{m:.4g}' for m in means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
