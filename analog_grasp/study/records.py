"""Records of a run: measurements, adapters and their variants, layers on chips; their files."""

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import pyarrow
from pyarrow import parquet

from analog_grasp.utils.io import place_name, write_atomically

SCHEDULED = "scheduled"
"""Treatment: an adapter of its own for each drift time, fitted on other simulated chips."""
LAYERS_FILE = "layers.csv"
_RECALIBRATED = "recalibrated-"
# Costs of a fit, of which there are means.
_MEANS = ("examples", "examples_read", "seconds", "parameters", "bytes", "weights")
_VARIANT = re.compile(rf"(?P<adapter>.+)\+(?P<treatment>{SCHEDULED}|{_RECALIBRATED}\d+)")

type ModelKey = tuple[str, int]
"""A trained adapter: its name and the index of its training."""


class CellKey(NamedTuple):
    """Name of a measured cell: every column of results.csv but the value, see `Measurement`."""

    task: str
    metric: str
    adapter: str
    training: int
    placement: str
    device: str
    time_s: float
    repeat: int
    seed: int


class Origin(NamedTuple):
    """Hashes of what a measured value was computed from, besides the names in its key.

    The same name can refer to different things over time: a card's file is edited, an adapter is
    trained again. Cells that differ in a hash are different cells.

    Attributes:
        model_hash: Of the frozen model's weights and configuration.
        data_hash: Of the rows that the model is measured on, as text and as tokens.
        adapter_hash: Of the adapter's two files.
        card_hash: Of the figures of the device card.
        settings: Further settings of the deployment, as text.
    """

    model_hash: str
    data_hash: str
    adapter_hash: str
    card_hash: str
    settings: str


@dataclass(frozen=True)
class Measurement:
    """One score of one adapter on one programmed chip instance at one drift time.

    Attributes:
        task, metric, adapter, device: Names of the task, the score, the adapter and the device.
        training: Index of the training within the run; 0 for a saved adapter.
        placement: Where the adapter's parameters are: digital, folded or programmed.
        time_s: Seconds since programming finished.
        repeat: Index of the chip instance within the run.
        seed: Integer that names the chip instance.
        value: The score; a fraction in [0, 1] for accuracy and F1.

    Example:
        >>> cell = Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 0.0, 0, 7, 0.8)
        >>> cell.key.device
        'pcm'
    """

    task: str
    metric: str
    adapter: str
    training: int
    placement: str
    device: str
    time_s: float
    repeat: int
    seed: int
    value: float

    @property
    def key(self) -> CellKey:
        """Every column but the value."""
        return CellKey(*astuple(self)[:-1])


@dataclass(frozen=True)
class AdapterRecord:
    """Facts about one training of an adapter that do not depend on its deployment.

    Attributes:
        adapter, task, training: As in `Measurement`.
        trainable_parameters: Number of parameters of the adapter itself, without the head.
        head_parameters: Number of parameters of the task head.
        digital: Score of the digital model, by metric.
        train_seconds: Training time, s; 0 for an adapter saved before the run.
        path: The adapter's folder, relative to the run's.
        fingerprint: Hash of the adapter's two files.
        model_hash, data_hash: As in `Origin`.
    """

    adapter: str
    task: str
    trainable_parameters: int
    head_parameters: int
    digital: Mapping[str, float]
    train_seconds: float
    path: str
    fingerprint: str
    model_hash: str = ""
    data_hash: str = ""
    training: int = 0


def is_distilled(record: AdapterRecord) -> bool:
    """Return whether a second stage of the run, if it has one, has trained an adapter.

    It has not if the adapter was saved before, or is a model that is trained whole.
    """
    return record.train_seconds > 0 and record.adapter != "full"


