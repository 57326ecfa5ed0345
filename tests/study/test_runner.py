"""Carrying out a study: what is measured, in which state of the chip, and what is refused."""

import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from analog_grasp.crossbar import deploy
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study import adapters
from analog_grasp.study import evaluator as bench
from analog_grasp.study.adapters import learned_parameters, load_adapter
from analog_grasp.study.config import resolve
from analog_grasp.study.runner import prepare
from analog_grasp.study.store import Store
from analog_grasp.tasks.classification import SentenceTask

METRICS = ("pearson", "spearman")
ADAPTERS = ("grasp", "stochgrasp")
DEVICES = ("pcm-hermes-2", "rram-wan2022")
TIMES = (0.0, 86_400.0)


def records(folder: Path) -> dict:
    with Store(folder / "results.sqlite") as store:
        return {record.adapter: record for record in store.adapters()}


def fail_after(monkeypatch, owner, name: str, count: int, error: BaseException) -> None:
    """Let a function work a number of times and then raise."""
    work, calls = getattr(owner, name), iter(range(count))

    def failing(*args, **kwargs):
        if next(calls, None) is None:
            raise error
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def test_every_cell_is_measured_once(trained):
    with Store(trained / "results.sqlite") as store:
        keys = [cell.key for cell in store.measurements()]
    cells = product(METRICS, ADAPTERS, DEVICES, TIMES, ((0, 3), (1, 4)))
    expected = {("glue/stsb", m, a, "digital", d, t, *chip) for m, a, d, t, chip in cells}
    assert len(keys) == len(expected)
    assert set(keys) == expected


def test_chips_and_times_make_a_difference(trained, values):
    found = values(trained)
    assert len(set(found.values())) > len(found) * 0.6


def test_adapters_are_recorded_with_their_sizes_and_digital_scores(trained, task, asked):
    for name, numbers in {"grasp": 2, "stochgrasp": 4}.items():
        record = records(trained)[name]
        model = load_adapter(trained / record.path, asked["model"], task)
        assert record.trainable_parameters == numbers * 4 * 7  # K = 4 in each of 7 layers
        assert record.head_parameters == 16 + 1
        assert learned_parameters(model) == (record.trainable_parameters, record.head_parameters)
        assert record.digital == task.scores(model)
        assert record.train_seconds > 0


def test_a_recorded_seed_names_the_chip_by_itself(trained, values, task, asked):
    model = load_adapter(trained / "adapters" / "grasp", asked["model"], task)
    chip = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=4).drift_to("1d")
    found = values(trained)
    for metric, score in task.scores(chip.model).items():
        key = ("glue/stsb", metric, "grasp", "digital", "pcm-hermes-2", 86_400.0, 1, 4)
        assert found[key] == score


def test_saved_adapters_measure_as_they_did_when_they_were_trained(
    settings, trained, tmp_path, measure, values
):
    assert values(measure(settings, tmp_path / "run")) == values(trained)


@pytest.mark.parametrize(
    "part",
    [
        {"adapters": ("stochgrasp",)},
        {"devices": ("rram-wan2022",), "times": ("1d",)},
        {"times": ("1d", "0s"), "repeats": 1},
    ],
    ids=str,
)
def test_a_part_of_the_study_measures_the_same_bits(
    settings, trained, tmp_path, part, measure, values, saved
):
    if "adapters" in part:
        part = part | {"adapters": saved(trained, *part["adapters"])}
    found = values(measure(settings.replace(**part), tmp_path / "run"))
    whole = values(trained)
    assert 0 < len(found) < len(whole)
    assert found.items() <= whole.items()


@pytest.mark.parametrize(
    ("count", "error"), [(1, RuntimeError("stop")), (7, KeyboardInterrupt("stop"))]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    settings, trained, tmp_path, monkeypatch, count, error, measure, values
):
    with monkeypatch.context() as context:
        fail_after(context, SentenceTask, "scores", count, error)
        with pytest.raises(type(error), match="stop"):
            measure(settings, tmp_path / "run")
    kept = values(tmp_path / "run")
    # The first two scores are those of the digital models.
    assert len(kept) == max(count - 2, 0) * len(METRICS)
    assert values(measure(settings, tmp_path / "run")) == values(trained)


