"""Time of a training step with injected noise, compared with plain torch and aihwkit.

    python benchmarks/training.py --data-dir path/to/glue

MiniLM with GRASP (K = 16) on every linear layer, SST-2 at batch size 32, noise of 4 % of each
column's largest weight drawn for all frozen weights in every step. Without a folder, the built-in
task is used. About five minutes on 2 cores.

Plain torch: the adapter in hooks, noise by `torch.randn` added to every weight before the step and
subtracted afterwards, sentences in random order. aihwkit: the layers on its torch tiles with the
weight modifier ADD_NORMAL. aihwkit-lightning, if it is installed: its hardware-aware training with
the same noise per column. All but the last are also measured with batches of similar length, as
this package forms them, to separate the effect of the order.
"""

import argparse
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import (
    BoundManagementType,
    NoiseManagementType,
    WeightModifierType,
)
from peers import interleaved, machine, markdown
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.trainer_pt_utils import get_length_grouped_indices

from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.adapters.layer import group_index
from analog_grasp.adapters.registry import adapt
from analog_grasp.tasks import Task, load_base_model, load_task, tokenizer_for
from analog_grasp.training import ConverterLoop, WeightNoise

BATCH, GROUPS, NOISE, CARD = 32, 16, 0.04, "pcm-hermes-2"
PLAIN = "plain torch"

Batch = dict[str, Tensor]
Step = Callable[[Batch], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="the folder with SST-2/")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="of each, in one repeat")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two steps")
    asked = parser.parse_args()
    repeats, steps = (1, 2) if asked.quick else (asked.repeats, asked.steps)
    task = load_task("glue/sst2" if asked.data_dir else "reviews", asked.data_dir)
    task = task.subset(train=min(len(task.train), 32 * BATCH if asked.quick else 200 * BATCH))

    def fresh() -> PreTrainedModel:
        return pretrained(task, asked.quick)

    shuffled, grouped = batches(task, tokenizer_for(fresh()), steps)
    plain, ours, through = plain_step(fresh()), our_step(fresh()), our_step(fresh(), CARD)
    analog, converted = aihwkit_step(fresh(), exact=True), aihwkit_step(fresh(), exact=False)
    peers = {
        PLAIN: lambda: run(plain, shuffled),
        f"{PLAIN}, by length": lambda: run(plain, grouped),
        "ours": lambda: run(ours, grouped),
        "aihwkit": lambda: run(analog, shuffled),
        "aihwkit, by length": lambda: run(analog, grouped),
        "ours, through converters": lambda: run(through, grouped),
        "aihwkit, through converters": lambda: run(converted, shuffled),
    }
    if importlib.util.find_spec("aihwkit_lightning"):
        lightning = lightning_step(fresh(), exact=True)
        light_converted = lightning_step(fresh(), exact=False)
        peers |= {
            "aihwkit-lightning, by length": lambda: run(lightning, grouped),
            "aihwkit-lightning, through converters, by length": lambda: run(
                light_converted, grouped
            ),
        }
    seconds = interleaved(peers, repeats)
    print(table(seconds, steps * BATCH))
    for name, chosen in (("random order", shuffled), ("by length", grouped)):
        tokens = np.mean([batch["input_ids"].numel() for batch in chosen])
        print(f"\nA batch in {name} has {tokens:,.0f} tokens, padding among them.", end="")
    print(f"\n\n{machine()}")


def run(step: Step, chosen: list[Batch]) -> None:
    for batch in chosen:
        step(batch)


def table(seconds: dict[str, list[float]], examples: int) -> str:
    """Return the table of examples per second and their ratio to plain torch."""
    rows = []
    for name, calls in seconds.items():
        speed = examples / np.asarray(calls)
        ratio = np.asarray(seconds[PLAIN]) / np.asarray(calls)
        medians = f"{np.median(speed):.1f}", f"{np.median(ratio):.2f}"
        rows.append((name, medians[0], quartiles(speed), medians[1], quartiles(ratio)))
    header = ("", "examples per second", "quartiles", f"× {PLAIN}", "quartiles by pairs")
    return markdown(header, rows)


def quartiles(values: np.ndarray) -> str:
    low, high = np.quantile(values, (0.25, 0.75))
    return f"{low:.3g} to {high:.3g}"


def batches(task: Task, tokenizer: Any, count: int) -> tuple[list[Batch], list[Batch]]:
    """Return as many batches in random order as in the order of training, evenly spaced."""
    rows = task.encode("train", tokenizer)
    lengths = [len(ids) for ids in rows["input_ids"]]
    generator = torch.Generator().manual_seed(0)
    collate = task.collator(tokenizer)
    starts = np.linspace(0, len(rows) - BATCH, count).astype(int)
    shuffled, grouped = (
        [collate([rows[i] for i in order[start : start + BATCH]]) for start in starts.tolist()]
        for order in (
            torch.randperm(len(rows), generator=generator).tolist(),
            get_length_grouped_indices(lengths, BATCH, generator=generator),
        )
    )
    return shuffled, grouped


