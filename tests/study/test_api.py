"""Studies in Python: results as a table, and reports of finished runs."""

import os
import shutil

import pandas
import pytest

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.api import compare, drift_sweep, report
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


def test_a_report_does_not_replace_that_of_another_run(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "other")
    with pytest.raises(ValueError, match="other holds another run: name another folder"):
        report(finished_run, tmp_path / "other")


def test_a_single_adapter_may_be_given_by_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapters/grasp holds no adapter"):
        drift_sweep(str(tmp_path / "adapters" / "grasp"), tmp_path / "out")


def test_a_folder_of_adapters_is_an_error_that_names_them(tmp_path):
    saved = tmp_path / "run" / "adapters" / "grasp"
    saved.mkdir(parents=True)
    (saved / "adapter_config.json").write_text("{}")
    for folder in (tmp_path / "run", saved.parent):
        with pytest.raises(FileNotFoundError, match=rf"holds no adapter itself: give {saved}\.$"):
            drift_sweep(str(folder), tmp_path / "out")


def test_a_run_is_reported_after_its_cards_and_adapters_have_moved(settings, tmp_path):
    card = DeviceCard.load("pcm-hermes-2").model_copy(update={"name": "mine"})
    asked = settings | {"adapters": ("grasp",), "devices": (card.with_(adc_bits=6),)}
    few = {"times": ("1d",), "repeats": 1, "then": "devices", "then_steps": 1}
    first = compare(tmp_path / "run", **asked | few)
    text = (first.directory / "summary.md").read_text()
    first.directory.rename(tmp_path / "moved")
    again = report(tmp_path / "moved")
    assert again.measurements == first.measurements
    assert (again.directory / "summary.md").read_text() == text
    assert "1 steps, on simulated chips, none of them measured, of mine@0s..1d" in text
    # The same call resumes it in its new place.
    assert compare(again.directory, **asked | few).measurements == first.measurements


def test_an_adapter_given_by_a_link_that_leads_elsewhere_today(settings, finished_run, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(finished_run / "adapters" / "grasp", tmp_path / name)
    link = tmp_path / "best"
    link.symlink_to(tmp_path / "first")
    few = {"devices": ("ideal",), "times": ("0s",), "repeats": 1}
    data = {name: settings[name] for name in ("model", "task", "data_dir")}
    done = drift_sweep([link], tmp_path / "run", **data, **few)
    path = done.directory / "run.toml"
    path.write_text(path.read_text().replace(str(tmp_path / "first"), str(link)))
    link.unlink()
    link.symlink_to(tmp_path / "second")
    assert report(done.directory).measurements == done.measurements


def test_a_folder_without_measurements_stays_without(finished_run, tmp_path):
    shutil.copy(finished_run / "run.toml", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no measurements: it should hold results"):
        report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_settings_of_another_version_are_reported_with_their_file(tmp_path):
    (tmp_path / "run.toml").write_text("radius = 0.05\n")
    with pytest.raises(ValueError, match=r"settings in .*run.toml are not valid: .*'radius'"):
        report(tmp_path)
