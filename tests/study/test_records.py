"""CSV and Parquet files that read back to the same measurements and layers."""

import csv
from dataclasses import asdict, replace

import pytest
from pyarrow import parquet

from analog_grasp.study.records import (
    LAYER_COLUMNS,
    LayerRecord,
    Measurement,
    read_layers,
    write_csv,
    write_layers,
    write_parquet,
)

CELL = Measurement("reviews", "accuracy", "grasp", 0, "digital", "pcm", 20.0, 0, 7, 0.8125)


def test_csv_reads_back_to_the_same_measurements(tmp_path):
    cells = [replace(CELL, adapter='a "quoted", name', value=0.1 + 0.2), CELL]
    write_csv(cells, tmp_path / "results.csv")
    text = (tmp_path / "results.csv").read_text()
    columns = "task,metric,adapter,training,placement,device,time_s,repeat,seed,value"
    assert text.startswith(f"{columns}\n")
    kinds = Measurement.__annotations__
    rows = csv.DictReader(text.splitlines())
    read = [Measurement(**{k: kinds[k](v) for k, v in row.items()}) for row in rows]
    assert read == cells


def test_an_invalid_value_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.csv"
    write_csv([CELL], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite"):
        write_csv([replace(CELL, value=float("nan"))], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_reads_back_to_the_same_measurements(tmp_path):
    cells = [replace(CELL, adapter='a "quoted", name', value=0.1 + 0.2), CELL]
    write_parquet(cells, tmp_path / "results.parquet")
    table = parquet.read_table(tmp_path / "results.parquet")
    assert table.to_pylist() == [asdict(cell) for cell in cells]
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
