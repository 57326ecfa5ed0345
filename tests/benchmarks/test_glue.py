"""The benchmark of GLUE by every adapter on a small model."""

import json
import os
import sys
from pathlib import Path

import glue
import pytest

DATA = Path(os.environ.get("ANALOG_GRASP_GLUE", Path(__file__).parents[3] / "shared" / "glue"))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no GLUE files in {DATA}; set ANALOG_GRASP_GLUE")
def test_training_scores_and_resuming(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(glue.TRAININGS, "glue/rte", glue.Training(0.01, 8, 1.0))
    asked = ["--data-dir", str(DATA), "--out", str(tmp_path), "--tasks", "glue/rte"]
    few = ["--adapters", "grasp", "lora", "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["glue.py", *asked, *few])
    glue.main()
    printed = capsys.readouterr().out
    files = sorted(tmp_path.glob("glue-rte/*.json"))
    assert [file.stem for file in files] == ["grasp-0", "grasp-1", "lora-0", "lora-1"]
    scores = [json.loads(file.read_text())["score"] for file in files]
    assert f"| {50 * sum(scores[:2]):.1f} ± " in printed.splitlines()[2]
    assert "| LoRA, r = 8 | 73,728 |" in printed
    # A second time nothing is trained: what is there is shown.
    monkeypatch.setattr(glue, "measure", None)
    glue.main()
    assert capsys.readouterr().out == printed


def test_mean_over_tasks_is_within_each_seed():
    scores = {("lora", "glue/cola"): [10.0, 20.0], ("lora", "glue/rte"): [60.0, 50.0]}
    row = glue.table(scores, {"lora": 12}, ["lora"], ["glue/cola", "glue/rte"]).splitlines()[-1]
    assert row == "| LoRA, r = 8 | 12 | 15.0 ± 7.1 | 55.0 ± 7.1 | 35.0 ± 0.0 |"
