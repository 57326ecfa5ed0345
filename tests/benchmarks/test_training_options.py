"""The comparison of options of training on a small model."""

import sys

import pytest
import training_options

from analog_grasp.study.config import flat

CHOSEN = ["GRASP", "form normalize", "the same, standard deviations x 1.5"]


def test_every_option_is_a_valid_request(monkeypatch, tmp_path, capsys):
    requested = []
    scores = {"digital": 0.9} | dict.fromkeys(training_options.DEVICES, 0.8)

    def trained(settings, task, steps):
        requested.append(settings)
        return {str(count): scores for count in steps}

    monkeypatch.setattr(training_options, "train", trained)
    monkeypatch.setattr(sys, "argv", ["training_options.py", "--out", str(tmp_path)])
    training_options.main()
    assert len({str(flat(settings)) for settings in requested}) == len(training_options.OPTIONS)
    assert capsys.readouterr().out.count("| 90.0 | 80.0 |") == 2 * len(training_options.OPTIONS)


def test_options_are_trained_and_measured_once(bert_folder, tmp_path, monkeypatch, capsys):
    given = {"model": str(bert_folder), "groups": 4}
    resolved = training_options.resolve
    monkeypatch.setattr(training_options, "resolve", lambda values: resolved(values | given))
    monkeypatch.setattr(training_options, "STEPS", 2)
    asked = ["--epochs", "0.1", "--out", str(tmp_path), "--options", *CHOSEN]
    monkeypatch.setattr(sys, "argv", ["training_options.py", *asked])
    training_options.main()
    printed = capsys.readouterr().out
    stages = [[cell.strip() for cell in row.split("|")[1:4]] for row in printed.splitlines()[-6:]]
    assert stages == [[option, "0", steps] for option in CHOSEN for steps in ("0", "2")]
    monkeypatch.setattr(training_options, "train", lambda *_: pytest.fail("measured again"))
    training_options.main()
    assert capsys.readouterr().out == printed