def test_a_run_interrupted_between_trainings_goes_on_to_the_same_bits(
    trained, tmp_path, monkeypatch, measure, values, asked
):
    settings = resolve(asked)
    with monkeypatch.context() as context:
        fail_after(context, adapters, "train", 1, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            measure(settings, tmp_path / "run")
    assert records(tmp_path / "run").keys() == {"grasp"}
    kept = (tmp_path / "run" / "adapters" / "grasp" / "adapter_model.safetensors").stat()
    found = values(measure(settings, tmp_path / "run"))
    assert (tmp_path / "run" / "adapters" / "grasp" / "adapter_model.safetensors").stat() == kept
    assert found == values(trained)


def test_a_finished_run_measures_nothing_again(settings, tmp_path, monkeypatch, measure, values):
    first = values(measure(settings, tmp_path / "run"))
    fail_after(monkeypatch, SentenceTask, "scores", 0, RuntimeError("measured again"))
    assert values(measure(settings, tmp_path / "run")) == first


def test_the_progress_counts_what_is_left_to_measure(settings, tmp_path, monkeypatch, measure):
    done = 6
    with monkeypatch.context() as context:
        fail_after(context, SentenceTask, "scores", 2 + done, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            measure(settings, tmp_path / "run")
    totals, steps = [], []

    def progress(_description, total):
        totals.append(total)
        return lambda latest="": steps.append(latest)

    measure(settings, tmp_path / "run", progress)
    # The weight errors come last, of a chip for each device.
    assert totals == [16 - done, 2]
    assert len(steps) == 16 - done + 2
    assert steps[-3].startswith("stochgrasp on rram-wan2022 at 1d, chip 4: pearson ")


@pytest.mark.parametrize(("placement", "each"), [("digital", 1), ("folded", len(ADAPTERS))])
def test_digital_adapters_share_a_chip_and_folded_ones_do_not(
    settings, tmp_path, monkeypatch, placement, each, measure, values
):
    made = []
    deploy = bench.deploy
    monkeypatch.setattr(bench, "deploy", lambda *a, **k: made.append(deploy(*a, **k)) or made[-1])
    found = values(measure(settings.replace(placement=placement), tmp_path / "run"))
    assert len(made) == each * len(DEVICES)
    assert len(found) == 16 * len(METRICS)
    assert {key.placement for key in found} == {placement}


def test_differences_between_adapters_are_paired(
    settings, trained, tmp_path, measure, values, saved
):
    twin = tmp_path / "twin"
    shutil.copytree(trained / "adapters" / "grasp", twin)
    both = (*saved(trained, "grasp"), str(twin))
    found = values(measure(settings.replace(adapters=both), tmp_path / "run"))
    of_twin = {key: value for key, value in found.items() if key.adapter == "twin"}
    assert len(of_twin) == 16
    assert all(found[key._replace(adapter="grasp")] == value for key, value in of_twin.items())


def test_folded_on_an_ideal_chip_is_the_digital_model(settings, tmp_path, measure, values):
    ideal = settings.replace(placement="folded", devices=("ideal",))
    folder = measure(ideal, tmp_path / "run")
    digital = records(folder)
    for key, value in values(folder).items():
        assert value == pytest.approx(digital[key.adapter].digital[key.metric], abs=1e-3)


def test_a_cell_without_a_score_is_named_and_all_others_are_measured(
    settings, trained, tmp_path, monkeypatch, measure, values
):
    predict, calls = SentenceTask.predict, iter(range(100))

    def broken(self, *args, **kwargs):
        # After the two digital models: the fourth cell, and the fifth.
        number = float("nan") if next(calls) in (5, 6) else 1.0
        return predict(self, *args, **kwargs) * number

    with monkeypatch.context() as context:
        context.setattr(SentenceTask, "predict", broken)
        with pytest.raises(
            ValueError,
            match=r"cell stochgrasp on pcm-hermes-2 at 1d, chip 3, cannot be scored.*NaN"
            r".* Nor can 1 other cell\.",
        ):
            measure(settings, tmp_path / "run")
    kept = values(tmp_path / "run")
    assert len(kept) == 14 * len(METRICS)
    assert kept.items() <= values(trained).items()
    assert values(measure(settings, tmp_path / "run")) == values(trained)


def test_an_adapter_of_broken_numbers_is_named(settings, trained, tmp_path, measure):
    broken = tmp_path / "broken"
    shutil.copytree(trained / "adapters" / "grasp", broken)
    path = broken / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"adapter broken cannot be scored.*NaN"):
        measure(settings.replace(adapters=(str(broken),)), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"adapters": ("grsp",)}, ValueError, "no adapter 'grsp': did you mean 'grasp'"),
        ({"adapters": ("no/such",)}, FileNotFoundError, "no/such holds no adapter"),
        ({"devices": ("pcm-hermes-3",)}, ValueError, "pcm-hermes-3"),
        ({"task": "revews"}, ValueError, "no task 'revews'"),
        ({"model": "no/such/model"}, FileNotFoundError, "no/such/model"),
        ({"groups": 17}, ValueError, "groups is 17.*16 input features"),
        ({"noise_target": "ideal@1d"}, ValueError, "no spread to learn"),
    ],
)
def test_what_is_wrong_is_said_before_the_folder_is_taken(
    tmp_path, monkeypatch, change, error, sentence, asked
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=sentence):
        prepare(resolve(asked | change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_saved_adapters_of_one_name_are_refused(settings, trained, tmp_path, saved):
    other = tmp_path / "grasp"
    shutil.copytree(trained / "adapters" / "grasp", other)
    both = (*saved(trained, "grasp"), str(other))
    with pytest.raises(ValueError, match="have the same name"):
        prepare(settings.replace(adapters=both), tmp_path / "run")


def test_an_adapter_for_another_task_is_refused(settings, tmp_path, task):
    with pytest.raises(ValueError, match=r"does not fit the model .* with the task reviews"):
        prepare(settings.replace(task="reviews", data_dir=None), tmp_path / "run")


def test_a_loaded_adapter_is_ready_to_be_measured(trained, asked, task):
    again = replace(task, name="again")
    model = load_adapter(trained / "adapters" / "stochgrasp", asked["model"], again)
    assert isinstance(model, PeftModel)
    assert not model.training
    assert again.scores(model) == again.scores(model) == records(trained)["stochgrasp"].digital


def test_a_run_keeps_a_log(trained):
    lines = [line[20:] for line in (trained / "run.log").read_text().splitlines()]
    assert lines[:3] == ["training grasp", "training stochgrasp", "measuring 16 of 16 cells"]
    assert lines[3 + 16] == "weight errors"
    assert len(lines) == 3 + 16 + 3
    assert re.fullmatch(
        r"16 of 16, 0:00:00 left: stochgrasp on rram-wan2022 at 1d, chip 4: "
        r"pearson -?\d\.\d{4}, spearman -?\d\.\d{4}",
        lines[3 + 15],
    )


def test_chips_are_drawn_until_the_intervals_are_narrow(settings, tmp_path, measure, values):
    few = {"devices": ("pcm-hermes-2",), "times": ("0s",), "adapters": settings.model.adapters[:1]}
    first = values(measure(settings.replace(**few), tmp_path / "two"))
    narrow = few | {"until_ci": 1e-6, "repeats_limit": 6}
    found = values(measure(settings.replace(**narrow), tmp_path / "run"))
    assert {key.repeat for key in found} == set(range(6))
    assert first.items() <= found.items()
    wide = few | {"until_ci": 1e4}
    found = values(measure(settings.replace(**wide), tmp_path / "wide"))
    assert {key.repeat for key in found} == {0, 1}
