"""Does StochGRASP keep its accuracy on real crossbars better than GRASP, on real SST-2?

Trains GRASP (K = 16) and StochGRASP with noise injected into the frozen weights, GRASP without,
and the linear head alone, each on half a pass over SST-2's 67,349 training sentences, and
measures the adapters on every shipped card of a real device. Prints the tables of the README.

    python benchmarks/sst2_devices.py --data-dir path/to/glue

It takes more than an hour on 2 cores; stopped, it goes on where it was when started again.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from analog_grasp import DeviceCard, compare
from analog_grasp.report import adapter_text, comparison_tables, device_text, rich_table

TIMES = ("0s", "1d", "1y")
TRAINING = {"epochs": 0.5, "learning_rate": 1e-2, "batch_size": 32, "groups": 16, "seed": 0}


def studies(repeats: int) -> dict[str, dict]:
    """What is compared: the adapters under injected noise, what that is worth, and the head."""
    real = {"devices": real_devices(), "times": TIMES, "repeats": repeats}
    # The head is there for its digital score alone.
    digital = {"devices": ("ideal",), "times": ("0s",), "repeats": 1}
    return {
        "no-injection": {"adapters": ("grasp",), "injection": 0.0, **real},
        "injection": {"adapters": ("grasp", "stochgrasp"), "injection": 0.04, **real},
        "head": {"adapters": ("head",), "injection": 0.0, **digital},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder with SST-2/")
    parser.add_argument("--out", type=Path, default=Path("runs/sst2"))
    parser.add_argument("--repeats", type=int, default=5, help="chip instances a device")
    asked = parser.parse_args()
    console = Console()
    for name, study in studies(asked.repeats).items():
        with Progress(console=console) as shown:

            def begin(description: str, total: int, shown=shown):
                task = shown.add_task(description, total=total)
                return lambda: shown.advance(task)

            results = compare(
                asked.out / name,
                task="glue/sst2",
                data_dir=str(asked.data_dir),
                progress=begin,
                **TRAINING,
                **study,
            )
        console.rule(name)
        console.print(rich_table(adapter_text(results.adapters)))
        for table in comparison_tables(results.measurements, results.adapters):
            console.print(rich_table(device_text(table)))


def real_devices() -> list[str]:
    """The shipped cards of devices that exist."""
    return [n for n in DeviceCard.names() if DeviceCard.load(n).technology != "none"]


if __name__ == "__main__":
    main()
