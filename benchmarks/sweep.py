"""Time and memory of a study, compared with a plain loop over aihwkit.

Four adapters on four devices at seven drift times on ten chip instances, on SST-2's development
set: 1,120 measurements. "Ours" is a study as it runs by default, with one worker process per core,
in exact and in fast precision, with saved adapters. The loop, one process with one thread per core,
converts the model to torch tiles and programs them for every adapter and chip instance, then drifts
and evaluates it for every time. All evaluate in batches of 64 sentences of similar length, on the
card's tiles and converters; the loop is without the short-term read noise of rram-wan2022.

    python benchmarks/sweep.py --data-dir path/to/glue

The peers take turns on each device. Every worker measures every adapter at two times on one chip
instance, the loop every adapter at one time; the time of the study is extrapolated from these
measurements, with the start of the workers. `--adapters` and `--chips` change the study. About ten
minutes on 2 cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

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
from analog_grasp.study.engines import measure
from analog_grasp.study.evaluator import Chip, Evaluator, Job, Subject
from analog_grasp.study.trained_adapters import load_adapter, new_adapter, save_adapter
from analog_grasp.tasks import load_task, tokenizer_for

TIMES = 7
"""Drift times of the study."""
BATCH = 64
# Times at which aihwkit has data for all of these devices.
MEASURED = (3_600.0, 86_400.0)
DEVICES: dict[str, Callable[[], object]] = {
    "pcm-nandakumar2019": PCMLikeNoiseModel,
    "pcm-hermes-2": lambda: HermesNoiseModel(num_devices=2),
    "rram-wan2022": lambda: ReRamWan2022NoiseModel(g_max=40.0),
    "rram-cmo-falcone": lambda: ReRamCMONoiseModel(acceptance_range=0.2),
}
OURS = {"ours": "exact", "ours, fast": "fast"}
LOOP = "loop over aihwkit"


class Pace(NamedTuple):
    """Seconds before the first measurement of a device or a loop, and per measurement."""

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
    parser.add_argument("--quick", action="store_true", help="two devices")
    asked = parser.parse_args()
    settings = StudyConfig().replace(
        model=asked.model,
        task="glue/sst2" if asked.data_dir else "reviews",
        data_dir=asked.data_dir,
        devices=[*DEVICES][: 2 if asked.quick else None],
    )
    with tempfile.TemporaryDirectory() as folder:
        adapters = saved(settings, asked.adapters, Path(folder))
        settings = settings.replace(adapters=adapters)
        print(f"{machine()}\n\n{times_table(settings, asked.chips)}", flush=True)
        print(f"\n{memory_table(settings)}")


def saved(settings: StudyConfig, adapters: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Return folders of untrained adapters; training does not affect the time."""
    task = load_task(settings.task.name, settings.task.data_dir)
    for name in adapters:
        save_adapter(new_adapter(settings, task, name), folder / name)
    return tuple(str(folder / name) for name in adapters)


def times_table(settings: StudyConfig, chips: int) -> str:
    """Return one row per device and one for the whole study."""
    each = len(settings.model.adapters) * TIMES * chips
    totals, rows = dict.fromkeys((*OURS, LOOP), 0.0), []
    for device in settings.hardware.devices:
        paces = device_paces(settings, device)
        # The loop converts and programs again for every adapter and chip.
        loop = paces[LOOP].cell + paces[LOOP].start / TIMES
        per_cell = {name: paces[name].cell for name in OURS} | {LOOP: loop}
        rows.append((device, *shown(per_cell)))
        for name in totals:
            start = 0.0 if name == LOOP else paces[name].start
            totals[name] += start + per_cell[name] * each
    rows.append((f"all {each * len(rows)} measurements, extrapolated", *shown(totals)))
    title = f"Seconds per measurement and in total, {settings.task.name}"
    header = ("", *OURS, LOOP, "ratio", "ratio, fast")
    return f"**{title}**\n\n{markdown(header, rows)}"


def shown(seconds: dict[str, float]) -> tuple[str, ...]:
    """Return the seconds of every peer, and those of the loop relative to ours."""
    ratios = (seconds[LOOP] / seconds[name] for name in OURS)
    return *(f"{each:.4g}" for each in seconds.values()), *(f"{ratio:.2f}" for ratio in ratios)


