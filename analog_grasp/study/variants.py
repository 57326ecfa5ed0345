"""Variants of an adapter in a study: as trained, scheduled by age, or recalibrated; their costs."""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SCHEDULED = "scheduled"
"""Treatment: an adapter of its own for each drift time, fitted on other simulated chips."""
_RECALIBRATED = "recalibrated-"
_FORM = re.compile(rf"(?P<adapter>.+)\+(?P<treatment>{SCHEDULED}|{_RECALIBRATED}\d+)")


def recalibrated(examples: int) -> str:
    """Return the treatment of recalibration on the chip with a number of examples.

    Example:
        >>> recalibrated(64)
        'recalibrated-64'
    """
    return f"{_RECALIBRATED}{examples}"


class TreatedAdapter(NamedTuple):
    """An adapter and its treatment, as a variant's name states them.

    Example:
        >>> str(TreatedAdapter("grasp", recalibrated(64))), str(TreatedAdapter("grasp"))
        ('grasp+recalibrated-64', 'grasp')
    """

    adapter: str
    treatment: str = ""
    """Empty for the adapter as trained."""

    @classmethod
    def parse(cls, name: str) -> "TreatedAdapter":
        """Return the parts of a variant's name.

        Example:
            >>> TreatedAdapter.parse("grasp+scheduled").treatment
            'scheduled'
        """
        found = _FORM.fullmatch(name)
        return cls(found["adapter"], found["treatment"]) if found else cls(name)

    @property
    def examples(self) -> int:
        """The number of examples of the recalibration; 0 without one."""
        number = self.treatment.removeprefix(_RECALIBRATED)
        return int(number) if number != self.treatment else 0

    def __str__(self) -> str:
        return f"{self.adapter}+{self.treatment}" if self.treatment else self.adapter


@dataclass(frozen=True)
class TreatmentCost:
    """The mean cost of a treatment per age, over the devices, chips and ages of a run.

    Attributes:
        variant: The variant's name.
        fits: The number of adapters that were fitted.
        examples: Unlabelled examples; those of a schedule are not of the deployed chip.
        examples_read: Examples that the deployed chip computed for a fit; none for a schedule.
        seconds: Time of a fit, s.
        parameters: Parameters rewritten.
        bytes: Their size.
        devices: Devices that reprogramming the chip would write instead; None where not known.
    """

    variant: str
    fits: int
    examples: float
    examples_read: float
    seconds: float
    parameters: float
    bytes: float
    devices: float | None


def treatment_costs(directory: Path) -> list[TreatmentCost]:
    """Return the costs of the treatments of a run, read from the files that its adapters have.

    Args:
        directory: The run's folder.

    Raises:
        ValueError: A file is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(directory.glob("recalibrated/*/*/recalibration.json")):
        found.setdefault(path.parents[1].name, []).append(_read(path))
    for path in sorted(directory.glob("scheduled/*/*/schedule.json")):
        variant = str(TreatedAdapter(path.parents[1].name, SCHEDULED))
        found.setdefault(variant, []).extend(_read(path)["ages"].values())
    return [TreatmentCost(variant, len(fits), *_means(fits)) for variant, fits in found.items()]


def _means(fits: list[dict[str, Any]]) -> tuple[float, float, float, float, float, float | None]:
    def mean(name: str) -> float:
        return statistics.mean(fit.get(name, 0) for fit in fits)

    names = ("examples", "examples_read", "seconds", "parameters", "bytes")
    examples, read, seconds, parameters, size = map(mean, names)
    devices = mean("devices") if all("devices" in fit for fit in fits) else None
    return examples, read, seconds, parameters, size, devices


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        raise ValueError(
            f"The file {path} is damaged: delete its folder, and the command of the run fits the "
            "adapter again."
        ) from None
