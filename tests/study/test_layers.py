"""What layers take of the chips is written once for a run, and read as it was written."""

import pytest

from analog_grasp import deploy
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.evaluator import Bench
from analog_grasp.study.grid import Chip
from analog_grasp.study.layers import COLUMNS, read_layers, write_layers
from analog_grasp.study.progress import silent


def test_rows_are_those_of_the_deployment(bert, tmp_path):
    cards = {name: DeviceCard.load(name) for name in ("pcm-hermes-2", "ideal")}
    bench = Bench(None, {"plain": bert}, cards, {"placement": "digital"})
    path = tmp_path / "layers.csv"
    chips = [Chip(device, 0, 7) for device in cards]
    write_layers(path, bench, chips, [86400.0, 0.0], silent)
    rows = read_layers(path)
    report = deploy(bert, cards["pcm-hermes-2"]).program(7).drift_to("1d").report()
    aged = [row for row in rows if (row.device, row.time_s) == ("pcm-hermes-2", 86400.0)]
    assert [(r.layer, r.tiles, r.cells, r.use, r.weight_error) for r in aged] == [
        (r.name, r.tiles, r.cells, r.use, r.weight_error) for r in report
    ]
    assert {row.seed for row in rows} == {7}
    assert len(rows) == 2 * 2 * len(report)
    assert all(row.weight_error < 1e-6 for row in rows if row.device == "ideal")


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "device,seed\npcm,0\n",
        f"{HEADER}\npcm,0,0.0\n",
        f"{HEADER}\npcm,0,0.0,query,1,100,0.0,0.1\n",
        f"{HEADER}\npcm,0,0.0,query,1,100,0.5,nan\n",
        f"{HEADER}\n{'x' * 200_000}",
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "layers.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"layers\.csv is damaged: it should have the columns dev"):
        read_layers(path)