def device_paces(settings: StudyConfig, device: str) -> dict[str, Pace]:
    """Return the seconds of every peer on one device; they take turns."""
    loop = loop_cells(settings, device)
    # The model is loaded first, then converted and programmed.
    next(loop)
    start = seconds_of(loop)
    taken, paces = [], {}
    for turn, (name, precision) in enumerate(OURS.items()):
        taken += [seconds_of(loop) for _ in settings.model.adapters[turn::2]]
        paces[name] = our_pace(settings.replace(precision=precision), device)
    return {**paces, LOOP: Pace(start, statistics.mean(taken or [start]))}


def seconds_of(cells: Iterator[object]) -> float:
    begin = time.perf_counter()
    next(cells)
    return time.perf_counter() - begin


def our_pace(settings: StudyConfig, device: str) -> Pace:
    """Return the seconds of a study: until its workers are warm, and per measurement after that."""
    evaluator, workers = evaluator_of(settings, device), settings.run.workers
    subjects = [Subject(name, 0, at) for name in settings.model.adapters for at in MEASURED]
    begin, end = {}, {}

    def jobs() -> Iterator[Job]:
        # The first job of each worker loads the kernels and deploys the adapters.
        for seed in range(2 * workers):
            begin[seed] = time.perf_counter()
            asked = subjects[:1] if seed < workers else subjects
            yield Job(Chip(device, seed, seed), frozenset(asked))

    for cell in measure(evaluator, jobs(), settings.run):
        end[cell.chip.seed] = time.perf_counter()
    cells = [(end[seed] - begin[seed]) / len(subjects) for seed in range(workers, 2 * workers)]
    first = statistics.mean(end[seed] - begin[seed] for seed in range(workers))
    pace = statistics.mean(cells)
    return Pace(first - pace, pace / workers)


def evaluator_of(settings: StudyConfig, device: str) -> Evaluator:
    """Return the evaluator of a study, with all adapters loaded."""
    task = load_task(settings.task.name, settings.task.data_dir)
    names = settings.model.adapters
    models = {
        (name, 0): cast(PeftModel, load_adapter(Path(name), settings.model.name, task))
        for name in names
    }
    task.encode("validation", tokenizer_for(models[names[0], 0]))
    return Evaluator(task, models, {device: DeviceCard.load(device)}, settings.hardware)


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
        analog.drift_analog_weights(MEASURED[-1])
        yield task.predict(analog, batch_size=BATCH, tokenizer=tokenizer)


def on_tiles(model: nn.Module, device: str) -> nn.Module:
    """Return a model on aihwkit's torch tiles with the device's noise and compensation."""
    config = configured(TorchInferenceRPUConfig(), DeviceCard.load(device))
    config.noise_model = DEVICES[device]()
    config.drift_compensation = GlobalDriftCompensation()
    return converted(model, config)


def memory_table(settings: StudyConfig) -> str:
    """Return the peak memory of one process of both peers, total and beyond the loaded modules."""
    device = settings.hardware.devices[0]
    peers = [peak_memory(measure, settings, device) for measure in (our_cell, loop_cell)]
    rows = [
        (label, *(f"{size / 2**20:.0f}" for size in sizes), f"{sizes[1] / sizes[0]:.2f}")
        for label, sizes in (
            ("peak", [peer.peak for peer in peers]),
            ("in excess of the loaded modules", [peer.added for peer in peers]),
        )
    ]
    header = ("", "ours", LOOP, "ratio")
    return f"**Memory, MiB, {device}**\n\n{markdown(header, rows)}"


def our_cell(settings: StudyConfig, device: str) -> None:
    """Measure once, in this process."""
    subject = Subject(settings.model.adapters[0], 0, MEASURED[-1])
    chip = Chip(device, 0, 0)
    next(evaluator_of(settings, device).measure(Job(chip, frozenset([subject]))))


def loop_cell(settings: StudyConfig, device: str) -> None:
    """Convert, program and measure once."""
    cells = loop_cells(settings, device)
    for _ in range(3):
        next(cells)


if __name__ == "__main__":
    main()
