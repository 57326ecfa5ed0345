"""Energy, latency and programming of models on every cost model, for GRASP and LoRA; a year of use.

Counts depend on shapes alone, so each model is built from its configuration, without its weights.

    python benchmarks/costs.py
    python benchmarks/costs.py --models path/to/all-mpnet-base-v2 path/to/SmolLM2-135M-Instruct
"""

import argparse
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import analog_grasp as ag
from analog_grasp.adapters.registry import adapt
from analog_grasp.costs import CostModel, Costs, Work, count_work, year_of_operation
from analog_grasp.costs.estimate import quantity
from analog_grasp.devices.cost_model import Accelerator, joules_of, sum_of, times
from analog_grasp.report.tables import TextTable, markdown_table

ADAPTERS = {"GRASP, K = 64": ("grasp", {"groups": 64}), "LoRA, r = 8": ("lora", {})}
OTHERS = {"target_modules": "all-linear"}
FEW_TILES, BATCHES = 64, (1, 8, 64, 512)
# Passes of 64 examples: by gradients, as in ag.recalibrate, and once, as least squares needs.
PASSES: dict[str, dict[str, int]] = {"gradients": {}, "one pass": {"passes": 64}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[], metavar="MODEL", help="folders or ids")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batches-per-day", type=int, default=10_000, help="sequences per day")
    options = parser.parse_args()
    for table in tables(options.models, options.sequence, options.batches_per_day):
        print(markdown_table(table), end="\n\n")


def tables(models: Iterable[str], sequence: int, batches: int) -> Iterator[TextTable]:
    """Yield the tables of the built-in model and of the models named."""
    for name in ("", *models):
        title = Path(name).name or "MiniLM"
        works = {label: work(name, label, sequence) for label in ADAPTERS}
        yield energy_table(title, works)
        yield digital_table(title, works)
        yield year_table(title, works, batches)
        yield sharing_table(title, works["GRASP, K = 64"])


@cache
def work(name: str, adapter: str, sequence: int) -> Work:
    """Return the work of one sequence of a model with an adapter."""
    config = AutoConfig.from_pretrained(name) if name else built_in()
    causal = any("CausalLM" in each for each in config.architectures or ())
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = auto.from_config(config)
    kind, settings = ADAPTERS[adapter]
    task_type = "CAUSAL_LM" if causal else "SEQ_CLS"
    adapted = adapt(model, kind, task_type=task_type, **OTHERS, **settings)
    return count_work(ag.deploy(adapted, "ideal", inplace=True), sequence)


def built_in():
    return ag.load_base_model(ag.load_task("reviews")).config


def energy_table(title: str, works: dict[str, Work]) -> TextTable:
    """Return energy per token, shares, efficiency, speed, tiles and programming."""
    rows = []
    for name in CostModel.names():
        for label, each in works.items():
            costs = Costs(CostModel.load(name), each)
            tokens = each.tokens
            programming = costs.programming
            # Converters that a read includes are no part of their own.
            parts = costs.energies.keys() & {"tile reads", "DAC", "ADC"}
            analog = [costs.energies[part] for part in sorted(parts)]
            values = (
                quantity(times(1 / tokens, sum_of(*analog)), "J"),
                quantity(times(1 / tokens, costs.energies["adapter"]), "J"),
                quantity(times(1 / tokens, costs.energies["attention"]), "J"),
                quantity(times(1 / tokens, costs.energy), "J"),
                efficiency(costs),
                quantity(costs.latency_s, "s"),
                f"{costs.tiles:,}",
                quantity(programming.energy, "J"),
                quantity(costs.model.memory_energy(each.adapter_bytes), "J"),
            )
            rows.append((f"{name}, {label}", *values))
    columns = (
        "hardware, adapter", "reads and converters", "adapter", "attention", "all parts, per token",
        "TOPS/W", "latency", "tiles", "programming", "rewriting the adapter",
    )  # fmt: skip
    (first, *_) = works.values()
    return TextTable(f"{title}: one sequence of {first.sequence} tokens", columns, tuple(rows))


def digital_table(title: str, works: dict[str, Work]) -> TextTable:
    """Return the energy per token of the same work on digital accelerators."""
    rows = []
    for accelerator in Accelerator.shipped():
        joules = [
            joules_of(2 * each.macs / each.tokens, accelerator.tops_per_watt.range)
            for each in works.values()
        ]
        energies = (quantity(each, "J") for each in joules)
        rows.append((accelerator.title, accelerator.node, *energies))
    return TextTable(f"{title}: all digital, per token", ("", "node", *works), tuple(rows))


def year_table(title: str, works: dict[str, Work], batches: int) -> TextTable:
    """Return a year's energy with monthly recalibration and of monthly reprogramming."""
    rows = []
    for name in CostModel.names():
        for label, each in works.items():
            costs = Costs(CostModel.load(name), each)
            years = {
                how: year_of_operation(costs, batches_per_day=batches, **passes)
                for how, passes in PASSES.items()
            }
            first = years["gradients"]
            values = (
                first.inference, *(year.recalibration for year in years.values()),
                first.reprogramming,
            )  # fmt: skip
            rows.append((f"{name}, {label}", *(quantity(value, "J") for value in values)))
    columns = (
        "hardware, adapter", f"{batches:,} sequences per day",
        *(f"12 recalibrations, {how}" for how in PASSES), "12 reprogrammings",
    )  # fmt: skip
    return TextTable(f"{title}: a year", columns, tuple(rows))


def sharing_table(title: str, each: Work) -> TextTable:
    """Return sequences per second by batch size, with all tiles and with few."""
    rows = []
    for name in CostModel.names():
        for tiles in (None, FEW_TILES):
            costs = Costs(CostModel.load(name), each, tiles)
            pipeline = costs.pipeline
            speeds = [pipeline.throughput(batch) for batch in BATCHES]
            values = (
                f"{costs.tiles if tiles is None else tiles:,} of {costs.tiles:,}",
                f"{pipeline.rewritten:,}",
                *("not stated" if speed is None else f"{speed:,.3g}" for speed in speeds),
            )
            rows.append((name, *values))
    columns = ("hardware", "tiles", "rewritten per batch", *(f"batch {n}" for n in BATCHES))
    return TextTable(f"{title}: sequences per second", columns, tuple(rows))


def efficiency(costs: Costs) -> str:
    energy = costs.energy
    return "not stated" if energy is None else f"{2 * costs.work.macs / energy[1] / 1e12:.2f}"


if __name__ == "__main__":
    main()
