"""Robustness of GRASP and of variants of StochGRASP under noise.

Tunes StochGRASP's noise-aware loss weight on training data only. Then trains GRASP, StochGRASP with
that weight and variants of StochGRASP from several seeds, and measures them on the validation data
of the task: at four levels of Gaussian noise, in the frozen weights or in the adapter's parameters,
and on two PCM and two RRAM devices over time.

    python benchmarks/noise.py --task glue/sst2 --data-dir path/to/glue --epochs 0.25

Some hours on 2 cores; an interrupted run resumes when started again.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peers import markdown
from rich.console import Console

from analog_grasp import drift_sweep, tune_noise_weight
from analog_grasp.study.config import resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.records import Measurement
from analog_grasp.study.statistics import (
    PairedDifference,
    estimate,
    paired_differences,
    summarise,
    variants,
)
from analog_grasp.study.trained_adapters import new_adapter, save_adapter, train_adapter
from analog_grasp.utils.time import format_time
from analog_grasp.utils.types import SHIFT_LR_RATIO

LEVELS = ("gaussian:0.02", "gaussian:0.05", "gaussian:0.1", "gaussian:0.2")
DEVICES = ("pcm-nandakumar2019", "pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone")
TIMES = ("0s", "1d", "1y")
WEIGHTS = {"devices": LEVELS, "times": ("0s",)}
PARAMETERS = {**WEIGHTS, "placement": "programmed", "weights": "digital"}

TUNED_ON: dict[str, dict[str, Any]] = {
    "stochgrasp": {"devices": DEVICES, "times": ("1d", "1y")},
    "tuned-for-its-own-noise": PARAMETERS,
}
"""Hardware on which loss weights are tuned; other variants use the first one."""

MARKS = {"better": "▲", "worse": "▼", "not significant": "·", "open": "?"}

BASELINE = "grasp"
MAIN = (BASELINE, "stochgrasp")
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "stochgrasp": {},
    "tuned-for-its-own-noise": {},
    "untuned": {"noise_weight": 1.0},
    "free-sigma": {"noise_weight": 0.0},
    "small-sigma": {"noise_target": 0.02},
    "sigma-of-a-device": {"noise_target": "pcm-hermes-2@1d"},
    "draw-per-group": {"sampling": "group"},
    "draw-per-weight": {"sampling": "weight"},
    "not-injected": {"injection": 0.0},
    "grasp-not-injected": {"injection": 0.0},
}
"""Settings of each variant that differ from the tuned StochGRASP; "grasp-..." is GRASP."""


class NoiseStudy(NamedTuple):
    """A study of one source of noise, with all variants or with the main two."""

    title: str
    settings: Mapping[str, Any]
    all_variants: bool


STUDIES = {
    "weights": NoiseStudy("Noise of the frozen weights", WEIGHTS, True),
    "adapter": NoiseStudy("Noise of the adapter's own parameters", PARAMETERS, True),
    "devices": NoiseStudy("Devices over time", {"devices": DEVICES, "times": TIMES}, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--data-dir", type=Path, help="the folder with the task's files")
    parser.add_argument("--model", help="a folder or Hub id; the built-in model by default")
    parser.add_argument("--out", type=Path, default=Path("runs/noise"))
    parser.add_argument("--epochs", type=float, default=3.0, help="epochs of each training")
    parser.add_argument("--batch-size", type=int, default=32, help="batch size")
    parser.add_argument("--learning-rate", type=float, help="of all adapters; their own by default")
    parser.add_argument("--shift-lr-ratio", type=float, default=SHIFT_LR_RATIO, help="of GRASP's")
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    parser.add_argument("--precision", choices=("exact", "fast"), default="exact", help="of tiles")
    parser.add_argument("--trials", type=int, default=10, help="loss weights to try")
    parser.add_argument("--repeats", type=int, default=5, help="chip instances per device")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    asked = parser.parse_args()
    console = Console(stderr=True)
    data_dir = str(asked.data_dir) if asked.data_dir else None
    task = {
        "task": asked.task,
        "data_dir": data_dir,
        "model": asked.model,
        "precision": asked.precision,
    }
    training = task | {
        "epochs": asked.epochs,
        "batch_size": asked.batch_size,
        "learning_rate": asked.learning_rate,
        "shift_lr_ratio": asked.shift_lr_ratio,
        "bf16": asked.bf16,
    }
    tuned = {}
    for name, where in TUNED_ON.items():
        if name != "stochgrasp" and name not in asked.variants:
            continue
        tuned[name] = tuned_weight(asked.out / "tune" / name, training | where, asked.trials)
        console.print(f"{name}: a noise-aware loss weight of {tuned[name]:.3g}")
    measured: dict[str, list[list[Measurement]]] = {name: [] for name in asked.studies}
    for seed in asked.seeds:
        folder = asked.out / f"seed-{seed}"
        for variant in asked.variants:
            noise_weight = tuned.get(variant, tuned["stochgrasp"])
            trained(folder, variant, training | {"seed": seed}, noise_weight)
        for name in asked.studies:
            found = sweep(folder, name, asked.variants, task | {"seed": seed}, asked.repeats)
            measured[name].append(found)
            console.print(f"seed {seed}: {STUDIES[name].title} measured")
    for name, runs in measured.items():
        print(f"**{STUDIES[name].title}: {asked.task}, {len(runs)} trainings**\n")
        print(f"{table(runs)}\n")


def tuned_weight(out: Path, settings: Mapping[str, Any], trials: int) -> float:
    """Return the best loss weight on chips and held-out training data."""
    tuned = tune_noise_weight(out, trials=trials, repeats=1, seed=0, **settings)
    return tuned.settings.training.noise_weight


def trained(folder: Path, variant: str, task: Mapping[str, Any], noise_weight: float) -> None:
    """Train a variant and save it in the folder, unless it exists."""
    path = folder / "adapters" / variant
    if path.is_dir():
        return
    kind = BASELINE if variant.startswith(BASELINE) else "stochgrasp"
    values = {"noise_weight": noise_weight, "then": "none", **task, **VARIANTS[variant]}
    settings = resolve(values)
    data = settings.task.load()
    model = new_adapter(settings, data, kind)
    train_adapter(model, settings, data, variant, silent)
    # Renamed at the end, so that an interrupted training leaves no incomplete adapter.
    part = path.with_name(f".{variant}.part")
    save_adapter(model, part)
    part.rename(path)


def sweep(
    folder: Path, study: str, variants: Sequence[str], task: Mapping[str, Any], repeats: int
) -> list[Measurement]:
    """Measure the adapters of one seed on the same chip instances."""
    placed = STUDIES[study]
    kept = variants if placed.all_variants else [v for v in variants if v in MAIN]
    saved = [folder / "adapters" / variant for variant in kept]
    results = drift_sweep(saved, folder / study, repeats=repeats, **task, **placed.settings)
    metric = results.measurements[0].metric
    return [cell for cell in results.measurements if cell.metric == metric]


def table(runs: Sequence[Sequence[Measurement]]) -> str:
    """Return a row per device and time: GRASP's score and the variants' differences, in points.

    Both are means over trainings. The interval is a t interval over the means of the trainings, or
    over chip instances for a single training. One mark per training shows if the interval of its
    paired difference over chip instances excludes zero.
    """
    differences = [d for run in runs for d in against_baseline(run)]
    scores = {(*_cell(s), s.adapter): s for s in summarise([m for run in runs for m in run])}
    rows = []
    for cell, at_cell in _grouped(differences, _cell):
        device, seconds = cell
        base = f"{100 * scores[(*cell, BASELINE)].mean:.1f}"
        added = [
            difference_text(same) for _, same in _grouped(at_cell, lambda d: d.adapter.adapter)
        ]
        rows.append((device, format_time(seconds), base, *added))
    variants = dict.fromkeys(difference.adapter.adapter for difference in differences)
    return markdown(("device", "time", BASELINE, *variants), rows)


def against_baseline(run: Sequence[Measurement]) -> list[PairedDifference]:
    """Return the differences of every variant to the baseline, for one training."""
    baseline, *others = sorted(variants(run), key=lambda each: each.adapter != BASELINE)
    return [d for other in others for d in paired_differences(run, baseline, other)]


def difference_text(trainings: Sequence[PairedDifference]) -> str:
    """Return mean and interval of a variant's differences, and one mark per training."""
    if len(trainings) > 1:
        whole = estimate([difference.mean for difference in trainings])
        mean, low, high = whole.mean, whole.low, whole.high
    else:
        mean, low, high = trainings[0].mean, trainings[0].low, trainings[0].high
    half = "" if low is None else f" ±{50 * (high - low):.1f}"
    marks = "".join(MARKS[difference.verdict] for difference in trainings)
    return f"{100 * mean:+.1f}{half} {marks}"


def _cell(of: Any) -> tuple[str, float]:
    return of.device, of.time_s


def _grouped(items: Iterable[Any], key: Any) -> list[tuple[Any, list[Any]]]:
    """Return the items by key, in the order of the first occurrence of the keys."""
    found: dict[Any, list[Any]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.items())


if __name__ == "__main__":
    main()
