"""Time and memory of a study, compared with a plain loop over aihwkit.

Two adapters on four devices at seven drift times on five chip instances, on SST-2's development
set. "Ours" is a run of this package from saved adapters, with its store. The loop converts the
model to torch tiles and programs them for every adapter and chip instance, then drifts and
evaluates it for every time. Both evaluate in batches of 64 sentences of similar length, on the
card's tiles and converters; the loop is without the short-term read noise of rram-wan2022.

    python benchmarks/sweep.py --data-dir path/to/glue

Both are extrapolated: ours from all adapters on one chip instance of each device at three times,
the loop from one conversion and one evaluation per device. `--adapters` and `--chips` change the
study, `--whole` measures all of ours, and `--took` gives the seconds of a complete run of
`analog-grasp drift`. About four minutes on 2 cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from aihwkit.inference import PCMLikeNoiseModel, ReRamCMONoiseModel, ReRamWan2022NoiseModel
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit_peer import configured, converted
from peers import machine, markdown, peak_memory
from torch import nn

from analog_grasp.adapters.registry import ADAPTERS as METHODS
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.runner import run
from analog_grasp.study.study import prepare
from analog_grasp.study.trained_adapters import load_adapter, new_adapter, save_adapter
from analog_grasp.tasks import load_task, tokenizer_for

TIMES = ("0s", "20s", "1h", "1d", "7d", "30d", "1y")
BATCH = 64
# A time at which aihwkit has data for all of these devices.
LOOP_TIME = 86_400.0
DEVICES: dict[str, Callable[[], object]] = {
    "pcm-nandakumar2019": PCMLikeNoiseModel,
    "pcm-hermes-2": lambda: HermesNoiseModel(num_devices=2),
    "rram-wan2022": lambda: ReRamWan2022NoiseModel(g_max=40.0),
    "rram-cmo-falcone": lambda: ReRamCMONoiseModel(acceptance_range=0.2),
}


class Ours(NamedTuple):
    """Seconds of a run on one device: until the first measurement, and of all measurements."""

    start: float
    cells: float


class Loop(NamedTuple):
    """Seconds of the loop: to program an adapted model, and to drift and evaluate it."""

    chip: float
    cell: float

    @property
    def per_cell(self) -> float:
        """Return the seconds per measurement; a chip is used for all times of one adapter."""
        return self.chip / len(TIMES) + self.cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="the folder with SST-2/; the task reviews by default")
    parser.add_argument("--model", help="Hub id or folder; the built-in model by default")
    parser.add_argument("--adapters", nargs="+", choices=METHODS, default=["grasp", "stochgrasp"])
    parser.add_argument("--chips", type=int, default=5, help="chip instances per device")
    parser.add_argument("--precision", choices=("exact", "fast"), default="exact", help="of ours")
    parser.add_argument("--took", type=float, help="measured seconds of the command")
    parser.add_argument("--whole", action="store_true", help="all measurements of this package")
    parser.add_argument("--quick", action="store_true", help="two devices, one time")
    asked = parser.parse_args()
    times = TIMES if asked.whole else TIMES[3:4] if asked.quick else TIMES[2:5]
    settings = StudyConfig().replace(
        model=asked.model,
        task="glue/sst2" if asked.data_dir else "reviews",
        data_dir=asked.data_dir,
        devices=[*DEVICES][: 2 if asked.quick else None],
        times=times,
        precision=asked.precision,
        repeats=asked.chips if asked.whole else 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        adapters = saved(settings, asked.adapters, Path(folder))
        settings = settings.replace(adapters=adapters)
        if asked.took:
            table = loop_table(settings, asked.chips, asked.took)
        else:
            table = times_table(settings, asked.chips)
        print(f"{machine()}\n\n{table}", flush=True)
        print(f"\n{memory_table(settings)}")


def saved(settings: StudyConfig, adapters: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Return folders of untrained adapters; training does not affect the time."""
    task = load_task(settings.task.name, settings.task.data_dir)
    for name in adapters:
        save_adapter(new_adapter(settings, task, name), folder / name)
    return tuple(str(folder / name) for name in adapters)


