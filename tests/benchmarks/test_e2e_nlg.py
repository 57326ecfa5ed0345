"""The benchmark of E2E NLG on a chip, with a tiny model and a few rows."""

import sys

import e2e_nlg
import pytest

PROMPTS = [f"name[the {place}], near[the {other}]" for place in ("cat", "dog", "mat")
           for other in ("hill", "mat", "dog")]  # fmt: skip


@pytest.fixture
def data_dir(tmp_path):
    """Rows in the official layout of devset.csv."""
    rows = [f'"{prompt}",the cat sat on the {i % 3} mat' for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "devset.csv").write_text("\n".join(["mr,ref", *rows]) + "\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The task .* is scored without")
def test_adapters_are_measured_and_resumed(llama_folder, data_dir, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    where = ["--model", str(llama_folder), "--data-dir", str(data_dir), "--out", str(out)]
    few = ["--times", "0s", "1y", "--schedule-steps", "2", "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", ["e2e_nlg.py", *where, *few])
    e2e_nlg.main()
    found = e2e_nlg.read(out)
    assert list(found) == [
        (adapter, place, treatment)
        for adapter in ("grasp", "lora")
        for place, treatment in (
            ("digital", ""),
            ("pcm-hermes-2 0s", ""),
            ("pcm-hermes-2 1y", ""),
            ("pcm-hermes-2 1y", "adapter of the age"),
        )
    ]
    assert all(0 <= row["bleu"] <= 1 for row in found.values())
    printed = capsys.readouterr().out.splitlines()
    size = (out / "measured.jsonl").stat().st_size
    e2e_nlg.main()
    assert (out / "measured.jsonl").stat().st_size == size
    assert capsys.readouterr().out.splitlines() == printed[-len(found) - 2 :]
