"""Recalibrated and scheduled variants in a study: cells, saved adapters, and resuming."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights

from analog_grasp import AgeSchedule, DeviceCard, deploy, load_base_model
from analog_grasp.report.tables import Comparison
from analog_grasp.study import evaluator, preparation
from analog_grasp.study.api import compare
from analog_grasp.study.config import resolve
from analog_grasp.study.provenance import card_toml
from analog_grasp.study.records import TreatedAdapter
from analog_grasp.study.store import Store
from analog_grasp.study.study import prepare
from analog_grasp.training import schedule

# 12 of the task's pairs are training rows.
EXAMPLES = (4, 8)
# The number of steps of a fit is no matter of a study.
REFIT = {"recalibrate": EXAMPLES, "recalibrate_steps": 20}
FEW = {"adapters": ("grasp",), "devices": ("pcm-hermes-2",), "times": ("0s", "1d"), "repeats": 2}


@pytest.fixture(scope="module")
def results(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recalibrated") / "run"
    return compare(folder, **(settings | FEW | REFIT))


def test_each_adapter_is_measured_with_and_without_recalibration(results):
    cells = {(m.adapter, m.time_s, m.seed) for m in results.measurements}
    names = ("grasp", "grasp+recalibrated-4", "grasp+recalibrated-8")
    assert cells == {
        (name, time, seed) for name in names for time in (0.0, 86400.0) for seed in (3, 4)
    }
    (table, *_) = Comparison(results.measurements, results.adapters).tables
    assert table.labels == list(names)


def test_a_failed_recalibration_fails_its_cell_alone(results, settings, tmp_path, monkeypatch):
    """An aged chip whose outputs are not finite leaves nothing to fit to."""
    fit = evaluator.recalibrate

    def failing(deployment, *args, **given):
        if (deployment.seed, deployment.time_s, given["examples"]) == (3, 86400.0, 8):
            raise ValueError("The loss on the held-out examples is nan before the fit.")
        return fit(deployment, *args, **given)

    sentence = (
        r"grasp\+recalibrated-8 on pcm-hermes-2 at 1d, chip 3, cannot be scored: The loss.*\.$"
    )
    with monkeypatch.context() as context:
        context.setattr(evaluator, "recalibrate", failing)
        with pytest.raises(ValueError, match=sentence):
            compare(tmp_path / "run", **(settings | FEW | REFIT))
    # All others are reported.
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.csv", "layers.csv", "summary.md", "report.html"} <= written
    again = compare(tmp_path / "run", **(settings | FEW | REFIT))
    assert values(again) == values(results)


def values(results):
    return {m.key: m.value for m in results.measurements}


def test_treatments_are_in_the_order_of_their_examples(results):
    names = ["grasp", "lora", *(f"grasp+recalibrated-{n}" for n in (8, 16, 256))]
    cells = [replace(results.measurements[0], adapter=name) for name in reversed(names)]
    records = [replace(results.adapters[0], adapter=name) for name in names[:2]]
    assert [v.adapter for v in Comparison(cells, records).variants] == names
    expected = [f"grasp+recalibrated-{n}" for n in EXAMPLES]
    assert [cost.variant for cost in results.treatments] == expected


def test_refitted_adapters_are_saved_with_their_chip_and_age(results):
    folder = results.directory / "recalibrated" / "grasp+recalibrated-8" / "pcm-hermes-2-4-1d"
    assert PeftConfig.from_pretrained(folder).peft_type == "GRASP"
    report = json.loads((folder / "recalibration.json").read_text())
    assert (report["chip"], report["time_s"], report["examples"]) == (4, 86400.0, 8)
    assert report["loss_after"] <= report["loss_before"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"recalibrate": 1000}, r"recalibrate is 1000, but the task .* has \d+ training rows"),
        ({"recalibrate": 8, "recalibrate_groups": 6}, "has 4 groups of .* give a multiple of 4 th"),
        ({"recalibrate": 8, "recalibrate_groups": 4096}, r"groups is 4096, but the layer .* above"),
        ({"recalibrate": 8, "recalibrate_groups": 8, "groups": None}, "groups of .*a multiple of"),
        ({"schedule": "simulated", "schedule_groups": 6}, "schedule_groups is 6, .* multiple of 4"),
        ({"schedule_groups": 8}, "schedule_groups is 8, .* without schedule"),
        (
            {"schedule": "simulated", "schedule_groups": 8, "recalibrate": 8}
            | {"recalibrate_groups": 12},
            "recalibrate_groups is 12, but the layer .* has 8 groups",
        ),
        (
            {"recalibrate": 8, "recalibrate_method": "statistics", "form": "normalize"},
            "method 'statistics' is for GRASP and StochGRASP of the form 'affine'",
        ),
        ({"placement": "programmed", "programming_error": "learned"}, "of grasp are not learned"),
        ({"layers": "quary"}, "layer pattern"),
        ({"layers": ("query", "quary")}, "'quary'"),
    ],
)
def test_a_wrong_request_is_found_before_training(settings, tmp_path, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        compare(tmp_path / "run", **(settings | FEW | given))
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_a_method_does_not_suit_is_named(settings, tmp_path):
    given = {"recalibrate": 8, "recalibrate_method": "statistics", "adapters": ("grasp", "lora")}
    with pytest.warns(UserWarning, match=r"statistics is for grasp and .*: lora is re-fitted by g"):
        prepare(resolve(settings | FEW | given), tmp_path / "run")


@pytest.mark.slow
def test_two_workers_recalibrate_to_the_same_scores(settings, tmp_path):
    few = settings | FEW | REFIT | {"times": ("1d",), "recalibrate": 4}
    before = torch.get_num_threads()
    # Without instructions for bytes the number of threads changes the rounding of a fit.
    torch.set_num_threads(1)
    try:
        one = compare(tmp_path / "one", **few)
        two = compare(tmp_path / "two", **few, workers=2)
    finally:
        torch.set_num_threads(before)
    assert two.measurements == one.measurements


@pytest.mark.parametrize(
    ("given", "groups", "method"),
    [
        ({"recalibrate_groups": 8, "adc_bits": 6}, 8, "gradient"),
        ({"recalibrate_method": "statistics"}, 4, "statistics"),
    ],
)
def test_a_study_chooses_groups_and_method_for_grasp_alone(
    settings, tmp_path, given, groups, method
):
    both = FEW | {"adapters": ("grasp", "lora"), "times": ("1y",), "repeats": 1}
    fit = REFIT | {"recalibrate": 8}
    run = compare(tmp_path / "run", **(settings | both | fit | given))
    for adapter, expected in (("grasp", method), ("lora", "gradient")):
        folder = run.directory / "recalibrated" / f"{adapter}+recalibrated-8" / "pcm-hermes-2-3-1y"
        report = json.loads((folder / "recalibration.json").read_text())
        assert report["method"] == expected
        assert report["settings"].get("adc_bits") == given.get("adc_bits")
        assert report["settings"].get("steps") == (20 if expected == "gradient" else None)
        if adapter == "grasp":
            assert PeftConfig.from_pretrained(folder).groups == groups
    trained = dict.fromkeys(("groups", "epochs", "then", "batch_size"))
    saved = {"adapters": (str(run.directory / "adapters" / "lora"),), **trained}
    with pytest.raises(ValueError, match=r"no effect on lora: it applies to grasp and stochgrasp"):
        compare(tmp_path / "other", **(settings | both | saved | given), recalibrate=(8,))


@pytest.mark.slow
def test_a_resumed_run_measures_the_same_values(results, settings, tmp_path):
    """The recalibrated cells are measured in a later process than the others."""
    first = compare(tmp_path / "run", **(settings | FEW | REFIT))
    with Store(first.directory / "results.sqlite") as store:
        lost = [m for m in store.measurements() if "+" in m.adapter]
        store._connection.execute("DELETE FROM measurements WHERE adapter LIKE '%+%'")
    assert len(lost) == 2 * 2 * 2 * 2
    again = compare(tmp_path / "run", **(settings | FEW | REFIT))
    expected = {m.key: m.value for m in results.measurements}
    assert {m.key: m.value for m in again.measurements} == expected


def test_a_run_is_another_one_with_other_numbers_of_examples(results, settings):
    with pytest.raises(ValueError, match="recalibrate"):
        compare(results.directory, **(settings | FEW | REFIT | {"recalibrate": 16}))


@pytest.fixture(scope="module")
def scheduled(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scheduled") / "run"
    return compare(folder, **(settings | FEW), schedule="simulated")


def test_each_age_has_an_adapter_of_its_own(scheduled):
    cells = {(m.adapter, m.time_s, m.seed) for m in scheduled.measurements}
    assert cells == {
        (name, time, seed)
        for name in ("grasp", "grasp+scheduled")
        for time in (0.0, 86400.0)
        for seed in (3, 4)
    }
    folder = scheduled.directory / "scheduled" / "grasp" / "pcm-hermes-2"
    assert sorted(path.name for path in folder.iterdir()) == ["0s", "1d", "schedule.json"]
    assert PeftConfig.from_pretrained(folder / "1d").peft_type == "GRASP"
    # Rank correlations of nine rows take few values.
    measured = [m for m in scheduled.measurements if m.metric == "pearson"]
    values = {(m.adapter, m.time_s, m.seed): m.value for m in measured}
    plain = {key[1:]: value for key, value in values.items() if key[0] == "grasp"}
    assert all(value != plain[key[1:]] for key, value in values.items() if key[0] != "grasp")


def test_an_edited_card_has_schedules_and_weight_errors_of_its_own(settings, tmp_path, monkeypatch):
    seeds, fit = [], preparation.fit_schedule

    def fitted(*given, seed, **settings):
        seeds.append(seed)
        return fit(*given, seed=seed, **settings)

    monkeypatch.setattr(preparation, "fit_schedule", fitted)
    path = tmp_path / "mine.toml"
    card = DeviceCard.load("pcm-hermes-2").model_copy(update={"name": "mine"})
    asked = settings | FEW | {"devices": (str(path),), "times": ("1d",), "trainings": 2}
    found = []
    for edited in (card, card.scaled(1.0, 1.5), card):
        path.write_text(card_toml(edited))
        compare(tmp_path / "run", **asked, schedule="simulated")
        schedules = tmp_path / "run" / "scheduled"
        weights = (schedules / "grasp" / "mine" / "1d" / "adapter_model.safetensors").read_bytes()
        found.append((weights, (tmp_path / "run" / "layers.csv").read_text()))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]
    assert len(found[0][1].splitlines()) == len(found[1][1].splitlines())
    # Those of the other card are kept aside, and used again.
    assert found[2] == found[0]
    assert len(list(schedules.glob("*/mine-*"))) == 2
    # The draws of each training are its own.
    assert len(seeds) == 4
    assert seeds[0] != seeds[1]
    assert seeds[:2] == seeds[2:]


def test_a_saved_schedule_gives_the_score_of_its_cells(scheduled, settings, task):
    adapter = PeftModel.from_pretrained(
        load_base_model(task, settings["model"]), scheduled.directory / "adapters" / "grasp"
    )
    deployment = deploy(adapter, "pcm-hermes-2").program(4)
    folder = scheduled.directory / "scheduled" / "grasp" / "pcm-hermes-2"
    AgeSchedule.load(folder).follow(deployment)
    scores = task.scores(deployment.drift_to("1d").model)
    key = ("grasp+scheduled", 86400.0, 4)
    found = {m.metric: m.value for m in scheduled.measurements
             if (m.adapter, m.time_s, m.seed) == key}  # fmt: skip
    assert found == pytest.approx(scores, abs=1e-6)


def test_a_recalibration_begins_with_the_adapter_of_the_age(settings, tmp_path, monkeypatch):
    begun = []

    def started(*given, start, **settings):
        begun.append(start)
        return fit(*given, start=start, **settings)

    fit = evaluator.recalibrate
    monkeypatch.setattr(evaluator, "recalibrate", started)
    few = settings | FEW | {"times": ("1d",), "repeats": 1} | REFIT | {"recalibrate": (8,)}
    few |= {"adapters": ("grasp", "lora"), "schedule": "simulated", "schedule_groups": 8}
    few |= {"recalibrate_groups": 8}
    run = compare(tmp_path / "run", **few)
    names = {m.adapter for m in run.measurements}
    assert names == {
        *("grasp", "grasp+scheduled", "grasp+recalibrated-8"),
        *("lora", "lora+scheduled", "lora+recalibrated-8"),
    }
    assert len(begun) == 2
    for start, adapter, groups in zip(begun, ("grasp", "lora"), (8, None), strict=True):
        folders = [
            run.directory / "scheduled" / adapter / "pcm-hermes-2" / "1d",
            run.directory / "recalibrated" / f"{adapter}+recalibrated-8" / "pcm-hermes-2-3-1d",
        ]
        configs = [PeftConfig.from_pretrained(folder) for folder in folders]
        assert [getattr(config, "groups", None) for config in configs] == [groups] * 2
        expected = load_peft_weights(str(folders[0]), device="cpu")
        state = get_peft_model_state_dict(start, save_embedding_layers=False)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_a_grown_run_fits_only_the_ages_that_it_lacks(scheduled, settings, tmp_path):
    few = settings | FEW | {"repeats": 1}
    run = compare(tmp_path / "run", **(few | {"times": ("0s",)}), schedule="simulated")
    index = run.directory / "scheduled" / "grasp" / "pcm-hermes-2" / "schedule.json"
    first = json.loads(index.read_text())["ages"]["0s"]
    grown = compare(tmp_path / "run", **few, schedule="simulated")
    ages = json.loads(index.read_text())["ages"]
    assert list(ages) == ["0s", "1d"]
    assert ages["0s"] == first
    expected = {m.key: m.value for m in scheduled.measurements}
    assert all(expected[m.key] == m.value for m in grown.measurements)


def test_an_interrupted_fit_of_a_schedule_keeps_its_ages(
    scheduled, settings, tmp_path, monkeypatch
):
    fits = iter([schedule.fit_on_chips])

    def interrupted(*given, **settings):
        fit = next(fits, None)
        if fit is None:
            raise KeyboardInterrupt
        return fit(*given, **settings)

    with monkeypatch.context() as context:
        context.setattr(schedule, "fit_on_chips", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path / "run", **(settings | FEW), schedule="simulated")
    index = tmp_path / "run" / "scheduled" / "grasp" / "pcm-hermes-2" / "schedule.json"
    first = json.loads(index.read_text())["ages"]
    assert list(first) == ["0s"]
    resumed = compare(tmp_path / "run", **(settings | FEW), schedule="simulated")
    ages = json.loads(index.read_text())["ages"]
    assert list(ages) == ["0s", "1d"]
    assert ages["0s"] == first["0s"]
    assert values(resumed) == values(scheduled)


def test_names_of_variants():
    assert TreatedAdapter.parse("a+b") == ("a+b", "")
    assert TreatedAdapter.parse("a+b+recalibrated-16") == ("a+b", "recalibrated-16")
    assert TreatedAdapter.parse("a+b+recalibrated-16").examples == 16
    assert TreatedAdapter.parse("mine+scheduled") == ("mine", "scheduled")