def pretrained(task: Task, quick: bool) -> PreTrainedModel:
    """Return MiniLM, or a tiny model with its vocabulary; without dropout."""
    model = load_base_model(task)
    if quick:
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        config = BertConfig(num_hidden_layers=1, vocab_size=model.config.vocab_size, **sizes)
        config._name_or_path = model.config._name_or_path
        model = BertForSequenceClassification(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def our_step(model: PreTrainedModel, converters: str | None = None) -> Step:
    """Return the training step of `analog_grasp.train`."""
    adapted = adapt(model, "grasp", groups=GROUPS, target_modules="all-linear").train()
    noise = WeightNoise(adapted, NOISE, reduced=converters is None)
    converted = ConverterLoop(adapted, converters).applied if converters else nullcontext
    optimizer = optimizer_of(adapted)

    def step(batch: Batch) -> None:
        with converted(), noise.applied():
            adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(model: PreTrainedModel) -> Step:
    """Return the same step in plain torch."""
    layers = [layer for _, layer in frozen_layers(model)]
    modulate_inputs(model, layers)
    weights = [layer.weight for layer in layers]
    stds = [NOISE * w.abs().amax(dim=1, keepdim=True) for w in weights]
    optimizer = optimizer_of(model)

    def step(batch: Batch) -> None:
        with torch.no_grad():
            kept = [w.clone() for w in weights]
            for weight, std in zip(weights, stds, strict=True):
                weight += std * torch.randn(weight.shape)
        model(**batch).loss.backward()
        with torch.no_grad():
            for weight, clean in zip(weights, kept, strict=True):
                weight.copy_(clean)
        optimizer.step()
        optimizer.zero_grad()

    return step


def aihwkit_step(model: PreTrainedModel, exact: bool) -> Step:
    """Return the same step on aihwkit's torch tiles, with its weight modifier and converters."""
    config = TorchInferenceRPUConfig()
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = True
    config.modifier.type = WeightModifierType.ADD_NORMAL
    config.modifier.std_dev = NOISE
    config.forward.is_perfect = exact
    config.forward.noise_management = NoiseManagementType.ABS_MAX
    config.forward.bound_management = BoundManagementType.ITERATIVE
    config.forward.out_noise = 0.04
    config.forward.inp_res, config.forward.out_res = 1 / (2**8 - 2), 1 / (2**8 - 2)
    return converted_step(
        convert_to_analog(model, config, exclude_modules=["classifier"], verbose=False),
        AnalogLinear,
    )


def lightning_step(model: PreTrainedModel, exact: bool) -> Step:
    """Return the step of aihwkit-lightning's hardware-aware training."""
    from aihwkit_lightning.nn import AnalogLinear as LightningLinear
    from aihwkit_lightning.nn.conversion import convert_to_analog as convert_to_lightning
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig as Configuration
    from aihwkit_lightning.simulator.configs import WeightNoiseInjectionType

    config = Configuration()
    config.mapping.max_input_size = 512
    config.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
    config.modifier.std_dev = NOISE
    if not exact:
        config.forward.inp_res = config.forward.out_res = 2**8 - 2
        config.forward.out_noise, config.forward.out_bound = 0.04, 12.0
        config.forward.out_noise_per_channel = True
        config.pre_post.input_range.enable = config.pre_post.input_range.dynamic = True
        config.pre_post.input_range.learn_input_range = False
        config.pre_post.input_range.init_from_data = 0
    return converted_step(
        convert_to_lightning(model, config, exclude_modules=["classifier"]), LightningLinear
    )


def converted_step(analog: nn.Module, kind: type[nn.Module]) -> Step:
    """Return the step of a converted model, whose layers draw their noise in the forward pass."""
    analog.train()
    modulate_inputs(analog, [m for m in analog.modules() if isinstance(m, kind)])
    optimizer = optimizer_of(analog)

    def step(batch: Batch) -> None:
        analog(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def modulate_inputs(model: nn.Module, layers: list[nn.Module]) -> None:
    """Add GRASP with hooks that scale and shift the inputs of frozen layers."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for i, layer in enumerate(layers):
        group = group_index(layer.in_features, GROUPS, "contiguous")
        for name, start in (("scale", 1.0), ("shift", 0.0)):
            model.register_parameter(f"{name}{i}", nn.Parameter(torch.full((GROUPS,), start)))
        scale, shift = model.get_parameter(f"scale{i}"), model.get_parameter(f"shift{i}")

        def modulated(_, inputs, scale=scale, shift=shift, group=group):
            return (inputs[0] * scale[group] + shift[group],)

        layer.register_forward_pre_hook(modulated)
    model.classifier.requires_grad_(True)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


if __name__ == "__main__":
    main()
