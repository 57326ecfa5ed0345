"""The shared code of the benchmarks."""

from argparse import Namespace

import numpy as np
import peers
import pytest


def test_functions_are_called_in_alternating_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = peers.interleaved(functions, repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_of_medians_and_quartiles_of_pairs():
    seconds = {"ours": [1.0, 2.0, 3.0], "theirs": [4.0, 8.0, 12.0]}
    table = peers.ratio_table("One question", seconds, "ours").splitlines()
    assert table[0] == "**One question**"
    assert table[-2] == "| ours | 2 | 1.5 to 2.5 | 1 | 1 |"
    assert table[-1] == "| theirs | 8 | 6 to 10 | 4 | 4 to 4 |"


def test_peak_memory_is_of_the_call_only():
    few, many = (peers.peak_memory(np.ones, size << 17) for size in (20, 220))
    assert many.added - few.added == pytest.approx(200 << 20, rel=0.05)


def test_failed_call_raises(capfd):
    with pytest.raises(RuntimeError, match="ones failed in its own process"):
        peers.apart(np.ones, "x")
    assert "TypeError" in capfd.readouterr().err


def test_machine_and_versions():
    line = peers.machine()
    assert "cores" in line
    assert "aihwkit 1.2" in line


def test_results_of_other_settings_are_not_resumed(tmp_path):
    path, asked = tmp_path / "run" / "settings.json", {"model": "a", "out": "x", "seeds": [0]}
    peers.same_settings(path, Namespace(**asked), "seeds")
    peers.same_settings(path, Namespace(**asked | {"out": "y", "seeds": [1]}), "seeds")
    with pytest.raises(SystemExit, match="whose model is 'a' and not 'b': name another folder"):
        peers.same_settings(path, Namespace(**asked | {"model": "b"}), "seeds")
