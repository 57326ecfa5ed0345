"""The benchmark of GLUE by every adapter on a small model."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import glue
import pytest

DATA = Path(os.environ.get("ANALOG_GRASP_GLUE", Path(__file__).parents[3] / "shared" / "glue"))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no GLUE files in {DATA}; set ANALOG_GRASP_GLUE")
def test_training_scores_and_resuming(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(glue.TRAININGS, "glue/rte", glue.Training(0.2, 8))
    write_first_rows(tmp_path / "data")
    data = ["--data-dir", str(tmp_path / "data")]
    asked = [*data, "--out", str(tmp_path), "--tasks", "glue/rte"]
    few = ["--adapters", "grasp", "lora", "--seeds", "0", "1", "--shares", "1", "0.5"]
    monkeypatch.setattr(sys, "argv", ["glue.py", *asked, *few])
    glue.main()
    printed = capsys.readouterr().out
    found = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("glue-rte/*.json")}
    best = {}
    for name in ("grasp", "lora"):
        tried = {share: found[f"{name}-{share}-0"] for share in ("1", "0.5")}
        best[name] = max(tried, key=lambda share: tried[share]["held_out"])
    second = {f"{name}-{share}-1" for name, share in best.items()}
    assert found.keys() == second | {f"{n}-{s}-0" for n in best for s in ("1", "0.5")}
    scores = [found[f"grasp-{best['grasp']}-{seed}"]["score"] for seed in (0, 1)]
    assert f"| {50 * sum(scores):.1f} ± " in printed.splitlines()[2]
    assert "| LoRA | 73,728 |" in printed
    # A second time nothing is trained: what is there is shown.
    monkeypatch.setattr(glue, "measure", None)
    glue.main()
    assert capsys.readouterr().out == printed


def write_first_rows(folder: Path) -> None:
    """Write a task of real sentences that is small enough for six trainings and measurements."""
    (folder / "RTE").mkdir(parents=True)
    for name, rows in (("train.tsv", 120), ("dev.tsv", 40)):
        lines = (DATA / "RTE" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "RTE" / name).write_text("".join(lines[: rows + 1]), encoding="utf-8")


def test_the_rate_is_chosen_on_held_out_rows_and_means_are_over_seeds(tmp_path):
    asked = Namespace(
        out=tmp_path, seeds=[0, 1], shares=[1.0, 0.5], adapters=["lora"],
        tasks=["glue/cola", "glue/rte"],
    )  # fmt: skip
    for task, first, second in (("glue/cola", 0.1, 0.2), ("glue/rte", 0.6, 0.5)):
        for share, seed, score, held_out in ((1.0, 0, 0.9, 0.1), (0.5, 0, first, 0.2),
                                             (0.5, 1, second, 0.0)):  # fmt: skip
            path = glue.Run(seed, task, "lora", share).path(tmp_path)
            found = {"score": score, "held_out": held_out, "parameters": 12, "learning_rate": share}
            glue.once(path, lambda found=found: found)
    lines = glue.table(asked).splitlines()
    assert lines[2] == "| LoRA | 12 | 15.0 ± 7.1 | 55.0 ± 7.1 | 35.0 ± 0.0 |"
    assert lines[3] == "| learning rate |  | 0.5 | 0.5 |  |"
