"""The benchmark of a whole study on a small model."""

import sys
from pathlib import Path

import peers
import pytest
import sweep
from torch import nn

from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.trained_adapters import load_adapter
from analog_grasp.tasks import load_task


@pytest.mark.slow
def test_tables_are_printed(bert_folder, monkeypatch, capsys):
    # In this process: to load all modules into another takes longer than the rest.
    study = ["--adapters", "grasp", "bitfit", "--chips", "2"]
    memory = peers.Memory(2**20, 3 * 2**20)
    monkeypatch.setattr(sweep, "peak_memory", lambda work, *args: (work(*args), memory)[1])
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--quick", "--model", str(bert_folder), *study])
    sweep.main()
    printed = capsys.readouterr().out
    assert "Seconds per measurement and in total, reviews" in printed
    assert "| pcm-hermes-2 |" in printed
    assert "| all 56 measurements, extrapolated |" in printed
    assert "| in excess of the loaded modules | 2 | 2 | 1.00 |" in printed


def test_loop_has_the_same_tiles(bert_folder, tmp_path):
    settings = StudyConfig().replace(model=str(bert_folder))
    folder = Path(sweep.saved(settings, ["grasp"], tmp_path)[0])
    model = load_adapter(folder, settings.model.name, load_task("reviews"))
    for device in sweep.DEVICES:
        analog = sweep.on_tiles(model, device)
        theirs = {
            path: sum(1 for _ in module.analog_tiles())
            for path, module in analog.named_modules()
            if type(module).__name__ == "AnalogLinear"
        }
        card = DeviceCard.load(device)
        layers = dict(frozen_layers(model))
        ours = {path: CrossbarLinear(layer, card, path).tiles for path, layer in layers.items()}
        assert theirs == ours
        assert isinstance(model.get_submodule(next(iter(layers))), nn.Linear)
