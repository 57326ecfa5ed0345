"""Training of a small GPT-2 for E2E on a few rows."""

import subprocess
import sys
from pathlib import Path

import pytest

from analog_grasp.tasks import load_base_model, load_task

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "e2e_model.py"
SMALL = ["--epochs", "1", "--width", "16", "--layers", "1", "--vocabulary", "300"]


@pytest.mark.slow
def test_model_is_trained_once_and_cached(tmp_path):
    rows = [f'"name[Inn {i}], area[riverside]","Inn {i} is by the river."' for i in range(10)]
    for file in ("devset.csv", "testset_w_refs.csv"):
        (tmp_path / file).write_text("\n".join(["mr,ref", *rows]), encoding="utf-8")
    command = [sys.executable, SCRIPT, "--data-dir", tmp_path, "--cache", tmp_path, *SMALL]

    def folder():
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return Path(done.stdout.strip().splitlines()[-1])

    first = folder()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert folder() == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    task = load_task("e2e/dev", tmp_path)
    model = load_base_model(task, str(first))
    assert len(task.predict(model)) == 2
