"""Carrying out a study, on a tiny model and a task whose scores show every bit.

The task is a regression: correlations, unlike accuracies, change with any change of a logit.
"""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from analog_grasp.crossbar import deploy
from analog_grasp.devices import DeviceCard
from analog_grasp.experiments import (
    Settings,
    learned_parameters,
    load_adapter,
    prepare,
    run,
    runner,
)
from analog_grasp.experiments.store import Store
from analog_grasp.tasks import Task, builtin, load_base_model, registry, tokenizer_for

METRICS = ("pearson", "spearman")
ADAPTERS = ("grasp", "stochgrasp")
DEVICES = ("pcm-hermes-2", "rram-wan2022")
TIMES = (0.0, 86_400.0)


def lengths(_data_dir=None) -> Task:
    """How long is the sentence?"""
    reviews = builtin.reviews(train=12, validation=9)

    def measured(rows: Dataset) -> Dataset:
        text = rows["text"][:]
        return Dataset.from_dict({"text": text, "label": [len(line) / 50 for line in text]})

    return Task("lengths", measured(reviews.train), measured(reviews.validation), (), METRICS)


@pytest.fixture(autouse=True, scope="module")
def known_task():
    """The task by its name, for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._LOADERS, "lengths", lengths)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """The folder of a tiny model that reads with the built-in model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizer_for(load_base_model(None, lengths()))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """The folder of a whole run, from training to the last cell, that nothing has disturbed."""
    return measure(Settings(**asked(tiny)), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def settings(tiny, trained) -> Settings:
    """The same study with the adapters as that run has saved them."""
    return Settings(**asked(tiny) | {"adapters": saved(trained)})


def asked(model: str) -> dict:
    return {
        "model": model,
        "task": "lengths",
        "adapters": ADAPTERS,
        "devices": DEVICES,
        "times": ("0s", "1d"),
        "repeats": 2,
        "groups": 4,
        "epochs": 1,
        "batch_size": 6,
        "seed": 3,
    }


def saved(run_folder: Path, *names: str) -> tuple[str, ...]:
    return tuple(str(run_folder / "adapters" / name) for name in names or ADAPTERS)


def measure(settings: Settings, folder: Path, progress=runner.silent) -> Path:
    run(prepare(settings, folder), progress)
    return folder


def values(folder: Path) -> dict:
    with Store(folder / "results.sqlite") as store:
        return {cell.key: cell.value for cell in store.measurements()}


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
    expected = {("lengths", m, a, "digital", d, t, *chip) for m, a, d, t, chip in cells}
    assert len(keys) == len(expected)
    assert set(keys) == expected


def test_chips_and_times_make_a_difference(trained):
    found = values(trained)
    assert len(set(found.values())) > len(found) * 0.6


def test_adapters_are_recorded_with_their_sizes_and_digital_scores(trained, tiny):
    for name, numbers in {"grasp": 2, "stochgrasp": 4}.items():
        record = records(trained)[name]
        model = load_adapter(trained / record.path, tiny, lengths())
        assert record.trainable_parameters == numbers * 4 * 7  # K = 4 in each of 7 layers
        assert record.head_parameters == 16 + 1
        assert learned_parameters(model) == (record.trainable_parameters, record.head_parameters)
        assert record.digital == lengths().scores(model)
        assert record.train_seconds > 0


def test_a_recorded_seed_names_the_chip_by_itself(trained, tiny):
    model = load_adapter(trained / "adapters" / "grasp", tiny, lengths())
    chip = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=4).drift_to("1d")
    found = values(trained)
    for metric, score in lengths().scores(chip.model).items():
        key = ("lengths", metric, "grasp", "digital", "pcm-hermes-2", 86_400.0, 1, 4)
        assert found[key] == score


def test_saved_adapters_measure_as_they_did_when_they_were_trained(settings, trained, tmp_path):
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
def test_a_part_of_the_study_measures_the_same_bits(settings, trained, tmp_path, part):
    if "adapters" in part:
        part = part | {"adapters": saved(trained, *part["adapters"])}
    found = values(measure(settings.model_copy(update=part), tmp_path / "run"))
    whole = values(trained)
    assert 0 < len(found) < len(whole)
    assert found.items() <= whole.items()


@pytest.mark.parametrize(
    ("count", "error"), [(1, RuntimeError("stop")), (7, KeyboardInterrupt("stop"))]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    settings, trained, tmp_path, monkeypatch, count, error
):
    with monkeypatch.context() as context:
        fail_after(context, Task, "scores", count, error)
        with pytest.raises(type(error), match="stop"):
            measure(settings, tmp_path / "run")
    kept = values(tmp_path / "run")
    # The first two scores are those of the digital models.
    assert len(kept) == max(count - 2, 0) * len(METRICS)
    assert values(measure(settings, tmp_path / "run")) == values(trained)


