"""Memory of deploying GPT-2 Medium's shape, compared with aihwkit.

Random weights of the published configuration, 303 million of them on tiles. Each variant runs in a
separate process, which builds the model or streams it from its file, deploys it, programs it and
ages it by one day. The result is the peak resident memory in excess of the loaded modules; pages of
a model's file count, although the system can release them.

    python benchmarks/memory.py --repeats 1
    python benchmarks/memory.py --quick

About a quarter of an hour per repeat on 2 cores, most of it aihwkit's, and 15 GB of memory.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit_peer import with_linear_layers
from parameters import GPT2_MEDIUM
from peers import machine, markdown, peak_memory
from program_drift import DAY, aged_aihwkit
from transformers import GPT2Config, GPT2LMHeadModel

from analog_grasp import DeviceCard, deploy

CARD = "pcm-nandakumar2019"
TINY = {"n_embd": 256, "n_layer": 2, "n_head": 2, "vocab_size": 500, "n_positions": 64}
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
MIB = 2**20
HEADER = ("", "peak, MiB", "× aihwkit", "in excess of the model, MiB", "× aihwkit")
REFERENCE = "aihwkit, torch tile"
ALONE = "the digital model alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and fewer variants")
    parser.add_argument("--repeats", type=int, default=3, help="processes per variant")
    asked = parser.parse_args()
    shape = TINY if asked.quick else GPT2_MEDIUM
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        gpt2(shape).save_pretrained(folder)
        gc.collect()
        variants = variants_of(shape, folder)
        if asked.quick:
            variants = {
                name: variants[name] for name in (ALONE, REFERENCE, "ours, bfloat16 from the file")
            }
        peaks = {name: [] for name in variants}
        for _ in range(1 if asked.quick else asked.repeats):
            for name, (function, *arguments) in variants.items():
                peaks[name].append(peak_memory(function, *arguments).added)
    print(table({name: sorted(added) for name, added in peaks.items()}))


def variants_of(shape: dict[str, int], folder: str) -> dict[str, tuple[Callable[..., object], ...]]:
    """Return a function and its arguments by variant."""
    return {
        ALONE: (gpt2, shape),
        REFERENCE: (on_aihwkit, shape, TorchInferenceRPUConfig),
        "aihwkit, compiled tile": (on_aihwkit, shape, InferenceRPUConfig),
        "ours, float32": (ours, shape, FLOAT32),
        "ours, bfloat16": (ours, shape, BFLOAT16),
        "ours, float32 from the file": (ours_from_file, shape, FLOAT32, folder),
        "ours, bfloat16 from the file": (ours_from_file, shape, BFLOAT16, folder),
    }


def gpt2(shape: dict[str, int]) -> GPT2LMHeadModel:
    """Return the model with random weights, without gradients."""
    return GPT2LMHeadModel(GPT2Config(**shape)).eval().requires_grad_(False)


def ours(shape: dict[str, int], dtype: torch.dtype) -> None:
    deploy(gpt2(shape), DeviceCard.load(CARD), dtype=dtype).program(seed=0).drift_to(DAY)


def ours_from_file(shape: dict[str, int], dtype: torch.dtype, folder: str) -> None:
    with init_empty_weights():
        model = gpt2(shape)
    chip = deploy(model, DeviceCard.load(CARD), dtype=dtype, weights=Path(folder))
    chip.program(seed=0).drift_to(DAY)


def on_aihwkit(shape: dict[str, int], config: type) -> None:
    aged_aihwkit(with_linear_layers(gpt2(shape)), DeviceCard.load(CARD), config)


def table(peaks: dict[str, list[int]]) -> str:
    """Return the table of total peaks and of those in excess of the model, relative to aihwkit."""
    medians = {name: added[len(added) // 2] for name, added in peaks.items()}
    model, theirs = medians[ALONE], medians[REFERENCE]
    rows = []
    for name, added in peaks.items():
        least, middle, most = (round(n / MIB) for n in (added[0], medians[name], added[-1]))
        total = f"{middle:,} ({least:,} to {most:,})"
        beyond = medians[name] - model
        parts = (f"{medians[name] / theirs:.3f}", f"{beyond / MIB:,.0f}")
        rows.append((name, total, *parts, f"{beyond / (theirs - model):.3f}"))
    return markdown(HEADER, rows)


if __name__ == "__main__":
    main()
