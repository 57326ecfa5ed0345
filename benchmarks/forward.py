"""Time of an analog forward pass, compared with the digital one and with aihwkit's.

The peers take turns on the same batches: the digital model, aihwkit's torch and compiled tiles,
aihwkit-lightning if it is installed, and this package ("ours"). 8-bit converters, output noise
0.04, inputs scaled by their maximum, iterative bound management, tiles of 512 x 512, column-wise
scaling, digital bias. No programming noise and no drift, which take no time in a forward pass.
"Fast" rounds the weights to 8 bits (`--precision fast`).

    python benchmarks/forward.py --data-dir path/to/glue     # MiniLM over SST-2's 872 sentences
    python benchmarks/forward.py --shapes                    # two or three layers of larger models
    python benchmarks/forward.py --model path/to/model --size 64 128 --peers digital ours
    python benchmarks/forward.py --shapes --gpu              # on a GPU

"aihwkit-lightning" has no bound management; fixed input ranges are the same for both packages.
Prints Markdown tables; a few minutes each on 2 cores.
"""

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit_peer import configured, converted, digital_layers, with_linear_layers
from peers import interleaved, machine, ratio_table
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)

from analog_grasp import DeviceCard, deploy, load_task
from analog_grasp.crossbar.linear import CrossbarLinear
from analog_grasp.tasks import tokenizer_for
from analog_grasp.tasks.models import load_base_model

BATCH = 64
RANGE = 4.0
"""The fixed input range; its value does not affect the time."""
# Few layers of each: the time is proportional to their number.
SHAPES: dict[str, Callable[[], nn.Module]] = {
    "RoBERTa-base": lambda: RobertaModel(RobertaConfig(num_hidden_layers=2, vocab_size=1000)),
    "RoBERTa-large": lambda: RobertaModel(
        RobertaConfig(
            num_hidden_layers=2,
            vocab_size=1000,
            hidden_size=1024,
            num_attention_heads=16,
            intermediate_size=4096,
        )
    ),
    "GPT-2 Medium": lambda: with_linear_layers(
        GPT2Model(GPT2Config(n_layer=2, n_embd=1024, n_head=16, vocab_size=1000))
    ),
    "SmolLM2-135M": lambda: LlamaModel(
        LlamaConfig(
            num_hidden_layers=3,
            vocab_size=1000,
            hidden_size=576,
            intermediate_size=1536,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
    ),
}
SIZES = ((1, 16), (1, 128), (64, 16), (64, 128))
# Generation reads few vectors, a prompt many.
SIZES_OF = {"SmolLM2-135M": ((1, 1), (1, 512))}

type Batch = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="the folder with SST-2/; else `reviews`")
    parser.add_argument(
        "--shapes", nargs="*", choices=SHAPES, help="larger models, random weights: all, or these"
    )
    parser.add_argument("--model", help="Hub id or folder, read with random tokens")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 128), help="batch and sequence")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[*PEERS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--busy", action="store_true", help="CPU seconds of one thread, as other work is running"
    )
    parser.add_argument("--gpu", action="store_true", help="on a GPU, without the compiled tile")
    parser.add_argument("--quick", action="store_true", help="a small model, once")
    asked = parser.parse_args()
    clock = time.perf_counter
    if asked.busy:
        torch.set_num_threads(1)
        clock = time.process_time
    names = [name for name in asked.peers if not (asked.gpu and name == COMPILED)]
    device = torch.device("cuda" if asked.gpu else "cpu")
    measured = partial(table, names=names, repeats=asked.repeats, clock=clock, device=device)
    print(machine(), "\n")
    if asked.quick:
        tiny = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
        print(measured("tiny BERT", BertModel(tiny), [tokens(4, 8)]))
    elif asked.model:
        size, length = asked.size
        title = f"{Path(asked.model).name}, batch {size}, sequence {length}"
        model = AutoModel.from_pretrained(asked.model, dtype=torch.float32)
        print(measured(title, model, [tokens(size, length)]))
    elif asked.shapes is not None:
        for name in asked.shapes or SHAPES:
            for size, length in SIZES_OF.get(name, SIZES):
                title = f"{name}, batch {size}, sequence {length}"
                print(measured(title, SHAPES[name](), [tokens(size, length)]), "\n")
    else:
        model, batches = minilm(asked.data_dir)
        print(measured("MiniLM, SST-2's validation set", model, batches))


