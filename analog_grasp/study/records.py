"""Records of a run: measurements, trained adapters, layers on chips; CSV and Parquet files."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import pyarrow
from pyarrow import parquet

from analog_grasp.utils.io import write_atomically

Row = tuple[str | float | int, ...]


class CellKey(NamedTuple):
    """Name of a measured cell: every column of results.csv but the value, in that order."""

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
        task: Name of the task, such as ``"glue/sst2"``.
        metric: Name of the score; a fraction in [0, 1] for accuracy and F1.
        adapter: Name of the adapter.
        training: Index of the training within the run; 0 for a saved adapter.
        placement: Where the adapter's parameters are: digital, folded or programmed.
        device: Name of the device card.
        time_s: Seconds since programming finished.
        repeat: Index of the chip instance within the run.
        seed: Integer that names the chip instance.
        value: The score.

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
    """Facts about one training of an adapter that hold wherever it is deployed.

    Attributes:
        adapter: Name of the adapter.
        task: Task that it was trained on.
        trainable_parameters: Number of parameters of the adapter itself, without the head.
        head_parameters: Number of parameters of the task head.
        digital: Score of the digital model, by metric.
        train_seconds: Training time, s; 0 for an adapter saved before the run.
        path: The adapter's folder, relative to the run's.
        fingerprint: Hash of the adapter's two files.
        model_hash, data_hash: As in `Origin`.
        training: Index of the training within the run.
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


@dataclass(frozen=True)
class LayerRecord:
    """One layer on one chip instance at one drift time.

    Attributes:
        device: Name of the device card.
        seed: Integer that names the chip instance.
        time_s: Seconds since programming finished.
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


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Measurement))
ADAPTER_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(AdapterRecord))

_ARROW = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
_SCHEMA = pyarrow.schema([(name, _ARROW[Measurement.__annotations__[name]]) for name in COLUMNS])


def measurement_row(cell: Measurement) -> Row:
    """Return the columns as plain Python numbers (SQLite would store numpy's own as bytes).

    Raises:
        ValueError: The value or the time is not finite, the time is negative, or the seed exceeds
            64 bits.
    """
    where = (
        f"{cell.adapter!r} on device {cell.device!r} at {cell.time_s} s, training {cell.training},"
        f" repeat {cell.repeat}"
    )
    if not math.isfinite(cell.value):
        raise ValueError(
            f"The {cell.metric} of {where} is {cell.value}; a measured value must be finite."
        )
    if not (math.isfinite(cell.time_s) and cell.time_s >= 0):
        raise ValueError(f"The time of {where} must be a finite number of seconds, 0 or more.")
    if not -(2**63) <= cell.seed < 2**63:
        raise ValueError(f"The seed {cell.seed} of {where} must fit into 64 bits with its sign.")
    names = (cell.task, cell.metric, cell.adapter, int(cell.training), cell.placement, cell.device)
    return (*names, float(cell.time_s), int(cell.repeat), int(cell.seed), float(cell.value))


def adapter_row(record: AdapterRecord) -> Row:
    """Return the columns of an adapter's record, its digital scores as JSON.

    Raises:
        ValueError: A score or the training time is not finite.
    """
    digital = {metric: float(score) for metric, score in record.digital.items()}
    for name, figure in {**digital, "training time": record.train_seconds}.items():
        if not math.isfinite(figure):
            raise ValueError(
                f"The {name} of adapter {record.adapter!r} is {figure}; it must be finite."
            )
    columns = vars(record) | {
        "trainable_parameters": int(record.trainable_parameters),
        "head_parameters": int(record.head_parameters),
        "training": int(record.training),
        "digital": json.dumps(digital),
        "train_seconds": float(record.train_seconds),
    }
    return tuple(columns[name] for name in ADAPTER_COLUMNS)


def adapter_record(row: Row) -> AdapterRecord:
    """Return the record of such columns.

    Example:
        >>> record = AdapterRecord("grasp", "reviews", 1, 2, {"accuracy": 0.5}, 3.0, "a", "f")
        >>> adapter_record(adapter_row(record)) == record
        True
    """
    columns = dict(zip(ADAPTER_COLUMNS, row, strict=True))
    return AdapterRecord(**columns | {"digital": json.loads(str(columns["digital"]))})


def write_csv(measurements: Iterable[Measurement], path: Path | str) -> None:
    """Write measurements as comma-separated values, one row per measurement, below a header.

    Floats are written in their shortest form that reads back to the same number.

    Raises:
        ValueError: A value is not finite.
        OSError: The file cannot be written; an older one is then unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv([], Path(folder) / "results.csv")
        ...     (Path(folder) / "results.csv").read_text()
        'task,metric,adapter,training,placement,device,time_s,repeat,seed,value\\n'
    """
    write_atomically(path, csv_text(measurements).encode())


def csv_text(measurements: Iterable[Measurement]) -> str:
    """Return the text of results.csv.

    Raises:
        ValueError: A value is not finite.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(measurement_row(measurement) for measurement in measurements)
    return text.getvalue()


def write_parquet(measurements: Iterable[Measurement], path: Path | str) -> None:
    """Write measurements as Parquet: the columns of results.csv as text, float64 and int64.

    Raises:
        ValueError, OSError: As `write_csv`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_parquet([], Path(folder) / "results.parquet")
        ...     parquet.read_table(Path(folder) / "results.parquet").num_columns
        10
    """
    rows = [dict(zip(COLUMNS, measurement_row(cell), strict=True)) for cell in measurements]
    table = pyarrow.Table.from_pylist(rows, schema=_SCHEMA)
    content = io.BytesIO()
    parquet.write_table(table, content)
    write_atomically(path, content.getvalue())