@dataclass(frozen=True)
class LayerRecord:
    """One layer on one chip instance at one drift time.

    Attributes:
        device, seed, time_s: As in `Measurement`.
        layer, tiles, cells, use, weight_error: As in `analog_grasp.crossbar.LayerReport`; a module
            whose weights are digital has 0 tiles, a use of 0 and a weight error of 0.
    """

    device: str
    seed: int
    time_s: float
    layer: str
    tiles: int
    cells: int
    use: float
    weight_error: float


class TreatedAdapter(NamedTuple):
    """An adapter and its treatment, as the name of a variant in a study states them.

    Example:
        >>> str(TreatedAdapter("grasp", "recalibrated-64")), str(TreatedAdapter("grasp"))
        ('grasp+recalibrated-64', 'grasp')
        >>> TreatedAdapter.parse("grasp+scheduled").treatment
        'scheduled'
    """

    adapter: str
    treatment: str = ""
    """Empty for the adapter as trained."""

    @classmethod
    def parse(cls, name: str) -> "TreatedAdapter":
        """Return the parts of a variant's name."""
        found = _VARIANT.fullmatch(name)
        return cls(found["adapter"], found["treatment"]) if found else cls(name)

    def baseline(self, first: str) -> str:
        """Return the adapter to compare with: as trained, or the first where it is as trained."""
        return self.adapter if self.treatment else first

    @property
    def examples(self) -> int:
        """The number of examples of the recalibration; 0 without one."""
        number = self.treatment.removeprefix(_RECALIBRATED)
        return int(number) if number != self.treatment else 0

    def __str__(self) -> str:
        return f"{self.adapter}+{self.treatment}" if self.treatment else self.adapter


def recalibrated(examples: int) -> str:
    """Return the treatment of recalibration on the chip with a number of examples."""
    return f"{_RECALIBRATED}{examples}"


@dataclass(frozen=True)
class TreatmentCost:
    """The mean cost of a treatment per age, over the devices, chips and ages of a run.

    Attributes:
        variant, fits: The variant's name, and the number of adapters that were fitted.
        examples: Unlabelled examples; those of a schedule are not of the deployed chip.
        examples_read: Examples that the deployed chip computed for a fit; none for a schedule.
        seconds: Time of a fit, s.
        parameters, bytes: Number and size of the parameters rewritten.
        weights: Weights that reprogramming the chip would write instead; None where not known.
    """

    variant: str
    fits: int
    examples: float
    examples_read: float
    seconds: float
    parameters: float
    bytes: float
    weights: float | None


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Measurement))
ADAPTER_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(AdapterRecord))
LAYER_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(LayerRecord))

_ARROW = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
_SCHEMA = pyarrow.schema([(name, _ARROW[Measurement.__annotations__[name]]) for name in COLUMNS])


def training_folder(adapter: str, training: int) -> str:
    """Return the folder's name of a training of an adapter, such as grasp-training-2."""
    return f"{adapter}-training-{training}" if training else adapter


def as_table(
    records: Iterable[Measurement] | Iterable[LayerRecord], columns: Iterable[str] = COLUMNS
) -> pandas.DataFrame:
    """Return records as a table, the columns of measurements being those of results.csv."""
    return pandas.DataFrame(map(asdict, records), columns=list(columns))


def csv_text(measurements: Iterable[Measurement]) -> str:
    """Return the text of results.csv: a header and one row per measurement.

    Floats are written in their shortest form that reads back to the same number.

    Example:
        >>> csv_text([])
        'task,metric,adapter,training,placement,device,time_s,repeat,seed,value\\n'
    """
    return as_table(measurements).to_csv(index=False, lineterminator="\n")


def write_parquet(measurements: Iterable[Measurement], path: Path | str) -> None:
    """Write measurements as Parquet: the columns of results.csv as text, float64 and int64.

    Raises:
        OSError: The file cannot be written; an older one is then unchanged.
    """
    content = io.BytesIO()
    table = pyarrow.Table.from_pylist([asdict(cell) for cell in measurements], schema=_SCHEMA)
    parquet.write_table(table, content)
    write_atomically(path, content.getvalue())


