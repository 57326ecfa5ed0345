"""Time and memory of a study, compared with a plain loop over aihwkit.

Four adapters on four devices at seven drift times on ten chip instances, on SST-2's development
set: 1,120 measurements. "Ours" is the evaluator of a study, in exact and in fast precision, with
saved adapters. The loop converts the model to torch tiles and programs them for every adapter and
chip instance, then drifts and evaluates it for every time. All evaluate in batches of 64 sentences
of similar length, on the card's tiles and converters; the loop is without the short-term read noise
of rram-wan2022.

    python benchmarks/sweep.py --data-dir path/to/glue

The peers take turns in one process, one measurement each, so that the machine's speed cancels from
the ratios. Every device is measured with every adapter on one chip instance at one time; the time
of the study is extrapolated from these measurements. `--adapters` and `--chips` change the study.
About ten minutes on 2 cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from aihwkit.inference import PCMLikeNoiseModel, ReRamCMONoiseModel, ReRamWan2022NoiseModel
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit_peer import configured, converted
from peers import machine, markdown, peak_memory
from peft import PeftModel
from torch import nn

from analog_grasp.adapters.registry import ADAPTERS as METHODS
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.evaluator import Chip, Evaluator, Job, Subject
from analog_grasp.study.trained_adapters import load_adapter, new_adapter, save_adapter
from analog_grasp.tasks import load_task, tokenizer_for

TIMES = 7
"""Drift times of the study."""
BATCH = 64
# A time at which aihwkit has data for all of these devices.
TIME = 86_400.0
DEVICES: dict[str, Callable[[], object]] = {
    "pcm-nandakumar2019": PCMLikeNoiseModel,
    "pcm-hermes-2": lambda: HermesNoiseModel(num_devices=2),
    "rram-wan2022": lambda: ReRamWan2022NoiseModel(g_max=40.0),
    "rram-cmo-falcone": lambda: ReRamCMONoiseModel(acceptance_range=0.2),
}
OURS = {"ours": "exact", "ours, fast": "fast"}
LOOP = "loop over aihwkit"


class Pace(NamedTuple):
    """Seconds of a peer on one device: once per device or loop, and per measurement."""

    start: float
    cell: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder with SST-2/; the task reviews by default")
    parser.add_argument("--model", help="Hub id or folder; the built-in model by default")
    parser.add_argument(
        "--adapters",
        nargs="+",
        choices=METHODS,
        default=["grasp", "stochgrasp", "lora", "bitfit"],
    )
    parser.add_argument("--chips", type=int, default=10, help="chip instances per device")
    parser.add_argument(
        "--busy", action="store_true", help="CPU seconds of one thread, as other work is running"
    )
    parser.add_argument("--quick", action="store_true", help="two devices")
    asked = parser.parse_args()
    clock = time.perf_counter
    if asked.busy:
        torch.set_num_threads(1)
        clock = time.process_time
    settings = StudyConfig().replace(
        model=asked.model,
        task="glue/sst2" if asked.data_dir else "reviews",
        data_dir=asked.data_dir,
        devices=[*DEVICES][: 2 if asked.quick else None],
    )
    with tempfile.TemporaryDirectory() as folder:
        adapters = saved(settings, asked.adapters, Path(folder))
        settings = settings.replace(adapters=adapters)
        print(f"{machine()}\n\n{times_table(settings, asked.chips, clock)}", flush=True)
        print(f"\n{memory_table(settings)}")


def saved(settings: StudyConfig, adapters: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Return folders of untrained adapters; training does not affect the time."""
    task = load_task(settings.task.name, settings.task.data_dir)
    for name in adapters:
        save_adapter(new_adapter(settings, task, name), folder / name)
    return tuple(str(folder / name) for name in adapters)


def times_table(settings: StudyConfig, chips: int, clock: Callable[[], float]) -> str:
    """Return one row per device and one for the whole study."""
    adapters = len(settings.model.adapters)
    each = adapters * TIMES * chips
    # The first measurement of a process loads or compiles the kernels.
    one_cell(our_cells, settings, settings.hardware.devices[0])
    totals, rows = dict.fromkeys((*OURS, LOOP), 0.0), []
    for device in settings.hardware.devices:
        paces = device_paces(settings, device, clock)
        # The loop converts and programs again for every adapter and chip; ours while it measures.
        per_cell = {name: pace.cell for name, pace in paces.items()}
        per_cell[LOOP] += paces[LOOP].start / TIMES
        rows.append((device, *shown(per_cell)))
        for name in totals:
            once = 0.0 if name == LOOP else paces[name].start
            totals[name] += once + per_cell[name] * each
    rows.append((f"all {each * len(rows)} measurements, extrapolated", *shown(totals)))
    title = (
        f"Seconds per measurement and in total, {settings.task.name}, from {adapters} of {each} "
        "measurements per device and peer"
    )
    header = ("", *OURS, LOOP, "ratio", "ratio, fast")
    return f"**{title}**\n\n{markdown(header, rows)}"


