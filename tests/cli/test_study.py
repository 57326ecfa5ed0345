"""Whole comparisons of a tiny model: what is written, and what is kept when one does not end."""

import csv
import errno
import os
import shutil
import signal
import sqlite3

import pytest
import torch

from analog_grasp.cli import runs
from analog_grasp.cli.runs import _with_workers
from analog_grasp.study.config import resolve
from analog_grasp.study.records import treatment_costs
from analog_grasp.study.store import Store
from analog_grasp.study.study import prepare
from analog_grasp.tasks.classification import SentenceTask

REPORT = ("results.csv", "results.parquet", "summary.md", "report.html",
          *(f"accuracy_vs_drift.{kind}" for kind in ("png", "svg", "pdf")))  # fmt: skip


def rows(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def stop_after(monkeypatch):
    """Makes the scoring of the task raise an error after some calls."""

    def arrange(calls: int, error: BaseException) -> None:
        scores, made = SentenceTask.scores, []

        def counted(self, *arguments, **named):
            made.append(1)
            if len(made) > calls:
                raise error
            return scores(self, *arguments, **named)

        monkeypatch.setattr(SentenceTask, "scores", counted)

    return arrange


def test_compare_writes_all_that_it_names(ag, small_run, finished):
    ended = ag(*small_run, "--out", finished)
    assert ended.status == 0
    for name in REPORT:
        assert (finished / name).stat().st_size > 0
        assert f"wrote {finished / name}" in ended.out.splitlines()
    assert {row["adapter"] for row in rows(finished)} == {"grasp", "stochgrasp"}
    assert {row["time_s"] for row in rows(finished)} == {"0.0", "86400.0"}
    assert len(rows(finished)) == 8


def test_compare_shows_tables_and_findings(ag, small_run, finished):
    out = ag(*small_run, "--out", finished).out
    for shown in ("pcm-hermes-2, glue/sst2", "stochgrasp − grasp", "1d", "±", "95 % interval"):
        assert shown in out
    assert "- stochgrasp is better than grasp in " in out


@pytest.mark.parametrize("scored", [1, 6])
def test_an_interrupted_run_resumes_to_the_same_results(
    ag, small_run, finished, tmp_path, stop_after, monkeypatch, scored
):
    out = tmp_path / "run"
    with monkeypatch.context():
        stop_after(scored, KeyboardInterrupt())
        ended = ag(*small_run, "--out", out)
    assert ended.status == 1
    # Two of the scores are those of the digital models.
    assert ended.err.splitlines()[-1] == (
        f"Interrupted: {max(scored - 2, 0)} of 8 cells are measured and kept in {out}; "
        "the same command resumes the run."
    )
    monkeypatch.undo()
    assert ag(*small_run, "--out", out).status == 0
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_report_of_an_interrupted_run(ag, small_run, tmp_path, stop_after):
    stop_after(4, KeyboardInterrupt())
    ag(*small_run, "--adapters", "grasp", "--out", tmp_path / "run")
    ended = ag("report", tmp_path / "run")
    assert ended.status == 0
    assert "partial: 3 of 4" in ended.out
    assert len(rows(tmp_path / "run")) == 3


def test_report_before_anything_is_measured(error_of, ag, small_run, tmp_path, stop_after):
    stop_after(0, KeyboardInterrupt())
    ag(*small_run, "--adapters", "grasp", "--out", tmp_path / "run")
    assert "has no measurements yet" in error_of("report", tmp_path / "run")


def test_report_again_from_the_store(ag, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in REPORT:
        (folder / name).unlink()
    assert ag("report", folder).status == 0
    for name in ("results.csv", "summary.md"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_full_disk_keeps_what_was_measured(ag, small_run, finished, tmp_path, monkeypatch):
    add, added = Store.add, []

    def fills_up(self, measurements, origin):
        added.append(1)
        if len(added) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.sqlite")
        add(self, measurements, origin)

    out = tmp_path / "run"
    monkeypatch.setattr(Store, "add", fills_up)
    ended = ag(*small_run, "--out", out)
    assert ended.status == 1
    assert "disk is full" in ended.err.splitlines()[-1]
    monkeypatch.undo()
    ended = ag(*small_run, "--out", out)
    assert "measuring 5 of 8 cells" in ended.err
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
def test_full_disk_while_an_adapter_is_saved(ag, small_run, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "results.sqlite").unlink()
    config = out / "adapters" / "grasp" / "adapter_config.json"
    config.unlink()
    config.symlink_to("/dev/full")
    ended = ag(*small_run, "--out", out)
    assert ended.status == 1
    assert "disk is full" in ended.err.splitlines()[-1]


def test_failure_while_measuring_is_reported_in_its_own_words(ag, small_run, tmp_path, stop_after):
    stop_after(2, ValueError("a logit is NaN."))
    ended = ag(*small_run, "--adapters", "grasp", "--out", tmp_path / "run")
    assert ended.status == 1
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: The cell ")
    assert "pcm-hermes-2" in last


def test_run_file_serves_as_config_file(ag, finished, tmp_path):
    out = tmp_path / "again"
    ended = ag("compare", "--config", finished / "run.toml", "--out", out)
    assert ended.status == 0
    # No bar and no colours where there is no terminal.
    stages = ["training grasp", "training stochgrasp", "measuring 8 of 8 cells", "weight errors"]
    assert [line for line in ended.err.splitlines() if ": " not in line] == stages
    assert "measuring 8 of 8 cells: 8 of 8, 0:00:00 left" in ended.err
    assert "\x1b" not in ended.out
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_drift_measures_saved_adapters_as_compare_does_and_may_be_quiet(
    ag, finished, tiny, tmp_path
):
    folders = [finished / "adapters" / name for name in ("grasp", "stochgrasp")]
    given = ["--devices", "pcm-hermes-2", "--times", "0s,1d", "--repeats", "2"]
    out = tmp_path / "run"
    # The model is the one that the adapters name.
    ended = ag("drift", *folders, *tiny[2:], *given, "--quiet", "--out", out)
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    assert rows(out) == rows(finished)
    assert "8 of 8, 0:00:00 left: " in (out / "run.log").read_text()


@pytest.mark.parametrize("scored", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_other_metrics_do_not_count_as_cells(ag, model_folder, tmp_path, stop_after, scored):
    (tmp_path / "MRPC").mkdir()
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    lines = [f"{i % 2}\t1\t2\tfine film .\tdull film ." for i in range(8)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "MRPC" / name).write_text("\n".join([head, *lines]) + "\n")
    stop_after(scored, KeyboardInterrupt())
    ended = ag(
        "compare", "--model", model_folder, "--task", "glue/mrpc", "--data-dir", tmp_path,
        "--adapters", "head", "--devices", "ideal", "--times", "0s,1d,1y", "--repeats", "1",
        "--epochs", "1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert f"Interrupted: {scored - 1} of 3 cells" in ended.err


def test_sigterm_ends_a_run_as_ctrl_c_does(ag, small_run, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    add, added = Store.add, []

    def terminated(self, *cells):
        add(self, *cells)
        added.append(1)
        if len(added) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as context:
        context.setattr(Store, "add", terminated)
        ended = ag(*small_run, "--out", out)
    assert ended.status == 1
    assert ended.err.splitlines()[-1].startswith("Interrupted: 3 of 8 cells are measured and kept")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert ag(*small_run, "--out", out).status == 0
    assert (out / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_a_run_that_fails_says_what_is_kept(ag, small_run, tmp_path, stop_after):
    stop_after(5, RuntimeError("gone"))
    ended = ag(*small_run, "--out", tmp_path / "run")
    assert ended.status == 1
    kept, last = ended.err.splitlines()[-2:]
    assert kept.startswith("Stopped: 3 of 8 cells are measured and kept in ")
    assert last.startswith("error: ")


def test_verbose_shows_each_cell(ag, finished, tiny, tmp_path):
    given = ["--devices", "ideal", "--times", "0s", "--repeats", "2", "--verbose"]
    ended = ag("drift", finished / "adapters/grasp", *tiny, *given, "--out", tmp_path / "run")
    assert ended.err.splitlines()[0] == "measuring 2 of 2 cells"
    assert [line.rsplit(" ", 1)[0] for line in ended.err.splitlines()[1:3]] == [
        "grasp on ideal at 0s, chip 0: accuracy",
        "grasp on ideal at 0s, chip 1: accuracy",
    ]
    assert ended.err.splitlines()[3:] == ["weight errors", "weights on ideal, chip 0"]


def test_adapters_stand_in_the_order_they_were_asked_for(ag, finished, tiny, tmp_path):
    # Processes that share a run record them in any order.
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    with sqlite3.connect(out / "results.sqlite") as connection:
        connection.execute("UPDATE adapters SET position = -position")
    connection.close()
    assert ag("report", out).status == 0
    assert (out / "summary.md").read_bytes() == (finished / "summary.md").read_bytes()


@pytest.mark.parametrize(
    ("given", "threads", "workers"),
    [
        ({}, 2, 2),
        ({}, 16, 4),
        ({}, 1, 1),
        ({"workers": 1}, 2, 1),
        ({"repeats": 1}, 2, 1),
        ({"engine": "ray"}, 2, 1),
    ],
)
def test_large_grids_use_one_worker_per_core(tmp_path, monkeypatch, given, threads, workers):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cells = {"adapters": ("head",), "times": ("0s",), "repeats": 16, "devices": ("ideal",)}
    study = prepare(resolve(cells | given), tmp_path / "run")
    assert _with_workers(study).config.run.workers == workers


def test_recalibrate_measures_each_treatment_and_its_cost(ag, finished, tiny, tmp_path):
    out = tmp_path / "run"
    few = ["--devices", "pcm-hermes-2", "--times", "1d", "--repeats", "1", "--examples", "4"]
    folder = finished / "adapters" / "grasp"
    few += ["--recalibrate-steps", "20", "--schedule", "simulated", "--schedule-groups", "4"]
    few += ["--recalibrate-groups", "4"]
    ended = ag("recalibrate", folder, *tiny[2:], *few, "--out", out)
    assert ended.status == 0, ended.err
    variants = {row["adapter"] for row in rows(out)}
    assert variants == {"grasp", "grasp+scheduled", "grasp+recalibrated-4"}
    assert "Costs per age" in ended.out
    summary = (out / "summary.md").read_text()
    assert "weights that reprogramming would write" in summary
    found = treatment_costs(out, [("grasp", 0)], ["pcm-hermes-2"])
    (costs,) = [each for each in found if each.variant == "grasp+recalibrated-4"]
    assert (costs.fits, costs.examples) == (1, 4)
    assert costs.examples_read > 4
    assert costs.weights > 10 * costs.parameters


def test_recalibrate_takes_the_examples_of_a_file(ag, finished, tiny, tmp_path):
    file = tmp_path / "asked.toml"
    cells = 'times = ["1d"]\ndevices = ["ideal"]\nrepeats = 1\n'
    file.write_text(f"recalibrate = [4, 8]\nrecalibrate_steps = 20\n{cells}")
    folder, out = finished / "adapters" / "grasp", tmp_path / "run"
    ended = ag("recalibrate", folder, *tiny[2:], "--config", file, "--out", out)
    assert ended.status == 0, ended.err
    variants = {row["adapter"] for row in rows(out)}
    assert variants == {"grasp", "grasp+recalibrated-4", "grasp+recalibrated-8"}
    file.write_text('placement = "folded"\n')
    ended = ag("recalibrate", folder, *tiny[2:], "--config", file, "--out", tmp_path / "other")
    assert ended.status == 2
    assert "no effect without the placement digital" in ended.err


@pytest.mark.parametrize(
    ("text", "options", "counts"),
    [
        ("recalibrate_steps = 20", (), (64,)),
        ("recalibrate_steps = 20", ("--examples", "8"), (8,)),
        ("recalibrate = [4]\nrecalibrate_groups = 8", (), (4,)),
        ("recalibrate = []", (), (64,)),
    ],
)
def test_recalibrate_takes_a_file_with_or_without_examples(
    ag, finished, tmp_path, monkeypatch, text, options, counts
):
    configs = []
    monkeypatch.setattr(runs, "run_study", lambda config, *_, **__: configs.append(config))
    file = tmp_path / "asked.toml"
    file.write_text(text)
    asked = ("recalibrate", finished / "adapters" / "grasp", "--config", file, *options)
    ended = ag(*asked, "--out", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert configs[0].run.recalibrate == counts


def test_a_report_is_not_written_to_a_file(error_of, finished, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file: name a folder" in error_of("report", finished, "--out", tmp_path / "file")
