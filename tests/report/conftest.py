"""A small comparison with made-up scores: two adapters, two devices, three times, four chips."""

import random
from itertools import product

import pytest

from analog_grasp.study.records import AdapterRecord, LayerRecord, Measurement


def made_up(adapters=("grasp", "stochgrasp"), devices=("pcm", "rram"), times=(0.0, 20.0, 86400.0)):
    draw = random.Random(0)
    return [
        Measurement("reviews", "accuracy", adapter, 0, "digital", device, time, i, i, value)
        for adapter, device, time, i in product(adapters, devices, times, range(4))
        for value in [draw.uniform(0.7, 0.8)]
    ]


def records_of(adapters=("grasp", "stochgrasp")):
    return [
        AdapterRecord(name, "reviews", 1152, 770, {"accuracy": 0.8675}, 12.5, name, "f")
        for name in adapters
    ]


@pytest.fixture
def measurements():
    return made_up()


@pytest.fixture
def records():
    return records_of()


@pytest.fixture
def layers():
    """A digital layer, and two on a chip per device whose weight error doubles in a day."""
    return [
        LayerRecord(device, 0, seconds, name, tiles, cells, use, error * (2 if seconds else 1))
        for device, seconds in product(("pcm", "rram"), (0.0, 86400.0))
        for name, tiles, cells, use, error in (
            ("query", 2, 100, 0.5, 0.03),
            ("dense", 3, 300, 0.5, 0.05),
            ("embeddings", 0, 600, 0.0, 0.0),
        )
    ]


@pytest.fixture
def make():
    """Returns measurements and records of the adapters named."""
    return lambda **columns: (made_up(**columns), records_of(columns.get("adapters", ("grasp",))))