def test_a_run_interrupted_between_trainings_goes_on_to_the_same_bits(
    tiny, trained, tmp_path, monkeypatch
):
    settings = Settings(**asked(tiny))
    with monkeypatch.context() as context:
        fail_after(context, runner, "train", 1, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            measure(settings, tmp_path / "run")
    assert records(tmp_path / "run").keys() == {"grasp"}
    kept = (tmp_path / "run" / "adapters" / "grasp" / "adapter_model.safetensors").stat()
    found = values(measure(settings, tmp_path / "run"))
    assert (tmp_path / "run" / "adapters" / "grasp" / "adapter_model.safetensors").stat() == kept
    assert found == values(trained)


def test_a_finished_run_measures_nothing_again(settings, tmp_path, monkeypatch):
    first = values(measure(settings, tmp_path / "run"))
    fail_after(monkeypatch, Task, "scores", 0, RuntimeError("measured again"))
    assert values(measure(settings, tmp_path / "run")) == first


def test_the_progress_counts_what_is_left_to_measure(settings, tmp_path, monkeypatch):
    done = 6
    with monkeypatch.context() as context:
        fail_after(context, Task, "scores", 2 + done, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            measure(settings, tmp_path / "run")
    totals, steps = [], []

    def progress(_description, total):
        totals.append(total)
        return lambda: steps.append(1)

    measure(settings, tmp_path / "run", progress)
    assert totals == [16 - done]
    assert len(steps) == 16 - done


@pytest.mark.parametrize(("placement", "each"), [("digital", 1), ("folded", len(ADAPTERS))])
def test_digital_adapters_share_a_chip_and_folded_ones_do_not(
    settings, tmp_path, monkeypatch, placement, each
):
    made = []
    deploy = runner.deploy
    monkeypatch.setattr(runner, "deploy", lambda *a, **k: made.append(deploy(*a, **k)) or made[-1])
    found = values(measure(settings.model_copy(update={"placement": placement}), tmp_path / "run"))
    assert len(made) == each * len(DEVICES)
    assert len(found) == 16 * len(METRICS)
    assert {key.placement for key in found} == {placement}


def test_differences_between_adapters_are_paired(settings, trained, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(trained / "adapters" / "grasp", twin)
    adapters = (*saved(trained, "grasp"), str(twin))
    found = values(measure(settings.model_copy(update={"adapters": adapters}), tmp_path / "run"))
    of_twin = {key: value for key, value in found.items() if key.adapter == "twin"}
    assert len(of_twin) == 16
    assert all(found[key._replace(adapter="grasp")] == value for key, value in of_twin.items())


def test_folded_on_an_ideal_chip_is_the_digital_model(settings, tmp_path):
    ideal = settings.model_copy(update={"placement": "folded", "devices": ("ideal",)})
    folder = measure(ideal, tmp_path / "run")
    digital = records(folder)
    for key, value in values(folder).items():
        assert value == pytest.approx(digital[key.adapter].digital[key.metric], abs=1e-3)


def test_an_adapter_changed_after_it_was_measured_is_refused(tiny, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "adapters" / "grasp" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, path)
    with pytest.raises(
        ValueError, match=r"adapters/grasp is not the one that this run has measured"
    ):
        measure(Settings(**asked(tiny)), folder)
    assert values(folder) == values(trained)


def test_an_adapter_that_has_gone_is_refused(tiny, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "adapters" / "grasp")
    with pytest.raises(ValueError, match="not the one that this run has measured: put it back"):
        measure(Settings(**asked(tiny)), folder)


def test_a_cell_without_a_score_is_named_and_the_others_are_kept(settings, tmp_path, monkeypatch):
    predict, calls = Task.predict, iter(range(5))

    def broken(self, *args, **kwargs):
        return predict(self, *args, **kwargs) * (
            1.0 if next(calls, None) is not None else float("nan")
        )

    monkeypatch.setattr(Task, "predict", broken)
    with pytest.raises(
        ValueError, match=r"cell stochgrasp on pcm-hermes-2 at 1d, chip 3, cannot be scored.*NaN"
    ):
        measure(settings, tmp_path / "run")
    assert len(values(tmp_path / "run")) == 3 * len(METRICS)


def test_an_adapter_of_broken_numbers_is_named(settings, trained, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained / "adapters" / "grasp", broken)
    path = broken / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"adapter broken cannot be scored.*NaN"):
        measure(settings.model_copy(update={"adapters": (str(broken),)}), tmp_path / "run")


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
    tiny, tmp_path, monkeypatch, change, error, sentence
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=sentence):
        prepare(Settings(**asked(tiny) | change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_saved_adapters_of_one_name_are_refused(settings, trained, tmp_path):
    other = tmp_path / "grasp"
    shutil.copytree(trained / "adapters" / "grasp", other)
    adapters = (*saved(trained, "grasp"), str(other))
    with pytest.raises(ValueError, match="have the same name"):
        prepare(settings.model_copy(update={"adapters": adapters}), tmp_path / "run")


def test_an_adapter_for_another_task_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=r"does not fit the model .* with the task reviews"):
        prepare(settings.model_copy(update={"task": "reviews"}), tmp_path / "run")


def test_a_loaded_adapter_is_ready_to_be_measured(trained, tiny):
    task = replace(lengths(), name="again")
    model = load_adapter(trained / "adapters" / "stochgrasp", tiny, task)
    assert isinstance(model, PeftModel)
    assert not model.training
    assert task.scores(model) == task.scores(model) == records(trained)["stochgrasp"].digital
