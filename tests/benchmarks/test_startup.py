"""The benchmark of the start-up time."""

import sys

import startup


def test_each_command_has_a_row(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["startup.py", "--repeats", "1", "--commands", "adapters"])
    startup.main()
    printed = capsys.readouterr().out
    for row in ("| import pydantic, typer, rich |", "| analog-grasp adapters |"):
        assert row in printed
