"""Memory of deploying layers of Llama-2-7B's shape from a file, without the model in memory.

The file is sparse: all its weights are 0, so that it takes no space on the disk. The model is made
on the meta device and deployed in bfloat16 from the file, in a process of its own. It is programmed
and aged by a day, and one pass of four tokens runs on the tiles. Printed is the largest anonymous
memory of the process, which, unlike pages of the file, the system cannot release.

    python benchmarks/streaming.py --layers 5

Five of the 32 layers have 1.0 billion weights.
"""

import argparse
import json
import struct
import tempfile
import threading
from pathlib import Path

import torch
from accelerate import init_empty_weights
from peers import apart, machine, markdown, status
from transformers import LlamaConfig, LlamaForCausalLM

from analog_grasp import deploy

SHAPE = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
MIB = 2**20
HEADER = ("layers", "weights", "on tiles, MiB", "largest layer, MiB", "memory, MiB", "excess, MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 5], help="layers of the model")
    parser.add_argument("--device", default="pcm-hermes-2", help="the device card")
    parser.add_argument("--quick", action="store_true", help="a tiny shape")
    asked = parser.parse_args()
    print(f"{machine()}\n")
    rows = []
    for layers in asked.layers:
        shape = (SMALL if asked.quick else SHAPE) | {"num_hidden_layers": layers}
        with tempfile.TemporaryDirectory() as folder:
            write_sparse(shape, Path(folder) / "model.safetensors")
            weights, largest, memory = apart(deployed, shape, folder, asked.device)
        figures = (2 * weights, 2 * largest, memory, memory - 2 * weights)
        rows.append((str(layers), f"{weights:,}", *(f"{n / MIB:,.0f}" for n in figures)))
    print(markdown(HEADER, rows))


def empty(shape: dict[str, int]) -> LlamaForCausalLM:
    """Return the model in bfloat16 on the meta device."""
    with init_empty_weights():
        config = LlamaConfig(**shape, vocab_size=1000)
        return LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)


def write_sparse(shape: dict[str, int], path: Path) -> None:
    """Write the weights of a model, all 0, as a sparse safetensors file."""
    header, end = {}, 0
    for name, tensor in empty(shape).state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@torch.no_grad()
def deployed(shape: dict[str, int], folder: str, device: str) -> tuple[int, int, int]:
    """Return the weights on tiles, those of the largest layer, and the memory in bytes."""
    before, memory, done = status("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            memory.append(status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    chip = deploy(empty(shape), device, weights=folder, inplace=True, dtype=torch.bfloat16)
    chip.program(0).drift_to("1d")
    assert chip.model(input_ids=torch.arange(4)[None]).logits.isfinite().all()
    done.set()
    watcher.join()
    sizes = [layer.cells for layer in chip.layers.values()]
    return sum(sizes), max(sizes), max(memory) - before


if __name__ == "__main__":
    main()
