"""Engines: the same bits on every engine, also when a worker is lost."""

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
from analog_grasp.study.config import resolve
from analog_grasp.study.evaluator import Cell, Chip, Evaluator, Job, Subject
from analog_grasp.study.sections import RunSettings
from analog_grasp.study.study import prepare
from analog_grasp.study.trained_adapters import new_adapter
from analog_grasp.utils import errors

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(autouse=True)
def _restored_signal_handler():
    """Restore the handler of SIGTERM, which Ray replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def at_cell(number, act):
    """Return a progress that calls a function once, when so many cells are measured."""

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
    config, finished_run, tmp_path, run_study, read_values
):
    four = config.replace(workers=4)
    assert read_values(run_study(four, tmp_path / "run", at_cell(3, kill_a_worker))) == read_values(
        finished_run
    )
    assert multiprocessing.active_children() == []


def test_workers_that_die_repeatedly_end_the_run(
    config, finished_run, tmp_path, run_study, read_values, monkeypatch
):
    monkeypatch.setattr(engines, "RETRIES", 0)
    two = config.replace(workers=2)
    with pytest.raises(RuntimeError, match=r"1 workers died .* at chip [34] of .* exit code -9"):
        run_study(two, tmp_path / "run", at_cell(3, kill_a_worker))
    kept = read_values(tmp_path / "run")
    assert len(kept) >= 3 * 2
    assert kept.items() <= read_values(finished_run).items()
    assert read_values(run_study(config, tmp_path / "run")) == read_values(finished_run)


def test_the_number_of_threads_changes_no_bit(settings, task, tmp_path):
    # Wide enough for torch to divide the work.
    config = BertConfig(
        vocab_size=30522, hidden_size=512, num_hidden_layers=1, num_attention_heads=8,
        intermediate_size=1024,
    )  # fmt: skip
    shutil.copytree(settings["model"], tmp_path / "wide")
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "wide")
    config = resolve(settings | {"model": str(tmp_path / "wide")})
    model = new_adapter(config, task, "grasp")
    cards = {"pcm-hermes-2": DeviceCard.load("pcm-hermes-2")}
    evaluator = Evaluator(task, {("grasp", 0): model}, cards)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            job = Job(Chip("pcm-hermes-2", 0, 3), frozenset({Subject("grasp", 0, 86_400.0)}))
            found += [cell.scores for cell in evaluator.measure(job)]
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_missing_ray_raises_before_anything_is_trained(config, tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .analog-grasp\[ray\]"):
        prepare(config.replace(engine="ray"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@needs_ray
def test_a_missing_cluster_raises(config, tmp_path, run_study):
    nowhere = config.replace(engine="ray", ray_address="127.0.0.1:1")
    with pytest.raises(ValueError, match=r"No Ray cluster answers at ray_address '127.0.0.1:1'"):
        run_study(nowhere, tmp_path / "run")


@needs_ray
@pytest.mark.slow
def test_a_cluster_started_here_measures_the_same_bits(
    config, finished_run, tmp_path, run_study, read_values
):
    here = config.replace(engine="ray", workers=2)
    assert read_values(run_study(here, tmp_path / "run")) == read_values(finished_run)


@needs_ray
@pytest.mark.slow
def test_abandoned_work_leaves_the_cluster_free():
    import ray

    class Endless:
        """Measures a cell, and then computes endlessly."""

        models: ClassVar = {}

        def measure(self, job):
            yield Cell(job.chip, Subject("grasp", 0, 0.0), {"accuracy": 1.0})
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
        cells = frozenset({Subject("grasp", 0, 0.0)})
        jobs = [Job(Chip("pcm", seed, seed), cells) for seed in range(4)]
        cells = engines.measure(Endless(), jobs, RunSettings(engine="ray", workers=2))
        assert {next(cells).chip.seed for _ in range(2)} == {0, 1}
        wait_for(0)
        cells.close()
        wait_for(2)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_two_nodes_continues_when_one_is_killed(
    config, finished_run, tmp_path, run_study, read_values
):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        settings = {"engine": "ray", "ray_address": cluster.address}
        lost = at_cell(3, lambda: cluster.remove_node(node, allow_graceful=False))
        found = read_values(run_study(config.replace(**settings), tmp_path / "run", lost))
    finally:
        cluster.shutdown()
    assert found == read_values(finished_run)