def minilm(data_dir: Path | None) -> tuple[nn.Module, list[Batch]]:
    """Return the built-in model without its head, and validation batches sorted by length."""
    task = load_task("glue/sst2", data_dir) if data_dir else load_task("reviews")
    model = load_base_model(task)
    tokenizer = tokenizer_for(model)
    texts = sorted(task.validation["text"], key=lambda text: len(tokenizer(text)["input_ids"]))
    batches = [
        dict(tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt"))
        for start in range(0, len(texts), BATCH)
    ]
    return model.base_model, batches


def tokens(size: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(10, 900, (size, length), generator=generator)}


def table(
    title: str,
    model: nn.Module,
    batches: Sequence[Batch],
    names: Sequence[str],
    repeats: int,
    clock: Callable[[], float],
    device: torch.device,
) -> str:
    """Return the table of the seconds of every peer and their ratio to the digital model."""
    on_device = [{name: x.to(device) for name, x in batch.items()} for batch in batches]

    def reader(peer: nn.Module) -> Callable[[], None]:
        # As tasks evaluate.
        @torch.no_grad()
        def read() -> None:
            for batch in on_device:
                peer(**batch)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return read

    card = DeviceCard.load("ideal").with_(dac_bits=8, adc_bits=8, output_noise=0.04, tile_size=512)
    model.eval()
    model.to(device)
    readers = {name: reader(PEERS[name](model, card).to(device).eval()) for name in names}
    seconds = interleaved(readers, repeats, clock=clock)
    return ratio_table(title, seconds, "digital")


def ours(
    model: nn.Module,
    card: DeviceCard,
    input_range: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    deployment = deploy(model, card, dtype=dtype)
    deployment.program(0)
    for module in deployment.model.modules():
        if isinstance(module, CrossbarLinear):
            module.input_range = input_range
    return deployment.model


def lightning(model: nn.Module, dynamic: bool) -> nn.Module:
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig as Configuration

    config = Configuration()
    config.mapping.max_input_size = 512
    config.forward.inp_res = config.forward.out_res = 2**8 - 2
    config.forward.out_noise, config.forward.out_bound = 0.04, 12.0
    config.forward.out_noise_per_channel = True
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.dynamic = dynamic
    config.pre_post.input_range.learn_input_range = False
    config.pre_post.input_range.init_value = RANGE
    config.pre_post.input_range.init_from_data = 0
    return convert_to_analog(copy.deepcopy(model), config, exclude_modules=digital_layers(model))


COMPILED = "aihwkit compiled tile"
PEERS: dict[str, Callable[[nn.Module, DeviceCard], nn.Module]] = {
    "digital": lambda model, card: model,
    "aihwkit torch tile": lambda model, card: converted(
        model, configured(TorchInferenceRPUConfig(), card)
    ),
    COMPILED: lambda model, card: converted(model, configured(InferenceRPUConfig(), card)),
    "ours": ours,
    "ours, fixed ranges": lambda model, card: ours(model, card, RANGE),
    "ours, fast": lambda model, card: ours(model, card, dtype=torch.bfloat16),
}
if importlib.util.find_spec("aihwkit_lightning"):
    PEERS |= {
        "aihwkit-lightning, fixed ranges": lambda model, card: lightning(model, dynamic=False),
        "aihwkit-lightning, scaled by maximum": lambda model, card: lightning(model, dynamic=True),
    }


if __name__ == "__main__":
    main()
