"""CSV and Parquet files that read back to the same measurements and layers."""

import csv
import json
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
    treatment_costs,
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


def test_the_costs_of_all_trainings_are_averaged_by_variant(tmp_path):
    """Schedules that were set aside, and other adapters that are named like a training, are not."""

    def fitted(folder, seconds):
        folder.mkdir(parents=True)
        cost = {"examples": 4, "examples_read": 9, "seconds": seconds, "parameters": 2, "bytes": 8}
        return json.dumps(cost | {"weights": 100}), json.dumps({"ages": {"0": cost}})

    for name, seconds in (("grasp", 1.0), ("grasp-training-1", 3.0), ("mine-training-1", 7.0)):
        for place, taken in (("gaussian-0.1", seconds), ("gaussian-0.1-01234567", 500.0)):
            folder = tmp_path / "scheduled" / name / place
            (folder / "schedule.json").write_text(fitted(folder, taken)[1])
    for name, seconds in (("grasp+recalibrated-16", 1.0), ("grasp+recalibrated-16-training-1", 2)):
        folder = tmp_path / "recalibrated" / name / "gaussian-0.1-3-1d"
        (folder / "recalibration.json").write_text(fitted(folder, seconds)[0])
    trained = [("grasp", 0), ("grasp", 1), ("mine-training-1", 0)]
    costs = treatment_costs(tmp_path, trained, ["gaussian:0.1"])
    assert {cost.variant: (cost.fits, cost.seconds, cost.weights) for cost in costs} == {
        "grasp+scheduled": (2, 2.0, None),
        "grasp+recalibrated-16": (2, 1.5, 100),
        "mine-training-1+scheduled": (1, 7.0, None),
    }


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ages": {}}', '{"ages": {"0s": 3}}',
                                  '{"ages": {"0s": {"seconds": "3"}}}'])  # fmt: skip
def test_a_damaged_schedule_raises(tmp_path, text):
    path = tmp_path / "scheduled" / "grasp" / "pcm" / "schedule.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"schedule\.json is damaged: delete its folder"):
        treatment_costs(tmp_path, [("grasp", 0)], ["pcm"])
