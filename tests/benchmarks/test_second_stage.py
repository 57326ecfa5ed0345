"""The search of the two stages of training on a small model."""

import sys

import pytest
import second_stage


def test_each_setting_is_trained_and_measured_once(bert_folder, tmp_path, monkeypatch, capsys):
    given = {"model": str(bert_folder), "groups": 4, "devices": ("ideal", "pcm-hermes-2")}
    resolved = second_stage.resolve
    monkeypatch.setattr(second_stage, "resolve", lambda values: resolved(values | given))
    asked = ["--epochs", "0.1", "--injection", "0.04", "--steps", "0", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["second_stage.py", *asked])
    second_stage.main()
    printed = capsys.readouterr().out
    stages = [row.split("|")[1:5] for row in printed.splitlines()[-2:]]
    assert [[cell.strip() for cell in row] for row in stages] == [
        ["0.1", "0.04", "0", "0"],
        ["0.1", "0.04", "2", "0"],
    ]
    monkeypatch.setattr(second_stage, "train", lambda *_: pytest.fail("measured again"))
    second_stage.main()
    assert capsys.readouterr().out == printed
