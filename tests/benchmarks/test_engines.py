"""The benchmark of the engines on a small study."""

import sys
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
]


def test_engines_are_timed_cold_and_warm(bert_folder, monkeypatch, capsys):
    import engines

    monkeypatch.setattr(sys, "argv", ["engines.py", "--quick", "--model", str(bert_folder)])
    engines.main()
    printed = capsys.readouterr().out
    for start in ("cold", "warm"):
        assert f"**8 cells, 2 workers, {start} start**" in printed
    assert printed.count("| local | ") == printed.count("| ray | ") == 2
