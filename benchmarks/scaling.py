"""Scaling of the time and memory of analog forward passes.

One of five quantities is varied at a time: measurements, width of the model, length of the
sequence, side of a tile, threads. Models have random weights and the converters and noise of
pcm-hermes-2. The exponent of the time is fitted by least squares in log-log, with its standard
error; the peak memory is that of a process that does the same once, in excess of the loaded
modules.

    python benchmarks/scaling.py --figure scaling.png

About five minutes on 2 cores.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from peers import interleaved, machine, markdown, peak_memory
from scipy.stats import linregress
from transformers import BertConfig, BertModel

from analog_grasp import DeviceCard, deploy
from analog_grasp.report.figures import STYLE

LAYERS, HEADS, BATCH = 2, 4, 16
LABELS = {
    "cells": "measurements",
    "width": "weights on tiles",
    "length": "tokens per sequence",
    "tile": "side of a tile",
    "threads": "threads",
}


class Work(NamedTuple):
    """The computation: per measurement, drift to another time and one forward pass.

    Attributes:
        cells: Number of measurements; 0 for one forward pass.
        width: Width of the model; the weights are proportional to its square.
        length: Tokens per sequence.
        tile: Rows and columns of a tile.
        threads: Threads of torch and of the kernels.
    """

    cells: int = 0
    width: int = 256
    length: int = 64
    tile: int = 256
    threads: int = 1


class Axis(NamedTuple):
    """The measurements along an axis.

    Attributes:
        name: The field of `Work` that is varied.
        sizes: Values on the x axis, ``(n,)``.
        seconds: Of each call, ``(n, repeats)``.
        memory: Peak in excess of the loaded modules, MiB, ``(n,)``.
    """

    name: str
    sizes: np.ndarray
    seconds: np.ndarray
    memory: np.ndarray

    @property
    def median(self) -> np.ndarray:
        return np.median(self.seconds, axis=1)

    def fit(self) -> tuple[float, float, float]:
        """Return exponent, its standard error and the seconds at size 1, fitted in log-log."""
        sizes = np.repeat(self.sizes, self.seconds.shape[1])
        line = linregress(np.log(sizes), np.log(self.seconds.ravel()))
        return line.slope, line.stderr, float(np.exp(line.intercept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="PNG file for the figure")
    parser.add_argument("--quick", action="store_true", help="a small model, two calls of each")
    asked = parser.parse_args()
    start = Work(threads=torch.get_num_threads())
    if asked.quick:
        start = start._replace(width=32, length=16, tile=32)
    found = [
        measured(start, name, sizes, 2 if asked.quick else asked.repeats)
        for name, sizes in axes(start).items()
    ]
    print(f"{machine()}\n\n{table(found)}")
    if asked.figure:
        draw(found, asked.figure)


def axes(start: Work) -> dict[str, list[int]]:
    """Return the values along each axis, each twice the previous one."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cells": [1, 2, 4, 8],
        "width": [start.width * 2**i // 2 for i in range(4)],
        "length": [start.length * 2**i // 4 for i in range(5)],
        "tile": [start.tile * 2**i // 4 for i in range(4)],
        "threads": [2**i for i in range(cores.bit_length())],
    }


def measured(start: Work, name: str, sizes: list[int], repeats: int) -> Axis:
    works = [start._replace(**{name: size}) for size in sizes]
    seconds = interleaved({str(work): prepared(work) for work in works}, repeats)
    memory = [peak_memory(once, work).added / 2**20 for work in works]
    # A layer has four projections of width x width, and two of four times that.
    weights = [LAYERS * 12 * size**2 for size in sizes]
    plotted = weights if name == "width" else sizes
    return Axis(name, np.array(plotted), np.array([*seconds.values()]), np.array(memory))


def prepared(work: Work) -> Callable[[], None]:
    """Return a function that does the work on a model on a programmed chip."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=work.width,
        intermediate_size=4 * work.width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
    )
    card = DeviceCard.load("pcm-hermes-2").with_(tile_size=work.tile)
    chip = deploy(BertModel(config, add_pooling_layer=False), card).program(seed=0)
    tokens = torch.randint(100, (BATCH, work.length))

    def compute() -> None:
        torch.set_num_threads(work.threads)
        with torch.inference_mode():
            for cell in range(work.cells or 1):
                if work.cells:
                    chip.drift_to(3600.0 * (cell + 1))
                chip.model(tokens)

    return compute


def once(work: Work) -> None:
    prepared(work)()


def table(found: Sequence[Axis]) -> str:
    """Return one row per axis: smallest and largest values, and the exponent."""
    rows = []
    for axis in found:
        exponent, error, _ = axis.fit()
        pairs = (axis.sizes, axis.median, axis.memory)
        ends = (f"{pair[0]:.4g} to {pair[-1]:.4g}" for pair in pairs)
        rows.append((LABELS[axis.name], *ends, f"{exponent:.2f} ± {error:.2f}"))
    header = ("", "from, to", "seconds", "peak memory, MiB", "exponent of seconds")
    return f"**Scaling of analog forward passes**\n\n{markdown(header, rows)}"


def draw(found: Sequence[Axis], path: Path) -> None:
    """Draw the seconds with their fit and the peak memory, one column per axis."""
    with plt.rc_context(fname=STYLE):
        figure, panels = plt.subplots(
            2, len(found), figsize=(2.8 * len(found), 5), sharex="col", layout="constrained"
        )
        for axis, (above, below) in zip(found, panels.T, strict=True):
            exponent, error, first = axis.fit()
            above.loglog(axis.sizes, axis.seconds, ".", color="C0", alpha=0.5)
            above.loglog(axis.sizes, first * axis.sizes**exponent, color="C0")
            above.set_title(f"exponent {exponent:.2f} ± {error:.2f}")
            above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            above.yaxis.set_major_formatter("{x:g}")
            above.yaxis.set_minor_formatter(NullFormatter())
            below.semilogx(axis.sizes, axis.memory, "o-", color="C1")
            below.set_ylim(0, 1.1 * max(axis.memory))
            below.set_xticks(axis.sizes, map(EngFormatter(places=0, sep=""), axis.sizes))
            below.minorticks_off()
            below.set_xlabel(LABELS[axis.name])
        panels[0, 0].set_ylabel("seconds")
        panels[1, 0].set_ylabel("peak memory (MiB)")
        figure.savefig(path, dpi=150)
        plt.close(figure)


if __name__ == "__main__":
    main()
