"""CSV and Parquet files that read back to the same measurements and layers."""

import csv
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from analog_grasp.study.records import (
    LAYER_COLUMNS,
    LayerRecord,
    Measurement,
    csv_text,
    read_layers,
    write_layers,
    write_parquet,
)

CELL = Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 20.0, 0, 7, 0.8125)


CELLS = [replace(CELL, adapter='a "quoted", name', value=0.1 + 0.2), CELL]


def test_csv_reads_back_to_the_same_measurements():
    text = csv_text(CELLS)
    columns = "task,metric,adapter,training,placement,device,time_s,repeat,seed,value"
    assert text.startswith(f"{columns}\n")
    kinds = Measurement.__annotations__
    rows = csv.DictReader(text.splitlines())
    assert [Measurement(**{k: kinds[k](v) for k, v in row.items()}) for row in rows] == CELLS


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_csv_has_the_shortest_form_of_a_value(value):
    assert csv_text([replace(CELL, value=value)]).splitlines()[1].endswith(f",7,{value!r}")


def test_parquet_reads_back_to_the_same_measurements(tmp_path):
    write_parquet(CELLS, tmp_path / "results.parquet")
    table = parquet.read_table(tmp_path / "results.parquet")
    assert table.to_pylist() == [asdict(cell) for cell in CELLS]
    assert {str(table.schema.field(name).type) for name in ("time_s", "value")} == {"double"}
    assert {str(table.schema.field(name).type) for name in ("repeat", "seed")} == {"int64"}


def test_layers_read_back_to_the_same_records(tmp_path):
    layers = [LayerRecord("pcm", 7, 86400.0, "query", 2, 100, 1 / 3, 0.1 + 0.2)]
    layers += [LayerRecord("pcm", 7, 86400.0, "embeddings", 0, 600, 0.0, 0.0)]
    write_layers(layers, tmp_path / "layers.csv")
    assert read_layers(tmp_path / "layers.csv") == layers


HEADER = ",".join(LAYER_COLUMNS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "device,seed\npcm,0\n",
        f"{HEADER}\npcm,0,0.0\n",
        f"{HEADER}\npcm,0,0.0,query,1,100,0.0,0.1\n",
        f"{HEADER}\npcm,0,0.0,query,1,100,0.5,nan\n",
        f"{HEADER}\npcm,0,0.0,query,0,100,0.5,0.1\n",
        f"{HEADER}\n{'x' * 200_000}",
    ],
)
def test_a_damaged_file_raises(tmp_path, text):
    path = tmp_path / "layers.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"layers\.csv is damaged: it should have the columns dev"):
        read_layers(path)
