"""The benchmark of adapters under noise on a small model."""

import sys

import noise
import pytest


@pytest.mark.slow
def test_tuning_training_measuring_and_resuming(bert_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(noise, "TUNED_ON", {"stochgrasp": noise.WEIGHTS})
    asked = ["--model", str(bert_folder), "--out", str(tmp_path), "--epochs", "0.01"]
    few = ["--trials", "1", "--repeats", "2", "--seeds", "0", "1"]
    variants = ["--variants", "grasp", "stochgrasp", "small-sigma", "--studies", "weights"]
    monkeypatch.setattr(sys, "argv", ["noise.py", *asked, *few, *variants])
    noise.main()
    printed = capsys.readouterr().out
    assert "**Noise of the frozen weights: reviews, 2 trainings**" in printed
    rows = [row for row in printed.splitlines() if row.startswith("| gaussian")]
    assert len(rows) == len(noise.LEVELS)
    # A second time nothing is trained: what is there is shown.
    monkeypatch.setattr(noise, "train_adapter", None)
    noise.main()
    assert capsys.readouterr().out == printed


def test_interval_is_over_several_trainings():
    def run(grasp, other):
        return [
            noise.Measurement(
                "reviews", "accuracy", adapter, 0, "digital", "pcm", 0.0, chip, 7, score
            )
            for adapter, scores in (("grasp", grasp), ("stochgrasp", other))
            for chip, score in enumerate(scores)
        ]

    first, second = run((0.5, 0.6), (0.599, 0.701)), run((0.5, 0.6), (0.4, 0.7))
    # One training: chips differ by 10 points each. Two: their means are 10 and 0 points.
    assert noise.table([first]).splitlines()[-1].endswith("| 55.0 | +10.0 ±1.3 ▲ |")
    assert noise.table([first, second]).splitlines()[-1].endswith("| 55.0 | +5.0 ±63.5 ▲· |")
