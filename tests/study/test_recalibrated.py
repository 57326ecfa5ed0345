"""Recalibrated variants of adapters in a study: cells, saved adapters, and resuming."""

import json

import pytest
from peft import PeftConfig

from analog_grasp.report.tables import comparison_tables
from analog_grasp.study.api import compare
from analog_grasp.study.config import resolve
from analog_grasp.study.evaluator import base_and_examples
from analog_grasp.study.store import Store

# 12 of the task's pairs are training rows.
EXAMPLES = (4, 8)
FEW = {"adapters": ("grasp",), "devices": ("pcm-hermes-2",), "times": ("0s", "1d"), "repeats": 2}


@pytest.fixture(scope="module")
def results(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recalibrated") / "run"
    return compare(folder, **(settings | FEW), recalibrate=EXAMPLES)


def test_each_adapter_is_measured_with_and_without_recalibration(results):
    cells = {(m.adapter, m.time_s, m.seed) for m in results.measurements}
    names = ("grasp", "grasp+recalibrated-4", "grasp+recalibrated-8")
    assert cells == {
        (name, time, seed) for name in names for time in (0.0, 86400.0) for seed in (3, 4)
    }
    assert all(base_and_examples(name)[0] == "grasp" for name in names)
    (table, *_) = comparison_tables(results.measurements, results.adapters)
    assert [row.label for row in table.scores] == list(names)


def test_refitted_adapters_are_saved_with_their_chip_and_age(results):
    folder = results.directory / "recalibrated" / "grasp+recalibrated-8" / "pcm-hermes-2-4-1d"
    assert PeftConfig.from_pretrained(folder).peft_type == "GRASP"
    report = json.loads((folder / "recalibration.json").read_text())
    assert (report["chip"], report["time_s"], report["examples"]) == (4, 86400.0, 8)
    assert report["loss_after"] <= report["loss_before"]


def test_a_resumed_run_measures_the_same_values(results, settings, tmp_path):
    """The recalibrated cells are measured in a later process than the others."""
    first = compare(tmp_path / "run", **(settings | FEW), recalibrate=EXAMPLES)
    with Store(first.directory / "results.sqlite") as store:
        lost = [m for m in store.measurements() if "+" in m.adapter]
        store._connection.execute("DELETE FROM measurements WHERE adapter LIKE '%+%'")
    assert len(lost) == 2 * 2 * 2 * 2
    again = compare(tmp_path / "run", **(settings | FEW), recalibrate=EXAMPLES)
    expected = {m.key: m.value for m in results.measurements}
    assert {m.key: m.value for m in again.measurements} == expected


def test_a_run_is_another_one_with_other_numbers_of_examples(results, settings):
    with pytest.raises(ValueError, match="recalibrate"):
        compare(results.directory, **(settings | FEW), recalibrate=(16,))


def test_numbers_are_read_from_text():
    assert resolve({"recalibrate": ("16", "64")}).run.recalibrate == (16, 64)
    with pytest.raises(ValueError, match="The setting recalibrate is 1"):
        resolve({"recalibrate": (1,)})
