"""The engines: the same bits whoever does the work, and work that goes on when a worker is lost."""

import multiprocessing
import shutil
import signal
import time
from importlib.util import find_spec
from typing import ClassVar

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study import engines
from analog_grasp.study.adapters import new_adapter
from analog_grasp.study.config import resolve
from analog_grasp.study.engines import local
from analog_grasp.study.evaluator import Bench, Cell, Job
from analog_grasp.study.grid import Chip
from analog_grasp.study.runner import prepare

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(autouse=True)
def _what_ends_a_process():
    """A Ray that a test starts takes the request to terminate for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def at_cell(number, act):
    """A progress that does something once, when so many cells are measured."""

    def begin(_description, _total):
        done = []

        def advance(latest=""):
            done.append(latest)
            if len(done) == number:
                act()

        return advance

    return begin


def kill_a_worker():
    multiprocessing.active_children()[0].kill()


def test_four_workers_measure_the_same_bits_though_one_dies(
    settings, trained, tmp_path, measure, values
):
    four = settings.replace(workers=4)
    assert values(measure(four, tmp_path / "run", at_cell(3, kill_a_worker))) == values(trained)
    assert multiprocessing.active_children() == []


def test_workers_that_die_again_and_again_end_the_run(
    settings, trained, tmp_path, measure, values, monkeypatch
):
    monkeypatch.setattr(local, "RETRIES", 0)
    two = settings.replace(workers=2)
    with pytest.raises(RuntimeError, match=r"1 workers died .* at chip [34] of .* exit code -9"):
        measure(two, tmp_path / "run", at_cell(3, kill_a_worker))
    kept = values(tmp_path / "run")
    assert len(kept) >= 3 * 2
    assert kept.items() <= values(trained).items()
    assert values(measure(settings, tmp_path / "run")) == values(trained)


def test_the_number_of_threads_changes_no_bit(asked, task, tmp_path):
    # Wide enough for torch to divide the work.
    config = BertConfig(
        vocab_size=30522, hidden_size=512, num_hidden_layers=1, num_attention_heads=8,
        intermediate_size=1024,
    )  # fmt: skip
    shutil.copytree(asked["model"], tmp_path / "wide")
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "wide")
    settings = resolve(asked | {"model": str(tmp_path / "wide")})
    model = new_adapter(settings, task, "grasp")
    bench = Bench(
        task,
        {"grasp": model},
        {"pcm-hermes-2": DeviceCard.load("pcm-hermes-2")},
        {"placement": "digital"},
    )
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            job = Job(Chip("pcm-hermes-2", 0, 3), frozenset({("grasp", 86_400.0)}))
            found += [cell.scores for cell in bench.measure(job)]
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_ray_that_is_not_installed_is_told_before_anything_is_trained(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'analog-grasp\[ray\]', or use the engine"):
        prepare(settings.replace(engine="ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@needs_ray
def test_a_cluster_that_is_not_there_is_told(settings, tmp_path, measure):
    nowhere = settings.replace(engine="ray", ray_address="127.0.0.1:1")
    with pytest.raises(ValueError, match=r"No Ray cluster answers at ray_address '127.0.0.1:1'"):
        measure(nowhere, tmp_path / "run")


@needs_ray
@pytest.mark.slow
def test_a_cluster_started_here_measures_the_same_bits(
    settings, trained, tmp_path, measure, values
):
    here = settings.replace(engine="ray", workers=2)
    assert values(measure(here, tmp_path / "run")) == values(trained)


@needs_ray
@pytest.mark.slow
def test_work_that_is_given_up_leaves_the_cluster_free():
    import ray

    from analog_grasp.study.engines import ray as engine

    class Endless:
        """Measures a cell, and then goes on for ever."""

        models: ClassVar = {}

        def measure(self, job):
            yield Cell(job.chip, "grasp", 0.0, {"accuracy": 1.0})
            while True:
                time.sleep(0.01)

    def wait_for(processors):
        deadline = time.monotonic() + 120
        while ray.available_resources().get("CPU", 0) != processors:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    # A cluster that is not the engine's own: nothing but the engine ends its work there.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        jobs = [Job(Chip("pcm", seed, seed), frozenset({("grasp", 0.0)})) for seed in range(4)]
        cells = engine.measure(Endless(), jobs, workers=2)
        assert {next(cells).chip.seed for _ in range(2)} == {0, 1}
        wait_for(0)
        cells.close()
        wait_for(2)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_two_nodes_goes_on_when_one_is_killed(
    settings, trained, tmp_path, measure, values
):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        asked = {"engine": "ray", "ray_address": cluster.address}
        lost = at_cell(3, lambda: cluster.remove_node(node, allow_graceful=False))
        found = values(measure(settings.replace(**asked), tmp_path / "run", lost))
    finally:
        cluster.shutdown()
    assert found == values(trained)
