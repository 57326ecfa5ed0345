"""Measurements as files for other programs: CSV and Parquet."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow
from pyarrow import parquet

from analog_grasp.study.records import COLUMNS, Measurement, measurement_row
from analog_grasp.utils.io import write_atomically

_ARROW = {"str": pyarrow.string(), "float": pyarrow.float64(), "int": pyarrow.int64()}
_SCHEMA = pyarrow.schema([(name, _ARROW[Measurement.__annotations__[name]]) for name in COLUMNS])


def write_csv(measurements: Iterable[Measurement], path: Path | str) -> None:
    """Write measurements as comma-separated values, one row a cell, under a header.

    Floats are written in their shortest form that reads back to the same number.

    Raises:
        ValueError: a value is not finite.
        OSError: the file cannot be written; an older one is then left as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv([], Path(folder) / "results.csv")
        ...     (Path(folder) / "results.csv").read_text()
        'task,metric,adapter,placement,device,time_s,repeat,seed,value\\n'
    """
    write_atomically(path, csv_text(measurements).encode())


def csv_text(measurements: Iterable[Measurement]) -> str:
    """The text of results.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(measurement_row(measurement) for measurement in measurements)
    return text.getvalue()


def write_parquet(measurements: Iterable[Measurement], path: Path | str) -> None:
    """Write measurements as Parquet: the columns of results.csv as text, float64 and int64.

    Raises:
        ValueError, OSError: as `write_csv`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_parquet([], Path(folder) / "results.parquet")
        ...     parquet.read_table(Path(folder) / "results.parquet").num_columns
        9
    """
    rows = [dict(zip(COLUMNS, measurement_row(cell), strict=True)) for cell in measurements]
    table = pyarrow.Table.from_pylist(rows, schema=_SCHEMA)
    content = io.BytesIO()
    parquet.write_table(table, content)
    write_atomically(path, content.getvalue())
