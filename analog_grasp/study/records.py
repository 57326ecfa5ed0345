"""What a run keeps: measured cells and what they came from, trained adapters, layers on chips."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import NamedTuple

Row = tuple[str | float | int, ...]


class CellKey(NamedTuple):
    """What names a measured cell: every column but the value, in the order of results.csv."""

    task: str
    metric: str
    adapter: str
    placement: str
    device: str
    time_s: float
    repeat: int
    seed: int


class Origin(NamedTuple):
    """What a cell's value comes from beyond the names and numbers of its key, as hashes.

    A name can come to mean something else: a card's file is edited, an adapter trained again. The
    hashes tell such cells apart. An empty one is not known: a store of version 1 kept none.

    Attributes:
        model_hash: of the frozen model's weights and configuration.
        data_hash: of what the model is measured on, as text and as tokens.
        adapter_hash: of the adapter's two files.
        card_hash: of the card's numbers.
        settings: further settings of the deployment, as text.
    """

    model_hash: str = ""
    data_hash: str = ""
    adapter_hash: str = ""
    card_hash: str = ""
    settings: str = ""


UNKNOWN = Origin()


@dataclass(frozen=True)
class Measurement:
    """One score of one adapter on one programmed chip instance at one drift time.

    Attributes:
        task: name of the task, such as ``"glue/sst2"``.
        metric: name of the score; a fraction in [0, 1] for accuracy and F1.
        adapter: name of the adapter.
        placement: where the adapter's parameters live: digital, folded or programmed.
        device: name of the device card.
        time_s: seconds since programming finished.
        repeat: index of the chip instance within the run.
        seed: the integer that names the chip instance.
        value: the score.

    Example:
        >>> cell = Measurement("reviews", "accuracy", "grasp", "digital", "pcm", 20.0, 0, 7, 0.81)
        >>> cell.key.device
        'pcm'
    """

    task: str
    metric: str
    adapter: str
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
    """The facts about one trained adapter that hold wherever it is deployed.

    Attributes:
        adapter: name of the adapter.
        task: the task it was trained on.
        trainable_parameters: learned numbers of the adapter itself, without the head.
        head_parameters: learned numbers of the task head.
        digital: score of the digital model, by metric.
        train_seconds: how long the training took; 0 for an adapter saved before the run.
        path: the adapter's folder, relative to the run's.
        fingerprint: a hash of the adapter's two files.
        model_hash, data_hash: as in `Origin`.
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


@dataclass(frozen=True)
class LayerRecord:
    """One layer on one chip instance at one drift time.

    Attributes:
        device: The card's name.
        seed: The chip instance.
        time_s: Seconds since programming finished.
        layer, tiles, cells, use, weight_error: As in `analog_grasp.crossbar.LayerReport`.
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


def measurement_row(cell: Measurement) -> Row:
    """The columns as plain Python numbers (numpy's own would be stored as bytes).

    Raises:
        ValueError: the value or the time is not finite, the time negative, or the seed over 64
            bits.
    """
    where = f"{cell.adapter!r} on device {cell.device!r} at {cell.time_s} s, repeat {cell.repeat}"
    if not math.isfinite(cell.value):
        raise ValueError(
            f"The {cell.metric} of {where} is {cell.value}; a measured value must be finite."
        )
    if not (math.isfinite(cell.time_s) and cell.time_s >= 0):
        raise ValueError(f"The time of {where} must be a finite number of seconds, 0 or more.")
    if not -(2**63) <= cell.seed < 2**63:
        raise ValueError(f"The seed {cell.seed} of {where} must fit into 64 bits with its sign.")
    names = (cell.task, cell.metric, cell.adapter, cell.placement, cell.device)
    return (*names, float(cell.time_s), int(cell.repeat), int(cell.seed), float(cell.value))


def adapter_row(record: AdapterRecord) -> Row:
    """The columns of an adapter's record.

    Raises:
        ValueError: a figure is not finite.
    """
    digital = {metric: float(score) for metric, score in record.digital.items()}
    for name, figure in {**digital, "training time": record.train_seconds}.items():
        if not math.isfinite(figure):
            raise ValueError(
                f"The {name} of adapter {record.adapter!r} is {figure}; it must be finite."
            )
    return (
        record.adapter,
        record.task,
        int(record.trainable_parameters),
        int(record.head_parameters),
        json.dumps(digital),
        float(record.train_seconds),
        record.path,
        record.fingerprint,
        record.model_hash,
        record.data_hash,
    )


def adapter_record(row: Row) -> AdapterRecord:
    """The record of such columns.

    Example:
        >>> record = AdapterRecord("grasp", "reviews", 1, 2, {"accuracy": 0.5}, 3.0, "a", "f")
        >>> adapter_record(adapter_row(record)) == record
        True
    """
    columns = dict(zip(ADAPTER_COLUMNS, row, strict=True))
    return AdapterRecord(**columns | {"digital": json.loads(str(columns["digital"]))})
