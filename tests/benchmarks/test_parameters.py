"""The parameter table: counts checked by hand, printed and as a page."""

import sys
from pathlib import Path

import parameters
import pytest

D, FF, LAYERS = 768, 3072, 12
EXPECTED = {
    # Every parameter but those of the head; 0.3, 0.1 and 125 million in table 2 of the LoRA paper.
    "full fine-tuning": 124_055_040,
    "LoRA, rank 8, query and value": LAYERS * 2 * 8 * (D + D),
    "BitFit": LAYERS * (4 * D + FF + D + 2 * D) + D,
    # peft scales the output of the attention, too.
    "(IA)^3": LAYERS * (D + D + D + FF),
    "GRASP, K = 16, all linear layers": LAYERS * 6 * 2 * 16,
    "GRASP, K = 64, all linear layers": LAYERS * 6 * 2 * 64,
    "GRASP, K = 256, all linear layers": LAYERS * 6 * 2 * 256,
    "GRASP, K = 64, query and value": LAYERS * 2 * 2 * 64,
    "StochGRASP, K = 64, all linear layers": LAYERS * 6 * 4 * 64,
}


@pytest.mark.parametrize("adapter", EXPECTED)
def test_counts_in_roberta_base(adapter):
    assert parameters.count("RoBERTa-base", adapter) == EXPECTED[adapter]


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        # The layers in which q, k and v are one: 1024 in, 3072 out.
        ("LoRA, rank 8, query and value", 24 * 8 * (1024 + 3072)),
        ("(IA)^3", 24 * (3072 + 4096)),
        ("GRASP, K = 64, all linear layers", 24 * 4 * 2 * 64),
        ("GRASP, K = 64, query and value", 24 * 2 * 64),
    ],
)
def test_counts_in_gpt2_medium(adapter, expected):
    assert parameters.count("GPT-2 Medium", adapter) == expected


@pytest.fixture
def few(monkeypatch):
    """The script with one model and GRASP with K = 64 only."""
    for name in [*parameters.MODELS][1:]:
        monkeypatch.delitem(parameters.MODELS, name)
    for name in [name for name in parameters.ADAPTERS if "GRASP, K = 64" not in name]:
        monkeypatch.delitem(parameters.ADAPTERS, name)


@pytest.mark.usefixtures("few")
def test_table_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parameters.py"])
    parameters.main()
    printed = capsys.readouterr().out
    assert "9,216" in printed
    assert "0.33" in printed


@pytest.mark.usefixtures("few")
def test_page_is_written(monkeypatch, tmp_path):
    page = tmp_path / "parameters.md"
    monkeypatch.setattr(sys, "argv", ["parameters.py", "--write", str(page)])
    parameters.main()
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert rows[0] == "| adapter | RoBERTa-base | × |"
    assert "| GRASP, K = 64, query and value | 3,072 | 0.33 |" in rows


def test_document_contains_the_counts():
    page = (Path(__file__).parents[2] / "docs" / "parameters.md").read_text(encoding="utf-8")
    for adapter, number in EXPECTED.items():
        assert f"| {adapter} | {number:,} |" in page