def shown(seconds: dict[str, float]) -> tuple[str, ...]:
    """Return the seconds of every peer, and those of the loop relative to ours."""
    ratios = (seconds[LOOP] / seconds[name] for name in OURS)
    return *(f"{each:.4g}" for each in seconds.values()), *(f"{ratio:.2f}" for ratio in ratios)


def device_paces(settings: StudyConfig, device: str, clock: Callable[[], float]) -> dict[str, Pace]:
    """Return the seconds of every peer on one device; they take turns, one measurement each."""
    starts = {}
    peers: dict[str, Iterator[object]] = {}
    for name, precision in OURS.items():
        peers[name] = our_cells(settings.replace(precision=precision), device)
    peers[LOOP] = loop_cells(settings, device)
    for name, cells in peers.items():
        # Load the models first, which the loop needs as well.
        next(cells)
        starts[name] = seconds_of(cells, clock)
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(len(settings.model.adapters)):
        for name in list(peers) if turn % 2 == 0 else reversed(peers):
            taken[name].append(seconds_of(peers[name], clock))
    return {name: Pace(starts[name], statistics.mean(cells)) for name, cells in taken.items()}


def seconds_of(cells: Iterator[object], clock: Callable[[], float]) -> float:
    begin = clock()
    next(cells)
    return clock() - begin


def our_cells(settings: StudyConfig, device: str) -> Iterator[object]:
    """Yield with all adapters loaded, then deployed, then after each measurement of a chip."""
    task = load_task(settings.task.name, settings.task.data_dir)
    names = settings.model.adapters
    models = {
        (name, 0): cast(PeftModel, load_adapter(Path(name), settings.model.name, task))
        for name in names
    }
    task.encode("validation", tokenizer_for(models[names[0], 0]))
    evaluator = Evaluator(task, models, {device: DeviceCard.load(device)}, settings.hardware)
    yield
    evaluator.deployed_on(device)
    yield
    subjects = frozenset(Subject(name, 0, TIME) for name in names)
    yield from evaluator.measure(Job(Chip(device, 0, seed=0), subjects))


def loop_cells(settings: StudyConfig, device: str) -> Iterator[object]:
    """Yield with a model loaded, then on programmed tiles, then after each measurement."""
    task = load_task(settings.task.name, settings.task.data_dir)
    model = load_adapter(Path(settings.model.adapters[0]), settings.model.name, task)
    tokenizer = tokenizer_for(model)
    task.encode("validation", tokenizer)
    yield
    analog = on_tiles(model, device).eval()
    analog.program_analog_weights()
    yield
    while True:
        analog.drift_analog_weights(TIME)
        yield task.predict(analog, batch_size=BATCH, tokenizer=tokenizer)


def on_tiles(model: nn.Module, device: str) -> nn.Module:
    """Return a model on aihwkit's torch tiles with the device's noise and compensation."""
    config = configured(TorchInferenceRPUConfig(), DeviceCard.load(device))
    config.noise_model = DEVICES[device]()
    config.drift_compensation = GlobalDriftCompensation()
    return converted(model, config)


def memory_table(settings: StudyConfig) -> str:
    """Return the peak memory of both peers, total and in excess of the loaded modules."""
    device = settings.hardware.devices[0]
    peers = [peak_memory(one_cell, cells, settings, device) for cells in (our_cells, loop_cells)]
    rows = [
        (label, *(f"{size / 2**20:.0f}" for size in sizes), f"{sizes[1] / sizes[0]:.2f}")
        for label, sizes in (
            ("peak", [peer.peak for peer in peers]),
            ("in excess of the loaded modules", [peer.added for peer in peers]),
        )
    ]
    header = ("", "ours", LOOP, "ratio")
    return f"**Memory, MiB, {device}**\n\n{markdown(header, rows)}"


def one_cell(
    cells: Callable[[StudyConfig, str], Iterator[object]], settings: StudyConfig, device: str
) -> None:
    """Load, start and measure once."""
    started = cells(settings, device)
    for _ in range(3):
        next(started)


if __name__ == "__main__":
    main()
