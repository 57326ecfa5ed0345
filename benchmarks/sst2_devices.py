"""Does StochGRASP keep its accuracy on real crossbars better than GRASP, on real SST-2?

Trains GRASP (K = 16) and StochGRASP with noise injected into the frozen weights, GRASP without,
and the linear head alone, each on half a pass over SST-2's 67,349 training sentences, and
measures the adapters on the shipped cards. Prints the tables of the README.

    python benchmarks/sst2_devices.py --data-dir path/to/glue

It takes about an hour on 2 cores; stopped, it goes on where it was when started again.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from analog_grasp import compare, drift_sweep
from analog_grasp.report import adapter_text, comparison_tables, device_text, rich_table
from analog_grasp.study.api import Results

TRAINING = {
    "epochs": 0.5,
    "learning_rate": 1e-2,
    # As the figures in docs/results.md were measured; the default is lower by now.
    "shift_lr_ratio": 1.0,
    "batch_size": 32,
    "groups": 16,
    "seed": 0,
}
# What is compared: the adapters under injected noise, what that is worth, and the head alone, which
# is there for its digital score.
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
        "rram-wan2022",
        "rram-cmo-falcone",
        "rram-cmo-falcone-2pct",
        "sonos-agrawal2022",
    ),
    "times": ("0s", "1d", "1y"),
}
# Cards without drift data are the same at any time.
STILL = {"devices": ("pcm-joshi2020", "rram-milo2021", "gaussian"), "times": ("0s",)}
DIGITAL = {"devices": ("ideal",), "times": ("0s",), "repeats": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with SST-2/")
    parser.add_argument("--out", type=Path, default=Path("runs/sst2"))
    parser.add_argument("--repeats", type=int, default=5, help="chip instances a device")
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
    """The adapters, and a table for each device."""
    console.print(rich_table(adapter_text(results[0].adapters)))
    for part in results:
        for table in comparison_tables(part.measurements, part.adapters):
            console.print(rich_table(device_text(table)))


if __name__ == "__main__":
    main()
