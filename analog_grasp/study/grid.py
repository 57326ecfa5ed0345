"""The cells of a study: which are measured, in an order that programs each chip once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from analog_grasp.study.config import StudyConfig
from analog_grasp.study.records import Measurement
from analog_grasp.study.statistics import is_fraction, values_needed
from analog_grasp.utils.time import parse_time


@dataclass(frozen=True)
class Chip:
    """One chip instance of one device.

    Attributes:
        device: The card's name.
        repeat: The index of the instance within the study.
        seed: The integer that names the instance.
    """

    device: str
    repeat: int
    seed: int


def chips(
    settings: StudyConfig,
    devices: Iterable[str],
    values: int = 0,
    measured: Iterable[Measurement] = (),
) -> list[Chip]:
    """The chip instances of a study, device by device; the seeds count up from the study's.

    Args:
        settings: Give the seed, and how many instances there are; see `chip_count`.
        devices: The names of the cards.
        values: How many values each instance gives when it is measured whole.
        measured: What is measured so far.

    Example:
        >>> [chip.seed for chip in chips(StudyConfig().replace(repeats=3, seed=7), ["ideal"])]
        [7, 8, 9]
    """
    known: dict[str, list[Measurement]] = {device: [] for device in devices}
    for measurement in measured:
        if measurement.device in known:
            known[measurement.device].append(measurement)
    return [
        Chip(device, repeat, settings.run.seed + repeat)
        for device, cells in known.items()
        for repeat in range(chip_count(settings, values, cells))
    ]


def times(settings: StudyConfig) -> Iterator[float]:
    """The drift times of a study, in seconds, as they were given."""
    return map(parse_time, settings.run.times)


def chip_count(settings: StudyConfig, values: int, measured: Iterable[Measurement]) -> int:
    """How many chip instances of a device are to be measured, by what is known of it so far.

    The settings' repeats; with `until_ci`, as many more as the widest interval seems to need, at
    most twice as many at once, until each is narrow enough or the limit is reached. The answer
    follows from the first instances alone, so that the order of the work does not change it.

    Args:
        settings: Give repeats, until_ci and repeats_limit.
        values: How many values each chip instance gives when it is measured whole.
        measured: The device's values.

    Example:
        >>> chip_count(StudyConfig().replace(repeats=5), 10, [])
        5
    """
    count = settings.run.repeats
    if settings.run.until_ci is None:
        return count
    groups: dict[tuple[str, str, float], dict[int, float]] = {}
    for cell in measured:
        unit = 100.0 if is_fraction(cell.metric) else 1.0
        group = groups.setdefault((cell.metric, cell.adapter, cell.time_s), {})
        group[cell.repeat] = unit * cell.value
    while count < settings.run.repeats_limit:
        known = [[g[r] for r in range(count) if r in g] for g in groups.values()]
        if len(known) < values or any(len(group) < count for group in known):
            return count
        most = min(2 * count, settings.run.repeats_limit)
        needed = max(values_needed(group, settings.run.until_ci, most) for group in known)
        if needed <= count:
            return count
        count = needed
    return count
