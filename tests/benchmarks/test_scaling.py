"""The benchmark of scaling on a small model."""

import sys

import numpy as np
import peers
import pytest
import scaling


def test_power_law_is_recovered():
    sizes = np.array([1, 2, 4, 8])
    factors = np.array([0.9, 1.0, 1.1])
    axis = scaling.Axis("cells", sizes, 0.5 * sizes[:, None] ** 1.5 * factors, sizes)
    exponent, error, first = axis.fit()
    assert exponent == pytest.approx(1.5)
    assert 0.01 < error < 0.1
    assert first == pytest.approx(0.5, rel=0.01)


@pytest.mark.slow
def test_table_and_figure(tmp_path, monkeypatch, capsys):
    # In this process: to load all modules into another takes longer than the rest.
    memory = peers.Memory(0, 2**20)
    monkeypatch.setattr(scaling, "peak_memory", lambda work, *args: work(*args) or memory)
    figure = tmp_path / "scaling.png"
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick", "--figure", str(figure)])
    scaling.main()
    printed = capsys.readouterr().out
    for text in (
        "| measurements | 1 to 8 |",
        "| tokens per sequence | 4 to 64 |",
        "| 1 to 1 |",
        "| threads |",
    ):
        assert text in printed
    assert figure.read_bytes().startswith(b"\x89PNG")
