"""Accuracy over ten years of drift: as trained, two stages, one adapter per age, recalibrated.

    python benchmarks/recalibration.py
    python benchmarks/recalibration.py --task glue/sst2 --data-dir path/to/glue

Trains each adapter twice: on the task alone, and with a second stage on simulated chips of all
devices and ages (`then`). The first is measured as it is, with an adapter per age fitted on other
simulated chips (`schedule`), and re-fitted on each chip from 16, 64 and 256 unlabelled examples
(`recalibrate`), beginning with the adapter of the age unless --no-schedule is given. Prints the
tables of docs/results/recalibration.md: accuracy, share of the loss recovered, and costs; writes
the figure of the first adapter, one panel per device. An interrupted run resumes.

All of it takes days on 2 cores: a recalibration takes one to three minutes and is made for each
chip, age, adapter and number of examples. A part that takes several hours:

    python benchmarks/recalibration.py --adapters grasp --times 0s,1d,1y,10y --repeats 3 \
        --examples 64
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peers import machine, markdown
from rich.console import Console
from rich.progress import Progress

from analog_grasp import compare
from analog_grasp.report.figures import accuracy_vs_drift
from analog_grasp.report.tables import Comparison, device_text, rich_table, treatment_text
from analog_grasp.study.api import Results
from analog_grasp.study.fields import split_names
from analog_grasp.study.records import SCHEDULED, AdapterRecord, Measurement, TreatedAdapter
from analog_grasp.utils.time import format_time

ADAPTERS = "grasp,stochgrasp,lora,ia3,bitfit"
DEVICES = "pcm-nandakumar2019,pcm-hermes-2,rram-wan2022,rram-cmo-falcone"
TIMES = "0s,1h,1d,30d,1y,10y"
TWO_STAGES = "two-stages"
LABELS = {
    "": "trained on the task",
    TWO_STAGES: "two stages, one adapter for all ages",
    SCHEDULED: "one adapter per age",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="reviews")
    parser.add_argument("--data-dir", type=Path, help="the folder with the task's files")
    parser.add_argument("--adapters", type=split_names, default=ADAPTERS)
    parser.add_argument("--devices", type=split_names, default=DEVICES)
    parser.add_argument("--times", type=split_names, default=TIMES)
    parser.add_argument("--repeats", type=int, default=5, help="chip instances per device")
    parser.add_argument("--examples", type=split_names, default="16,64,256", help="or 'none'")
    parser.add_argument("--no-schedule", action="store_true", help="without adapters per age")
    parser.add_argument("--no-two-stages", action="store_true", help="without the second training")
    parser.add_argument("--then-steps", type=int, help="of the second stage")
    parser.add_argument("--config", type=Path, help="a TOML file of further settings")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/recalibration"))
    asked = parser.parse_args()
    console = Console()
    results = measure(console, asked)
    measured, adapters = merged(results)
    for adapter in asked.adapters:
        show(console, adapter, measured, adapters)
    costs = [cost for result in results.values() for cost in result.treatments]
    console.print(rich_table(treatment_text(costs)))
    chosen = [cell for cell in measured if parts(cell)[0] == asked.adapters[0]]
    stem = asked.out / f"recalibration-{asked.task.replace('/', '-')}"
    for path in draw(chosen, adapters, stem):
        print(f"wrote {path}")
    print(f"\n{machine()}")


def measure(console: Console, asked: argparse.Namespace) -> dict[str, Results]:
    """Return the results of each training: on the task alone, and in two stages."""
    common: dict[str, Any] = {
        name: getattr(asked, name)
        for name in ("task", "adapters", "devices", "times", "repeats", "workers", "config")
    }
    common["data_dir"] = str(asked.data_dir) if asked.data_dir else None
    treated: dict[str, Any] = {
        "then": "none",
        "schedule": None if asked.no_schedule else "simulated",
    }
    if asked.examples != ("none",):
        treated["recalibrate"] = tuple(map(int, asked.examples))
    second = {"then": "devices", "then_steps": asked.then_steps}
    studies = {"": treated} | ({} if asked.no_two_stages else {TWO_STAGES: second})
    results = {}
    for name, settings in studies.items():
        with Progress(console=console) as shown:

            def begin(description: str, total: int, shown: Progress = shown):
                stage = shown.add_task(description, total=total)
                return lambda _latest="": shown.advance(stage)

            out = asked.out / asked.task.replace("/", "-") / (name or "task")
            results[name] = compare(out, progress=begin, **common, **settings)
    return results


def merged(results: dict[str, Results]) -> tuple[list[Measurement], list[AdapterRecord]]:
    """Return the measurements and adapters of all trainings; those of two stages are marked."""
    cells, records = [], []
    for stage, result in results.items():
        mark = f"+{stage}" if stage else ""
        cells += [replace(cell, adapter=cell.adapter + mark) for cell in result.measurements]
        records += [replace(record, adapter=record.adapter + mark) for record in result.adapters]
    return cells, records


def parts(cell: Measurement) -> tuple[str, str]:
    """Return the adapter and the treatment of a measurement."""
    if cell.adapter.endswith(f"+{TWO_STAGES}"):
        return cell.adapter.removesuffix(f"+{TWO_STAGES}"), TWO_STAGES
    return TreatedAdapter.parse(cell.adapter)


def show(
    console: Console, adapter: str, cells: Sequence[Measurement], records: Sequence[AdapterRecord]
) -> None:
    """Print the accuracy of one adapter on each device, and the share of the loss recovered."""
    console.rule(adapter)
    own = [cell for cell in cells if parts(cell)[0] == adapter]
    primary = next(iter(next(r for r in records if r.adapter == adapter).digital))
    own = [cell for cell in own if cell.metric == primary]
    for table in Comparison(own, [r for r in records if r.adapter.startswith(adapter)]).tables:
        console.print(rich_table(device_text(table)))
    digital = statistics.mean(r.digital[primary] for r in records if r.adapter == adapter)
    times = sorted({cell.time_s for cell in own})
    rows = []
    for treatment in dict.fromkeys(parts(cell)[1] for cell in own):
        if treatment:
            found = [recovered(own, treatment, digital, time) for time in times]
            rows.append((treatment, *(f"{100 * x:.0f}" if x is not None else "-" for x in found)))
    title = f"recovered (% of the loss, mean over devices), digital {digital:.1%}"
    print(markdown((title, *map(format_time, times)), rows), "\n")


def recovered(
    cells: Iterable[Measurement], treatment: str, digital: float, time_s: float
) -> float | None:
    """Return the share of the loss by the chips that a treatment recovers, averaged over devices.

    Devices that lose less than two points are skipped.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell.time_s == time_s:
            scores[cell.device][parts(cell)[1]].append(cell.value)
    shares = []
    for by_treatment in scores.values():
        before = statistics.mean(by_treatment[""])
        if digital - before >= 0.02 and by_treatment[treatment]:
            after = statistics.mean(by_treatment[treatment])
            shares.append((after - before) / (digital - before))
    return statistics.mean(shares) if shares else None


def draw(cells: Sequence[Measurement], records: Sequence[AdapterRecord], stem: Path) -> list[Path]:
    """Write accuracy against drift time of one adapter, with a line per treatment."""

    def label(treatment: str) -> str:
        examples = TreatedAdapter("", treatment).examples
        return f"recalibrated with {examples} examples" if examples else LABELS[treatment]

    named = [replace(cell, adapter=label(parts(cell)[1])) for cell in cells]
    baseline = next(r for r in records if r.adapter == parts(cells[0])[0])
    primary = next(iter(baseline.digital))
    named = [cell for cell in named if cell.metric == primary]
    return accuracy_vs_drift(Comparison(named, [replace(baseline, adapter=LABELS[""])]), stem)


if __name__ == "__main__":
    main()
