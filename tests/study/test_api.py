"""Studies in Python: results as a table, and reports of finished runs."""

import os
import shutil

import pandas
import pytest

from analog_grasp.study.api import report
from analog_grasp.study.records import COLUMNS


def test_results_are_a_table_with_the_columns_of_results_csv(finished_run, tmp_path):
    results = report(finished_run, tmp_path)
    table = results.to_pandas()
    assert tuple(table.columns) == COLUMNS
    assert len(table) == len(results.measurements) == 32
    (first,) = table.head(1).to_dict("records")
    assert first == vars(results.measurements[0])
    read = pandas.read_csv(tmp_path / "results.csv", float_precision="round_trip")
    assert read.equals(table.astype(read.dtypes))


def test_a_read_only_run_is_reported_elsewhere(finished_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and os.fspath(path) != str(run)
    )
    with pytest.raises(OSError, match=r"folder .*run is read-only: .* \(--out\)"):
        report(run)
    results = report(run, tmp_path / "report")
    assert {path.name for path in results.files} >= {"results.csv", "report.html"}
    assert {path.parent for path in results.files} == {tmp_path / "report"}
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