def write_layers(records: Iterable[LayerRecord], path: Path) -> None:
    """Write layers.csv; raise OSError if it cannot be written."""
    text = as_table(records, LAYER_COLUMNS).to_csv(index=False, lineterminator="\n")
    write_atomically(path, text.encode())


def read_layers(path: Path) -> list[LayerRecord]:
    """Return the records of layers.csv; none where it does not exist, as in an unfinished run.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.is_file():
        return []
    kinds = LayerRecord.__annotations__.items()
    try:
        rows = csv.DictReader(io.StringIO(path.read_text("utf-8")))
        records = [LayerRecord(*(kind(row[name]) for name, kind in kinds)) for row in rows]
        complete = set(LAYER_COLUMNS) <= set(rows.fieldnames or ())
    except (KeyError, OverflowError, TypeError, ValueError, csv.Error):
        records, complete = [], False
    if not complete or not all(map(_is_valid, records)):
        raise ValueError(
            f"The file {path} is damaged: it should have the columns {', '.join(LAYER_COLUMNS)}; "
            "delete it, and the command of the run writes it again."
        )
    return records


def _is_valid(record: LayerRecord) -> bool:
    fits = 0 < record.use <= 1 if record.tiles else record.use == 0
    return record.cells > 0 and fits and math.isfinite(record.time_s + record.weight_error)


def treatment_costs(
    directory: Path, trained: Iterable[ModelKey], devices: Iterable[str]
) -> list[TreatmentCost]:
    """Return the costs of the treatments in a run's folder, read from the files of its adapters.

    Those of all trainings of an adapter are averaged. Schedules that were set aside, as a card was
    edited, are in folders that no device has, and do not count.

    Raises:
        ValueError: A file is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    places = {place_name(device) for device in devices}
    recalibrated_folders = sorted(directory.glob("recalibrated/*"))
    for adapter, training in trained:
        scheduled = directory / "scheduled" / training_folder(adapter, training)
        for path in sorted(scheduled.glob("*/schedule.json")):
            if path.parent.name in places:
                variant = str(TreatedAdapter(adapter, SCHEDULED))
                found.setdefault(variant, []).extend(_read_fits(path))
        own = re.compile(
            rf"({re.escape(adapter)}\+{_RECALIBRATED}\d+){training_folder('', training)}"
        )
        for folder in recalibrated_folders:
            if refitted := own.fullmatch(folder.name):
                for path in sorted(folder.glob("*/recalibration.json")):
                    found.setdefault(refitted[1], []).extend(_read_fits(path))
    costs = []
    for variant, fits in found.items():
        means: dict[str, Any] = {
            name: statistics.mean(fit.get(name, 0) for fit in fits) for name in _MEANS
        }
        if not all("weights" in fit for fit in fits):
            means["weights"] = None
        costs.append(TreatmentCost(variant, len(fits), **means))
    # As in the tables of scores: by adapter, then by examples, whose numbers texts do not sort.
    parts = {cost.variant: TreatedAdapter.parse(cost.variant) for cost in costs}
    return sorted(costs, key=lambda c: (parts[c.variant].adapter, parts[c.variant].examples))


def _read_fits(path: Path) -> list[dict[str, Any]]:
    """Return the costs of the fits in a file: one for each age of a schedule, or a single one."""
    try:
        content = json.loads(path.read_text("utf-8"))
        fits = list(content["ages"].values()) if path.name == "schedule.json" else [content]
        # Finite numbers alone have a mean.
        if fits and all(math.isfinite(fit.get(name, 0)) for fit in fits for name in _MEANS):
            return fits
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        pass
    # A schedule is needed for further measurements, a recalibrated adapter is not.
    effect = (
        "the command of the run fits the adapters again"
        if path.name == "schedule.json"
        else "the costs are those of the other fits"
    )
    raise ValueError(f"The file {path} is damaged: delete its folder, and {effect}.")