def times_table(settings: StudyConfig, chips: int) -> str:
    """Return one row per device and one for the whole study; both peers take turns."""
    adapters = len(settings.model.adapters)
    measured = adapters * len(settings.run.times) * settings.run.repeats
    rows, ours, loops = [], [], []
    for device in settings.hardware.devices:
        ours.append(our_seconds(on(settings, device)))
        loops.append(loop_seconds(settings, device))
        rows.append((device, *shown(ours[-1].cells / measured, loops[-1].per_cell)))
    each = adapters * len(TIMES) * chips
    whole = statistics.median(run.start for run in ours)
    whole += sum(run.cells for run in ours) / measured * each
    loop = sum(loop.per_cell for loop in loops) * each
    rows.append((f"all {each * len(rows)} measurements and the start, total", *shown(whole, loop)))
    title = (
        f"Seconds per measurement and in total, {settings.task.name}, from {measured} of {each} "
        "measurements per device"
    )
    return f"**{title}**\n\n{markdown(('', 'ours', 'loop over aihwkit', 'ratio'), rows)}"


def loop_table(settings: StudyConfig, chips: int, took: float) -> str:
    """Return the loop's seconds per measurement by device, and both peers' for the study."""
    loops = {
        device: loop_seconds(settings, device).per_cell for device in settings.hardware.devices
    }
    each = len(settings.model.adapters) * len(TIMES) * chips
    rows = [(device, "", f"{seconds:.4g}", "") for device, seconds in loops.items()]
    whole = sum(loops.values()) * each
    rows.append((f"all {each * len(rows)} measurements, ours as a command", *shown(took, whole)))
    title = (
        f"Seconds per measurement and in total, {settings.task.name}, the loop from one "
        "measurement per device"
    )
    return f"**{title}**\n\n{markdown(('', 'ours', 'loop over aihwkit', 'ratio'), rows)}"


def shown(ours: float, loop: float) -> tuple[str, str, str]:
    return f"{ours:.4g}", f"{loop:.4g}", f"{loop / ours:.2f}"


def memory_table(settings: StudyConfig) -> str:
    """Return the peak memory of both peers, total and in excess of the loaded modules."""
    device = settings.hardware.devices[0]
    one = on(settings, device).model_copy(update={"times": ("1d",), "repeats": 1})
    ours, loop = peak_memory(our_seconds, one), peak_memory(loop_seconds, one, device)
    rows = [
        (label, *(f"{size / 2**20:.0f}" for size in sizes), f"{sizes[1] / sizes[0]:.2f}")
        for label, sizes in (
            ("peak", (ours.peak, loop.peak)),
            ("in excess of the loaded modules", (ours.added, loop.added)),
        )
    ]
    header = ("", "ours", "loop over aihwkit", "ratio")
    return f"**Memory, MiB, {device}**\n\n{markdown(header, rows)}"


def on(settings: StudyConfig, device: str) -> StudyConfig:
    return settings.replace(devices=(device,))


def our_seconds(settings: StudyConfig) -> Ours:
    """Return the seconds of a run in a new folder."""
    begun = []

    def begin(_description: str, _total: int) -> Callable[..., None]:
        begun.append(time.perf_counter())
        return lambda latest="": None

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run(prepare(settings, Path(folder) / "run"), begin)
    return Ours(begun[0] - start, time.perf_counter() - begun[0])


def loop_seconds(settings: StudyConfig, device: str) -> Loop:
    """Return the seconds of the loop over aihwkit for one adapter, one chip and one time."""
    task = load_task(settings.task.name, settings.task.data_dir)
    model = load_adapter(Path(settings.model.adapters[0]), settings.model.name, task)
    tokenizer = tokenizer_for(model)
    task.encode("validation", tokenizer)
    stamps = [time.perf_counter()]
    analog = on_tiles(model, device).eval()
    analog.program_analog_weights()
    stamps.append(time.perf_counter())
    analog.drift_analog_weights(LOOP_TIME)
    task.predict(analog, batch_size=BATCH, tokenizer=tokenizer)
    stamps.append(time.perf_counter())
    return Loop(stamps[1] - stamps[0], stamps[2] - stamps[1])


def on_tiles(model: nn.Module, device: str) -> nn.Module:
    """Return a model on aihwkit's torch tiles with the device's noise and compensation."""
    config = configured(TorchInferenceRPUConfig(), DeviceCard.load(device))
    config.noise_model = DEVICES[device]()
    config.drift_compensation = GlobalDriftCompensation()
    return converted(model, config)


if __name__ == "__main__":
    main()
