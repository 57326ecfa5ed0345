"""The benchmark of costs on a small model: one row per hardware and adapter."""

import sys

import costs
from transformers import BertConfig, LlamaConfig

from analog_grasp.costs import CostModel

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 50}


def test_tables_of_an_encoder_and_of_a_causal_model(tmp_path, monkeypatch, capsys):
    config = BertConfig(**SIZES, num_attention_heads=2, max_position_embeddings=64)
    monkeypatch.setattr(costs, "built_in", lambda: config)
    llama = LlamaConfig(**SIZES, num_attention_heads=2, architectures=["LlamaForCausalLM"])
    llama.save_pretrained(tmp_path / "tiny-llama")
    asked = ["--models", str(tmp_path / "tiny-llama"), "--sequence", "16"]
    monkeypatch.setattr(sys, "argv", ["costs.py", *asked])
    costs.main()
    printed = capsys.readouterr().out
    for title in ("MiniLM", "tiny-llama"):
        for table in ("one sequence of 16 tokens", "all digital", "a year", "sequences per second"):
            assert f"**{title}: {table}" in printed
    for name in CostModel.names():
        for adapter in costs.ADAPTERS:
            rows = [line for line in printed.splitlines() if f"| {name}, {adapter} |" in line]
            assert len(rows) == 4
    # The adapter's arithmetic is small beside the reads, and LoRA's larger than GRASP's.
    grasp, lora = (costs.work("", label, 16) for label in costs.ADAPTERS)
    assert 0 < grasp.adapter_macs < lora.adapter_macs < grasp.analog_macs
