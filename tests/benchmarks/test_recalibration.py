"""The benchmark of recalibration on a small model."""

import sys

import pytest
import recalibration

from analog_grasp.study.records import Measurement


@pytest.mark.slow
def test_a_small_part_is_measured_and_drawn(bert_folder, tmp_path, monkeypatch, capsys):
    config = tmp_path / "settings.toml"
    config.write_text(f'model = "{bert_folder}"\ngroups = 4\nepochs = 0.1\n')
    part = ["--adapters", "grasp", "--devices", "pcm-hermes-2", "--times", "0s,1y"]
    small = ["--repeats", "1", "--examples", "4", "--then-steps", "2", "--config", str(config)]
    asked = ["recalibration.py", *part, *small, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", asked)
    recalibration.main()
    printed = capsys.readouterr().out
    for name in ("grasp+scheduled", "grasp+recalibrated-4", "grasp+two-stages"):
        assert name in printed
    assert "recovered (% of the loss, mean over devices), digital" in printed
    assert "weights that reprogramming would write" in " ".join(printed.split())
    assert (tmp_path / "recalibration-reviews.svg").is_file()


def test_recovered_share_skips_devices_without_loss():
    def cell(adapter, device, value):
        where = ("reviews", "accuracy", adapter, 0, "digital", device, 1.0, 0, 0)
        return Measurement(*where, value)

    cells = [
        cell("grasp", "pcm", 0.5), cell("grasp+scheduled", "pcm", 0.8),
        cell("grasp", "ideal", 0.895), cell("grasp+scheduled", "ideal", 0.7),
    ]  # fmt: skip
    assert recalibration.recovered(cells, "scheduled", 0.9, 1.0) == pytest.approx(0.75)
    assert recalibration.recovered(cells, "scheduled", 0.9, 2.0) is None
