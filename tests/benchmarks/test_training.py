"""The benchmark of training, on a tiny model."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"


@pytest.mark.slow
def test_all_peers_run_and_are_compared_with_plain_torch():
    command = [sys.executable, SCRIPT, "--quick"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line[:2] == "| "]
    assert rows == [
        "",
        ":--",
        "plain torch",
        "plain torch, by length",
        "ours",
        "aihwkit",
        "aihwkit, by length",
        "ours, through converters",
        "aihwkit, through converters",
    ]
