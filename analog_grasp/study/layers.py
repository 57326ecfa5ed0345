"""What each layer takes of a study's chips, and how far its weights are from their targets."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from analog_grasp.crossbar import deploy
from analog_grasp.study.evaluator import Bench
from analog_grasp.study.grid import Chip
from analog_grasp.study.progress import Progress
from analog_grasp.study.records import LayerRecord
from analog_grasp.utils.io import write_atomically

LAYERS_FILE = "layers.csv"


COLUMNS = tuple(field.name for field in fields(LayerRecord))


def write_layers(
    path: Path,
    bench: Bench,
    chips: Sequence[Chip],
    times: Iterable[float],
    progress: Progress,
) -> None:
    """Program and age chips without measuring a score, and write layers.csv.

    Args:
        path: Of the file.
        bench: What is deployed. Its first adapter stands for all: digital ones have the frozen
            weights in common.
        chips: The chip instances, one a device.
        times: Drift times, s.
        progress: Told of each chip.

    Raises:
        OSError: The file cannot be written.
    """
    model, ascending = next(iter(bench.models.values())), sorted(times)
    advance = progress("weight errors", len(chips))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for chip in chips:
        deployment = deploy(model, bench.cards[chip.device], **bench.options).program(chip.seed)
        for seconds in ascending:
            for found in deployment.drift_to(seconds).report():
                writer.writerow((chip.device, chip.seed, seconds, *astuple(found)))
        advance(f"weights on {chip.device}, chip {chip.seed}")
    write_atomically(path, text.getvalue().encode())


def read_layers(path: Path) -> list[LayerRecord]:
    """What layers.csv says; nothing where it is not there, as in a run that is not finished.

    Raises:
        ValueError: The file is damaged.

    Example:
        >>> read_layers(Path("nowhere/layers.csv"))
        []
    """
    if not path.is_file():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8")))
        if reader.fieldnames != list(COLUMNS):
            raise ValueError
        return [_record(row) for row in reader]
    except (TypeError, ValueError, csv.Error):
        raise ValueError(
            f"The file {path} is damaged: it should have the columns {', '.join(COLUMNS)}; "
            "delete it, and the command of the run writes it anew."
        ) from None


def _record(row: Mapping[str, str]) -> LayerRecord:
    record = LayerRecord(
        row["device"],
        int(row["seed"]),
        float(row["time_s"]),
        row["layer"],
        int(row["tiles"]),
        int(row["cells"]),
        float(row["use"]),
        float(row["weight_error"]),
    )
    figures = (record.time_s, record.weight_error)
    if not (record.cells > 0 and 0 < record.use <= 1 and all(map(math.isfinite, figures))):
        raise ValueError
    return record
