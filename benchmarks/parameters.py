"""How many numbers does each adapter train in RoBERTa-base, RoBERTa-large and GPT-2 Medium?

Counts them exactly, on models built from their published configurations without weights. The task
head, which all of them train alike, is left out; GPT-2 has none, as a language model.

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
from analog_grasp.report.tables import TextCell, TextRow, TextTable, markdown_table, rich_table
from analog_grasp.study.adapters import learned_parameters

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
# The query and value projections, which GPT-2 has in one with the keys.
ATTENTION = ["query", "value", "c_attn"]
REFERENCE = "GRASP, K = 16, all linear layers"
ADAPTERS: dict[str, tuple[str, dict[str, object]]] = {
    "full fine-tuning": ("full", {}),
    "LoRA, rank 8, query and value": ("lora", {}),
    "BitFit": ("bitfit", {}),
    "(IA)^3": ("ia3", {}),
    "GRASP, K = 4, all linear layers": ("grasp", {"groups": 4}),
    REFERENCE: ("grasp", {"groups": 16}),
    "GRASP, K = 64, all linear layers": ("grasp", {"groups": 64}),
    "GRASP, K = 16, query and value": ("grasp", {"groups": 16, "target_modules": ATTENTION}),
    "StochGRASP, K = 16, all linear layers": ("stochgrasp", {"groups": 16}),
}
DEFAULTS = {
    "target_modules": "all-linear",
    "noise_weight": 1.0,
    "noise_target": 0.1,
    "sampling": "feature",
}


PAGE = """# Parameters

How many numbers each adapter trains, counted on models built from their published configurations
(RoBERTa: Liu et al., arXiv 1907.11692; GPT-2: Radford et al., 2019). The task head, which all of
them train alike, is left out. LoRA adapts query and value, as in its paper (Hu et al., arXiv
2106.09685); in GPT-2 these are one layer with the keys. GRASP trains `2 K` numbers a layer and
StochGRASP `4 K`, whatever the size of the layer.

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
    """A row an adapter; for each model what it trains, and that as a multiple of GRASP's."""
    counts = {label: [count(model, label) for model in MODELS] for label in ADAPTERS}
    columns = [text for model in MODELS for text in (model, "×")]
    rows = (
        TextRow(label, tuple(TextCell(text) for pair in shown(numbers, counts) for text in pair))
        for label, numbers in counts.items()
    )
    return TextTable(
        f"Trainable parameters, the task head left out; ×: in multiples of {REFERENCE}",
        ("adapter", *columns),
        tuple(rows),
    )


def shown(numbers: list[int], counts: dict[str, list[int]]) -> list[tuple[str, str]]:
    """The numbers of one adapter as text, each with its multiple of the reference's."""
    ones = counts[REFERENCE]
    return [(f"{n:,}", f"{n / one:,.2f}") for n, one in zip(numbers, ones, strict=True)]


def count(model: str, adapter: str) -> int:
    """What an adapter trains in a model, the head left out.

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
