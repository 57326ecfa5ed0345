"""Evaluator: shared frozen weights, layers of the chips, and warnings of workers."""

import pickle
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from analog_grasp import GraspConfig, deploy
from analog_grasp.devices import noise_model
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.evaluator import (
    Chip,
    Evaluator,
    Job,
    Subject,
    measure_in_worker,
    share_frozen,
)


@pytest.fixture
def adapted(make_model):
    """Return GRASP on every layer and LoRA on some, each on a model of its own."""
    common = {"task_type": "SEQ_CLS"}
    configs = {
        "grasp": GraspConfig(groups=4, target_modules="all-linear", **common),
        "lora": LoraConfig(r=2, target_modules=["query"], **common),
    }
    return {
        name: get_peft_model(make_model("bert"), config).eval().requires_grad_(False)
        for name, config in configs.items()
    }


def parameter_count(*models):
    """Return the number of parameters, each tensor once."""
    held = {id(p): p.numel() for model in models for p in model.parameters()}
    return sum(held.values())


def test_models_with_different_adapters_share_everything_else(adapted, batch):
    before = [model(**batch).logits for model in adapted.values()]
    own = [sum(p.numel() for n, p in m.named_parameters() if "grasp_" in n or "lora_" in n)
           for m in adapted.values()]  # fmt: skip
    base = parameter_count(adapted["grasp"]) - own[0]
    share_frozen(adapted.values())
    assert parameter_count(*adapted.values()) == base + sum(own)
    for model, logits in zip(adapted.values(), before, strict=True):
        torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)


def test_different_or_trainable_parameters_are_not_shared(adapted):
    first, second = adapted.values()
    query = second.get_base_model().bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        query.base_layer.weight[0, 0] += 1
    key = second.get_base_model().bert.encoder.layer[0].attention.self.key
    key.weight.requires_grad_(True)
    share_frozen([first, second])
    layer = first.get_base_model().bert.encoder.layer[0].attention.self
    assert query.base_layer.weight is not layer.query.base_layer.weight
    assert key.weight is not layer.key.base_layer.weight
    assert query.base_layer.bias is layer.query.base_layer.bias


def test_a_worker_receives_one_pre_trained_model(adapted, task):
    evaluator = pickle.loads(pickle.dumps(Evaluator(task, adapted, {})))
    one = parameter_count(adapted["grasp"])
    assert parameter_count(*evaluator.models.values()) < 1.2 * one


def test_layers_are_those_of_the_deployment(bert):
    cards = {name: DeviceCard.load(name) for name in ("pcm-hermes-2", "ideal")}
    evaluator = Evaluator(None, {"plain": bert}, cards)
    rows = list(evaluator.layers(Chip("pcm-hermes-2", 0, 7), [86400.0, 0.0]))
    report = deploy(bert, cards["pcm-hermes-2"]).program(7).drift_to("1d").report()
    aged = [row for row in rows if row.time_s == 86400.0]
    assert [(r.layer, r.tiles, r.cells, r.use, r.weight_error) for r in aged] == [
        *((r.name, r.tiles, r.cells, r.use, r.weight_error) for r in report),
        *((module.name, 0, module.weights, 0.0, 0.0) for module in report.digital),
    ]
    assert report.digital
    assert len(rows) == 2 * len(aged)
    assert {(row.device, row.seed) for row in rows} == {("pcm-hermes-2", 7)}
    exact = evaluator.layers(Chip("ideal", 0, 7), [0.0])
    assert all(row.weight_error < 1e-6 for row in exact)


def test_warnings_of_a_worker_travel_with_its_cells(adapted, task, capsys, monkeypatch):
    # A card warns once per process.
    monkeypatch.setattr(noise_model, "_warned", set())

    class WarningTask:
        name, metrics = task.name, task.metrics

        def scores(self, model):
            warnings.warn("of another package", stacklevel=1)
            return dict.fromkeys(task.metrics, 0.5)

    cards = {"rram-wan2022": DeviceCard.load("rram-wan2022")}
    evaluator = Evaluator(WarningTask(), {("grasp", 0): adapted["grasp"]}, cards)
    cells = frozenset(Subject("grasp", 0, seconds) for seconds in (0.0, 3e7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(measure_in_worker(evaluator, Job(Chip("rram-wan2022", 0, 0), cells)))
    assert [cell.scores["pearson"] for cell in found] == [0.5, 0.5]
    (note,) = (note for cell in found for note in cell.notes)
    assert "rram-wan2022" in note
    assert capsys.readouterr().err == ""
