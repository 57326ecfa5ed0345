"""Several trainings of each adapter: crossed with the chips, resumed, grown and reported."""

import pytest

from analog_grasp.report.tables import Comparison
from analog_grasp.study import trained_adapters
from analog_grasp.study.api import compare
from analog_grasp.study.config import resolve
from analog_grasp.study.provenance import adapter_hash
from analog_grasp.study.statistics import paired_differences, variants
from analog_grasp.tasks.classification import SentenceTask

FEW = {"devices": ("pcm-hermes-2",), "times": ("1d",)}


@pytest.fixture(scope="module")
def results(settings, tmp_path_factory):
    """Return two adapters, each trained from the seeds 3 and 4, on the chips 3 and 4."""
    folder = tmp_path_factory.mktemp("trainings") / "run"
    return compare(folder, **(settings | FEW), trainings=2)


def test_every_chip_is_measured_with_every_training(results):
    cells = {(m.adapter, m.training, m.repeat) for m in results.measurements}
    assert cells == {(a, i, j) for a in ("grasp", "stochgrasp") for i in (0, 1) for j in (0, 1)}
    assert len({m.value for m in results.measurements if m.metric == "pearson"}) == len(cells)
    header, first = (results.directory / "results.csv").read_text().splitlines()[:2]
    assert header.startswith("task,metric,adapter,training,placement,device")
    assert first.startswith("glue/stsb,pearson,grasp,0,digital,pcm-hermes-2")
    assert resolve({}, results.directory / "run.toml").training.trainings == 2


def test_each_training_is_that_of_its_seed_alone(results, settings, tmp_path):
    other = settings | FEW | {"seed": 4, "repeats": 1}
    alone = compare(tmp_path / "run", **other)
    expected = {(m.metric, m.adapter): m.value for m in alone.measurements}
    # The second training on the second chip.
    found = {
        (m.metric, m.adapter): m.value
        for m in results.measurements
        if (m.training, m.repeat) == (1, 1)
    }
    assert found == expected
    for name in ("grasp", "stochgrasp"):
        saved = results.directory / "adapters" / f"{name}-training-1"
        assert adapter_hash(saved) == adapter_hash(alone.directory / "adapters" / name)


def test_records_and_differences_cover_the_trainings(results):
    keys = [(record.adapter, record.training) for record in results.adapters]
    assert keys == [("grasp", 0), ("grasp", 1), ("stochgrasp", 0), ("stochgrasp", 1)]
    found = paired_differences(results.measurements, *variants(results.measurements))
    assert {(d.trainings, d.n) for d in found} == {(2, 2)}
    (table, _) = Comparison(results.measurements, results.adapters).tables
    assert table.labels == ["grasp", "stochgrasp"]


def test_trainings_are_added_to_a_finished_run(results, settings, tmp_path, monkeypatch):
    one = settings | FEW
    first = compare(tmp_path / "run", **one)
    scored, trained = [], []
    scores, train = SentenceTask.scores, trained_adapters.train
    monkeypatch.setattr(SentenceTask, "scores", lambda *args: scored.append(args) or scores(*args))
    monkeypatch.setattr(
        trained_adapters, "train", lambda *a, **k: trained.append(k["seed"]) or train(*a, **k)
    )
    grown = compare(tmp_path / "run", **one, trainings=2)
    assert trained == [4, 4]
    # The digital score of each new training, and its cells on two chips.
    assert len(scored) == 2 * (1 + 2)
    assert grown.measurements == results.measurements
    assert set(first.measurements) < set(grown.measurements)
    # Asked for one training again, the run keeps the two that it has.
    scored.clear()
    assert compare(tmp_path / "run", **one).measurements == results.measurements
    assert scored == []


def test_saved_adapters_have_one_training(results, settings, tmp_path):
    saved = str(results.directory / "adapters" / "stochgrasp-training-1")
    asked = settings | FEW | {"adapters": ("grasp", saved), "trainings": 2}
    found = compare(tmp_path / "run", **asked)
    keys = {(m.adapter, m.training) for m in found.measurements}
    assert keys == {("grasp", 0), ("grasp", 1), ("stochgrasp-training-1", 0)}
    alone = {"adapters": (saved,), "trainings": 2, "task": "glue/stsb"}
    with pytest.raises(ValueError, match="trainings is 2, which has no effect on saved adapters"):
        resolve(alone)


def test_trainings_are_drawn_until_the_intervals_are_narrow(results, settings, tmp_path):
    # With two trainings no interval is this narrow; the limits end the drawing.
    narrow = settings | FEW | {"trainings": 2, "until_ci": 1e-6}
    limits = {"trainings_limit": 3, "repeats_limit": 3}
    found = compare(tmp_path / "run", **narrow, **limits)
    assert {(m.training, m.repeat) for m in found.measurements} == {
        (i, j) for i in range(3) for j in range(3)
    }
    assert set(results.measurements) < set(found.measurements)
