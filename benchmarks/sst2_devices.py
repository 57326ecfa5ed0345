"""Accuracy of GRASP and StochGRASP on SST-2, on every device card.

Trains GRASP and StochGRASP with noise injected into the frozen weights, GRASP without, and the
linear head alone, each for a quarter of an epoch of SST-2's 67,349 training sentences, and measures
the adapters on the shipped cards. Prints tables of docs/results/glue.md.

    python benchmarks/sst2_devices.py --data-dir path/to/glue

About an hour on 2 cores; an interrupted run resumes when started again.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from analog_grasp import compare, drift_sweep
from analog_grasp.report.tables import Comparison, adapter_text, device_text, rich_table
from analog_grasp.study.api import Results

TRAINING = {"epochs": 0.25, "seed": 0, "then": "none"}
# The adapters with and without injected noise, and the head alone for its digital score.
STUDIES = {
    "injection": {"adapters": ("grasp", "stochgrasp"), "injection": 0.04},
    "no-injection": {"adapters": ("grasp",), "injection": 0.0},
    "head": {"adapters": ("head",), "injection": 0.0},
}
DRIFTING = {
    "devices": (
        "pcm-nandakumar2019",
        "pcm-hermes-1",
        "pcm-hermes-2",
        "pcm-joshi2020",
        "rram-wan2022",
        "rram-cmo-falcone",
        "rram-cmo-falcone-2pct",
        "sonos-agrawal2022",
    ),
    "times": ("0s", "1d", "1y"),
}
# Cards without drift data do not depend on time.
STILL = {"devices": ("rram-milo2021", "gaussian"), "times": ("0s",)}
DIGITAL = {"devices": ("ideal",), "times": ("0s",), "repeats": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with SST-2/")
    parser.add_argument("--out", type=Path, default=Path("runs/sst2"))
    parser.add_argument("--repeats", type=int, default=5, help="chip instances per device")
    parser.add_argument("--only", choices=STUDIES, help="one of the studies")
    asked = parser.parse_args()
    console = Console()
    task = {"task": "glue/sst2", "data_dir": str(asked.data_dir)}
    for name in [asked.only] if asked.only else STUDIES:
        out = asked.out / name
        where = DIGITAL if name == "head" else DRIFTING | {"repeats": asked.repeats}
        with Progress(console=console) as shown:

            def begin(description: str, total: int, shown=shown):
                stage = shown.add_task(description, total=total)
                return lambda _latest="": shown.advance(stage)

            study = TRAINING | STUDIES[name]
            results = [compare(out, progress=begin, **task, **where, **study)]
            if name != "head":
                saved = [out / "adapters" / adapter for adapter in study["adapters"]]
                still = {**task, **STILL, "repeats": asked.repeats, "progress": begin}
                results.append(drift_sweep(saved, asked.out / f"{name}-still", **still))
        console.rule(name)
        show(console, results)


def show(console: Console, results: list[Results]) -> None:
    """Print the adapters and one table per device."""
    console.print(rich_table(adapter_text(results[0].adapters)))
    for part in results:
        for table in Comparison(part.measurements, part.adapters).tables:
            console.print(rich_table(device_text(table)))


if __name__ == "__main__":
    main()
