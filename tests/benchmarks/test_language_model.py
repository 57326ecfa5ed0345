"""The benchmark of a language model on chips, with a tiny model and a few texts."""

import json
import sys

import language_model
import numpy as np
import pytest

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "hill"]


@pytest.fixture
def data_dir(tmp_path):
    """Premises in the official layout of RTE."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "RTE").mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        rows = [
            f"{i}\t{' '.join(rng.choice(WORDS, 12))}\tthe cat sat\tentailment" for i in range(40)
        ]
        text = "\n".join(["index\tsentence1\tsentence2\tlabel", *rows])
        (tmp_path / "data" / "RTE" / name).write_text(text + "\n")
    return tmp_path / "data"


@pytest.mark.slow
def test_every_treatment_is_measured_and_resumed(
    llama_folder, data_dir, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.jsonl"
    few = [
        "--devices", "pcm-hermes-2", "pcm-afm-2025", "--times", "0s", "1y", "--tokens", "200",
        "--calibration-tokens", "60", "--window", "16", "--steps", "6", "--batch-size", "2",
        "--examples", "6", "--schedule-steps", "6", "--schedule-batch-size", "2",
    ]  # fmt: skip
    where = ["--model", str(llama_folder), "--data-dir", str(data_dir), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["language_model.py", *where, *few])
    language_model.main()
    printed = capsys.readouterr().out
    found = {k: v for line in out.read_text().splitlines() for k, v in json.loads(line).items()}
    assert len(found) == 1 + 2 * len(language_model.TREATMENTS)
    values = [found[f"pcm-hermes-2 {name} 0"]["1y"] for name in language_model.TREATMENTS]
    assert all(value > 1 for value in values)
    # Recalibration keeps the adapter where no step lowers the held-out loss.
    fitted = [value for name, value in zip(language_model.TREATMENTS, values, strict=True)
              if "recalibrate" not in language_model.TREATMENTS[name]]  # fmt: skip
    assert len(set(fitted)) == len(fitted)
    # That card has no drift.
    assert found["pcm-afm-2025 direct 0"]["0s"] == found["pcm-afm-2025 direct 0"]["1y"]
    assert f"| pcm-hermes-2 | direct | {found['pcm-hermes-2 direct 0']['0s']:.4g} |" in printed
    size = out.stat().st_size
    language_model.main()
    assert out.stat().st_size == size
    assert capsys.readouterr().out.splitlines()[-1] == printed.splitlines()[-1]
