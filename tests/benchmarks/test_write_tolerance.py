"""The benchmark of write tolerances on a small model: every rule, with its pulses."""

import sys

import pytest
import write_tolerance
from transformers import AutoModelForSequenceClassification

from analog_grasp.adapters.registry import adapt
from analog_grasp.study.trained_adapters import save_adapter


@pytest.mark.slow
def test_every_rule_is_scored(bert_folder, tmp_path, monkeypatch, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(bert_folder)
    settings = {
        "groups": 4, "target_modules": "all-linear", "noise_weight": 1.0, "noise_target": 0.1,
        "sampling": "weight",
    }  # fmt: skip
    save_adapter(adapt(model, "stochgrasp", **settings), tmp_path / "adapter")
    asked = ["--model", str(bert_folder), "--repeats", "1", "--examples", "2"]
    monkeypatch.setattr(sys, "argv", ["write_tolerance.py", str(tmp_path / "adapter"), *asked])
    write_tolerance.main()
    printed = capsys.readouterr().out
    assert "**rram-wan2022 at 0s, 1 chips**" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    pulses = {row[0].removeprefix("| "): float(row[1]) for row in rows[2:]}
    assert pulses["uniform, inf"] == 1.0
    assert pulses["uniform, 0.025"] == 8.52
    # Both verify the same number of weights.
    assert pulses["magnitude, 30% verified"] == pytest.approx(
        pulses["SWIM, 30% verified"], rel=0.05
    )
    # Untrained standard deviations are equal: the control is the same.
    for factor in ("4", "1"):
        assert pulses[f"StochGRASP, x {factor}"] == pulses[f"equal sigmas, x {factor}"]
