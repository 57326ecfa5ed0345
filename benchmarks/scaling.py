"""How does the cost of analog forward passes grow with what is asked?

Along each of five axes, the others held: the cells of a study, the width of the model, the length
of the sequence, the side of a tile and the threads. Models have random weights, and are read
through the converters and the noise of pcm-hermes-2. For each axis the exponent of seconds is
fitted by least squares in log-log, with its standard error; beside it stands the peak memory,
beyond the loaded modules, of a process that does the same once.

    python benchmarks/scaling.py --figure docs/images/performance-scaling.png

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
from analog_grasp.report.drawing import STYLE

LAYERS, HEADS, BATCH = 2, 4, 16
LABELS = {
    "cells": "cells",
    "width": "weights on tiles",
    "length": "tokens a sequence",
    "tile": "side of a tile",
    "threads": "threads",
}


class Work(NamedTuple):
    """What is computed: for each cell, drift to a time of its own and a forward pass.

    Attributes:
        cells: 0 for a forward pass alone.
        width: Of the model, whose weights grow as its square.
        length: Tokens a sequence.
        tile: Rows and columns of a tile.
        threads: Torch's, which the kernels follow.
    """

    cells: int = 0
    width: int = 256
    length: int = 64
    tile: int = 256
    threads: int = 1


class Axis(NamedTuple):
    """What was measured along an axis.

    Attributes:
        name: The field of `Work` that grows.
        sizes: What it is plotted against, ``(n,)``.
        seconds: Of each call, ``(n, repeats)``.
        memory: Peak beyond the loaded modules, MiB, ``(n,)``.
    """

    name: str
    sizes: np.ndarray
    seconds: np.ndarray
    memory: np.ndarray

    @property
    def median(self) -> np.ndarray:
        return np.median(self.seconds, axis=1)

    def fit(self) -> tuple[float, float, float]:
        """Exponent, its standard error, and the seconds at size 1, of all calls in log-log."""
        sizes = np.repeat(self.sizes, self.seconds.shape[1])
        line = linregress(np.log(sizes), np.log(self.seconds.ravel()))
        return line.slope, line.stderr, float(np.exp(line.intercept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="where to draw the curves, as PNG")
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
    """The values along each axis, each twice the one before."""
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
    """A model on a programmed chip; a call computes the work."""
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
    """A row an axis: from its smallest to its largest, and the exponent between them."""
    rows = []
    for axis in found:
        exponent, error, _ = axis.fit()
        pairs = (axis.sizes, axis.median, axis.memory)
        ends = (f"{pair[0]:.4g} to {pair[-1]:.4g}" for pair in pairs)
        rows.append((LABELS[axis.name], *ends, f"{exponent:.2f} ± {error:.2f}"))
    header = ("", "from, to", "seconds", "peak memory, MiB", "exponent of seconds")
    return f"**Cost of analog forward passes**\n\n{markdown(header, rows)}"


def draw(found: Sequence[Axis], path: Path) -> None:
    """Seconds with their fit above, peak memory below, a column an axis."""
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
