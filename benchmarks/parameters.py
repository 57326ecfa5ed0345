"""Trainable parameters of each adapter in RoBERTa-base, RoBERTa-large and GPT-2 Medium.

Counted on models built from their published configurations without weights. The task head, which is
trained with every adapter, is excluded; GPT-2, as a language model, has none.

    python benchmarks/parameters.py
    python benchmarks/parameters.py --write docs/parameters.md
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from analog_grasp.adapters.registry import adapt
from analog_grasp.report.tables import TextTable, markdown_table, rich_table
from analog_grasp.study.trained_adapters import learned_parameters

# Liu et al., arXiv 1907.11692, table 9, and the vocabulary of section 4.4; two labels.
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# Radford et al., Language Models are Unsupervised Multitask Learners (2019), table 2.
GPT2_MEDIUM = {
    "n_embd": 1024,
    "n_layer": 24,
    "n_head": 16,
    "vocab_size": 50257,
    "n_positions": 1024,
}

MODELS: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "RoBERTa-base": (
        lambda: RobertaForSequenceClassification(RobertaConfig(**ROBERTA, **BASE)),
        "SEQ_CLS",
    ),
    "RoBERTa-large": (
        lambda: RobertaForSequenceClassification(RobertaConfig(**ROBERTA, **LARGE)),
        "SEQ_CLS",
    ),
    "GPT-2 Medium": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2_MEDIUM)), "CAUSAL_LM"),
}
# The query and value projections; GPT-2 has one layer for query, key and value.
ATTENTION = r".*\.(query|value|c_attn)"
# K of the default settings.
REFERENCE = "GRASP, K = 64, all linear layers"
ADAPTERS: dict[str, tuple[str, dict[str, object]]] = {
    "full fine-tuning": ("full", {}),
    "LoRA, rank 8, query and value": ("lora", {}),
    "BitFit": ("bitfit", {}),
    "(IA)^3": ("ia3", {}),
    "GRASP, K = 16, all linear layers": ("grasp", {"groups": 16}),
    REFERENCE: ("grasp", {"groups": 64}),
    "GRASP, K = 256, all linear layers": ("grasp", {"groups": 256}),
    "GRASP, K = 64, query and value": ("grasp", {"groups": 64, "target_modules": ATTENTION}),
    "StochGRASP, K = 64, all linear layers": ("stochgrasp", {"groups": 64}),
}
DEFAULTS = {
    "target_modules": "all-linear",
    "noise_weight": 1.0,
    "noise_target": 0.1,
    "sampling": "feature",
}


PAGE = """# Parameters

Trainable parameters of each adapter, counted on models built from their published configurations
(RoBERTa: Liu et al., arXiv 1907.11692; GPT-2: Radford et al., 2019). The task head, which is
trained with every adapter, is excluded. LoRA adapts query and value, as in its paper (Hu et al.,
arXiv 2106.09685); GPT-2 has one layer for query, key and value. (IA)^3 has PEFT's layers: in
RoBERTa the attention output too, in GPT-2 the fused query, key and value; the layers of its paper
have 55,296, 147,456 and 147,456 parameters. GRASP has `2 K` parameters per layer and StochGRASP
`4 K`, independent of the size of the layer.

{table}

`python benchmarks/parameters.py --write docs/parameters.md` writes this page.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a Markdown page instead")
    target = parser.parse_args().write
    table = parameter_table()
    if target:
        page = PAGE.format(table=markdown_table(table).strip())
        target.write_text(page, encoding="utf-8")
    else:
        Console().print(rich_table(table))


def parameter_table() -> TextTable:
    """Return one row per adapter: its parameters in each model, and their ratio to GRASP's."""
    counts = {label: [count(model, label) for model in MODELS] for label in ADAPTERS}
    columns = [text for model in MODELS for text in (model, "×")]
    rows = (
        (label, *(text for pair in formatted(row, counts) for text in pair))
        for label, row in counts.items()
    )
    return TextTable(
        f"Trainable parameters without the task head; ×: ratio to {REFERENCE}",
        ("adapter", *columns),
        tuple(rows),
    )


def formatted(row: list[int], counts: dict[str, list[int]]) -> list[tuple[str, str]]:
    """Format the counts of one adapter, each with its ratio to the reference."""
    ones = counts[REFERENCE]
    return [(f"{n:,}", f"{n / one:,.2f}") for n, one in zip(row, ones, strict=True)]


def count(model: str, adapter: str) -> int:
    """Return the number of trainable parameters of an adapter in a model, without the head.

    Example:
        ``count("RoBERTa-base", "LoRA, rank 8, query and value")`` is 294,912.
    """
    make, task_type = MODELS[model]
    name, settings = ADAPTERS[adapter]
    with torch.device("meta"):
        adapted = adapt(make(), name, task_type=task_type, **{**DEFAULTS, **settings})
    return learned_parameters(adapted)[0]


if __name__ == "__main__":
    main()
