"""Runner: what is measured, in which state of the chip; resumed, grown and invalid runs."""

import math
import re
import shutil
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from analog_grasp.costs.estimate import read_costs
from analog_grasp.crossbar import deploy
from analog_grasp.devices.card import DeviceCard
from analog_grasp.study import preparation, runner, trained_adapters
from analog_grasp.study.api import report
from analog_grasp.study.checks import check_costs
from analog_grasp.study.config import resolve
from analog_grasp.study.records import read_layers
from analog_grasp.study.store import Store
from analog_grasp.study.study import prepare
from analog_grasp.study.trained_adapters import learned_parameters, load_adapter
from analog_grasp.tasks.classification import SentenceTask

METRICS = ("pearson", "spearman")
ADAPTERS = ("grasp", "stochgrasp")
DEVICES = ("pcm-hermes-2", "rram-wan2022")
TIMES = (0.0, 86_400.0)
# Without the settings of the training, which have no effect on saved adapters.
UNTRAINED = {"groups": None, "epochs": None, "batch_size": None, "then": None}


def records(folder: Path) -> dict:
    with Store(folder / "results.sqlite") as store:
        return {record.adapter: record for record in store.adapters()}


def fail_after(monkeypatch, owner, name: str, count: int, error: BaseException) -> None:
    """Make a function raise after a number of successful calls."""
    work, calls = getattr(owner, name), iter(range(count))

    def failing(*args, **kwargs):
        if next(calls, None) is None:
            raise error
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def test_every_cell_is_measured_once(finished_run):
    with Store(finished_run / "results.sqlite") as store:
        keys = [cell.key for cell in store.measurements()]
    cells = product(METRICS, ADAPTERS, DEVICES, TIMES, ((0, 3), (1, 4)))
    expected = {("glue/stsb", m, a, 0, "digital", d, t, *chip) for m, a, d, t, chip in cells}
    assert len(keys) == len(expected)
    assert set(keys) == expected


def test_chips_and_times_make_a_difference(finished_run, read_values):
    found = read_values(finished_run)
    assert len(set(found.values())) > len(found) * 0.6


def test_adapters_are_recorded_with_their_sizes_and_digital_scores(finished_run, task, settings):
    for name, per_group in {"grasp": 2, "stochgrasp": 4}.items():
        record = records(finished_run)[name]
        model = load_adapter(finished_run / record.path, settings["model"], task)
        assert record.trainable_parameters == per_group * 4 * 7  # K = 4 in each of 7 layers
        assert record.head_parameters == 16 + 1
        assert learned_parameters(model) == (record.trainable_parameters, record.head_parameters)
        assert record.digital == task.scores(model)
        assert record.train_seconds > 0


def test_a_recorded_seed_names_the_chip_by_itself(finished_run, read_values, task, settings):
    model = load_adapter(finished_run / "adapters" / "grasp", settings["model"], task)
    chip = deploy(model, DeviceCard.load("pcm-hermes-2")).program(seed=4).drift_to("1d")
    found = read_values(finished_run)
    for metric, score in task.scores(chip.model).items():
        key = ("glue/stsb", metric, "grasp", 0, "digital", "pcm-hermes-2", 86_400.0, 1, 4)
        assert found[key] == score


def test_saved_adapters_measure_as_they_did_when_they_were_trained(
    config, finished_run, tmp_path, run_study, read_values
):
    assert read_values(run_study(config, tmp_path / "run")) == read_values(finished_run)


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
    config, finished_run, tmp_path, part, run_study, read_values, saved_folders
):
    if "adapters" in part:
        part = part | {"adapters": saved_folders(finished_run, *part["adapters"])}
    found = read_values(run_study(config.replace(**part), tmp_path / "run"))
    whole = read_values(finished_run)
    assert 0 < len(found) < len(whole)
    assert found.items() <= whole.items()


def test_a_run_interrupted_between_trainings_resumes_to_the_same_bits(
    finished_run, tmp_path, monkeypatch, run_study, read_values, settings
):
    config = resolve(settings)
    with monkeypatch.context() as context:
        fail_after(context, trained_adapters, "train", 1, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            run_study(config, tmp_path / "run")
    assert records(tmp_path / "run").keys() == {"grasp"}
    kept = (tmp_path / "run" / "adapters" / "grasp" / "adapter_model.safetensors").stat()
    found = read_values(run_study(config, tmp_path / "run"))
    assert (tmp_path / "run" / "adapters" / "grasp" / "adapter_model.safetensors").stat() == kept
    assert found == read_values(finished_run)


def test_a_finished_run_measures_nothing_again(
    config, tmp_path, monkeypatch, run_study, read_values
):
    first = read_values(run_study(config, tmp_path / "run"))
    fail_after(monkeypatch, SentenceTask, "scores", 0, RuntimeError("measured again"))
    assert read_values(run_study(config, tmp_path / "run")) == first


def test_the_progress_counts_what_is_left_to_measure(config, tmp_path, monkeypatch, run_study):
    done = 6
    with monkeypatch.context() as context:
        fail_after(context, SentenceTask, "scores", 2 + done, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            run_study(config, tmp_path / "run")
    totals, steps = [], []

    def progress(_description, total):
        totals.append(total)
        return lambda latest="": steps.append(latest)

    run_study(config, tmp_path / "run", progress)
    # The weight errors come last, of a chip for each device.
    assert totals == [16 - done, 2]
    assert len(steps) == 16 - done + 2
    assert steps[-3].startswith("stochgrasp on rram-wan2022 at 1d, chip 4: pearson ")


@pytest.mark.parametrize(("placement", "each"), [("digital", 1), ("folded", len(ADAPTERS))])
def test_digital_adapters_share_a_chip_and_folded_ones_do_not(
    config, tmp_path, monkeypatch, placement, each, run_study, read_values
):
    made = []
    monkeypatch.setattr(
        "analog_grasp.crossbar.deploy", lambda *a, **k: made.append(deploy(*a, **k)) or made[-1]
    )
    found = read_values(run_study(config.replace(placement=placement), tmp_path / "run"))
    # One more per device, for the weight errors of the layers.
    assert len(made) == (each + 1) * len(DEVICES)
    assert len(found) == 16 * len(METRICS)
    assert {key.placement for key in found} == {placement}


def test_differences_between_adapters_are_paired(
    config, finished_run, tmp_path, run_study, read_values, saved_folders
):
    twin = tmp_path / "twin"
    shutil.copytree(finished_run / "adapters" / "grasp", twin)
    both = (*saved_folders(finished_run, "grasp"), str(twin))
    found = read_values(run_study(config.replace(adapters=both), tmp_path / "run"))
    of_twin = {key: value for key, value in found.items() if key.adapter == "twin"}
    assert len(of_twin) == 16
    assert all(found[key._replace(adapter="grasp")] == value for key, value in of_twin.items())


def test_folded_on_an_ideal_chip_is_the_digital_model(config, tmp_path, run_study, read_values):
    ideal = config.replace(placement="folded", devices=("ideal",))
    folder = run_study(ideal, tmp_path / "run")
    digital = records(folder)
    for key, value in read_values(folder).items():
        assert value == pytest.approx(digital[key.adapter].digital[key.metric], abs=1e-3)


def test_a_cell_without_a_score_is_named_and_all_others_are_measured(
    config, finished_run, tmp_path, monkeypatch, run_study, read_values
):
    predict, calls = SentenceTask.predict, iter(range(100))

    def broken(self, *args, **kwargs):
        # After the two digital models: the fourth cell, and the fifth.
        factor = float("nan") if next(calls) in (5, 6) else 1.0
        return predict(self, *args, **kwargs) * factor

    with monkeypatch.context() as context:
        context.setattr(SentenceTask, "predict", broken)
        with pytest.raises(
            ValueError,
            match=r"cell stochgrasp on pcm-hermes-2 at 1d, chip 3, cannot be scored.*NaN"
            r".* Nor can 1 other cell\.",
        ):
            run_study(config, tmp_path / "run")
    kept = read_values(tmp_path / "run")
    assert len(kept) == 14 * len(METRICS)
    assert kept.items() <= read_values(finished_run).items()
    assert read_values(run_study(config, tmp_path / "run")) == read_values(finished_run)


def test_an_adapter_with_nan_parameters_is_named(config, finished_run, tmp_path, run_study):
    broken = tmp_path / "broken"
    shutil.copytree(finished_run / "adapters" / "grasp", broken)
    path = broken / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"adapter broken cannot be scored.*NaN"):
        run_study(config.replace(adapters=(str(broken),)), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"adapters": ("grsp",), "groups": None}, ValueError, "Unknown adapter 'grsp'"),
        ({"adapters": ("no/such",), **UNTRAINED}, FileNotFoundError, "no/such holds no adapter"),
        ({"devices": ("pcm-hermes-3",)}, ValueError, "pcm-hermes-3"),
        ({"task": "revews"}, ValueError, "Unknown task 'revews'"),
        ({"model": "no/such/model"}, FileNotFoundError, "no/such/model"),
        ({"groups": 17}, ValueError, "groups is 17.*16 input features"),
        ({"noise_target": "ideal@1d"}, ValueError, "noise_target is 'ideal@1d'"),
    ],
)
def test_an_invalid_request_raises_before_the_folder_is_created(
    tmp_path, monkeypatch, change, error, sentence, settings
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=sentence):
        prepare(resolve(settings | change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_saved_adapters_with_the_same_name_raise(config, finished_run, tmp_path, saved_folders):
    other = tmp_path / "grasp"
    shutil.copytree(finished_run / "adapters" / "grasp", other)
    both = (*saved_folders(finished_run, "grasp"), str(other))
    with pytest.raises(ValueError, match="have the same name"):
        prepare(config.replace(adapters=both), tmp_path / "run")


def test_a_run_keeps_a_log(finished_run):
    lines = [line[20:] for line in (finished_run / "run.log").read_text().splitlines()]
    assert lines[:3] == ["training grasp", "training stochgrasp", "measuring 16 of 16 cells"]
    assert lines[3 + 16] == "weight errors"
    assert len(lines) == 3 + 16 + 3
    assert re.fullmatch(
        r"16 of 16, 0:00:00 left: stochgrasp on rram-wan2022 at 1d, chip 4: "
        r"pearson -?\d\.\d{4}, spearman -?\d\.\d{4}",
        lines[3 + 15],
    )


def test_chips_are_added_until_the_intervals_are_narrow(config, tmp_path, run_study, read_values):
    few = {"devices": ("pcm-hermes-2",), "times": ("0s",), "adapters": config.model.adapters[:1]}
    first = read_values(run_study(config.replace(**few), tmp_path / "two"))
    narrow = few | {"until_ci": 1e-6, "repeats_limit": 7}
    found = read_values(run_study(config.replace(**narrow), tmp_path / "run"))
    assert {key.repeat for key in found} == set(range(7))
    assert first.items() <= found.items()
    wide = few | {"until_ci": 1e4}
    found = read_values(run_study(config.replace(**wide), tmp_path / "wide"))
    assert {key.repeat for key in found} == set(range(5))


def test_a_finished_run_grows_without_measuring_again(
    config, finished_run, tmp_path, monkeypatch, run_study, read_values
):
    small = {"devices": ("pcm-hermes-2",), "times": ("0s",), "repeats": 1}
    first = read_values(run_study(config.replace(**small), tmp_path / "run"))
    scored = []
    scores = SentenceTask.scores
    monkeypatch.setattr(SentenceTask, "scores", lambda *args: scored.append(args) or scores(*args))
    for change, cells in (
        ({"repeats": 2}, 1),
        ({"times": ("1d",)}, 2),  # the time of the run stays
        ({"devices": ("rram-wan2022",)}, 4),
    ):
        small |= change
        scored.clear()
        found = read_values(run_study(config.replace(**small), tmp_path / "run"))
        assert len(scored) == cells * len(ADAPTERS)
        assert first.items() <= found.items()
    assert found == read_values(finished_run)
    with Store(tmp_path / "run" / "results.sqlite") as store:
        assert len(store.measurements()) == 16 * len(METRICS)
    layers = read_layers(tmp_path / "run" / "layers.csv")
    assert {(row.device, row.time_s) for row in layers} == set(product(DEVICES, TIMES))
    fewer = config.replace(devices=DEVICES[:1], repeats=1)
    assert prepare(fewer, tmp_path / "run").config.run.repeats == 2


def test_a_moved_tree_resumes(config, finished_run, tmp_path, monkeypatch, run_study, read_values):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(finished_run / "adapters", here / "adapters")

    def asked(tree: Path) -> dict:
        shutil.copytree(config.model.name, tree / "bert", dirs_exist_ok=True)
        names = tuple(str(tree / "adapters" / name) for name in ADAPTERS)
        return {"adapters": names, "model": str(tree / "bert"), "devices": (str(tree / "my.toml"),)}

    card = Path(runner.__file__).parents[2] / "device_models" / "pcm-hermes-2.toml"
    (here / "my.toml").write_text(card.read_text())
    run_study(config.replace(**asked(here)), here / "run")
    here.rename(there)
    fail_after(monkeypatch, SentenceTask, "scores", 0, RuntimeError("measured again"))
    run_study(config.replace(**asked(there)), there / "run")
    assert records(there / "run")["grasp"].path == "../adapters/grasp"
    whole = read_values(finished_run).items()
    expected = {key: value for key, value in whole if key.device == "pcm-hermes-2"}
    assert read_values(there / "run") == expected


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ({"pearson": 0.5}, r"scores of the task glue/stsb lack spearman \(they hold pearson\)"),
        ({"pearson": 0.5, "spearman": math.nan}, "spearman on the task glue/stsb is nan"),
        ({"pearson": math.inf, "spearman": 0.5}, "pearson on the task glue/stsb is inf"),
    ],
)
def test_scores_that_lack_a_metric_or_are_not_finite_end_the_run(
    config, tmp_path, monkeypatch, run_study, scores, problem
):
    monkeypatch.setattr(SentenceTask, "scores", lambda *_: scores)
    with pytest.raises(ValueError, match=f"grasp cannot be scored before .*{problem}"):
        run_study(config, tmp_path / "run")
    monkeypatch.setattr(preparation, "check_metrics", lambda *_: None)
    with pytest.raises(ValueError, match=f"cell grasp on .* cannot be scored: The {problem}"):
        run_study(config, tmp_path / "run2")


def test_processes_of_torchrun_raise_instead_of_waiting_for_each_other(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"started in 2 processes by torchrun.*--workers"):
        prepare(resolve(settings), tmp_path / "run")


def test_costs_of_a_run(config, run_study, tmp_path):
    """One cost model per device; with another one, nothing is measured again."""
    asked = config.replace(repeats=1, times=("0s",), costs=("hermes-1phase", "neurram"), tiles=3)
    run_study(asked, tmp_path / "run")
    rows = read_costs(tmp_path / "run" / "costs.csv")
    columns = {(row.adapter, row.device, row.cost_model) for row in rows}
    assert columns == {
        (adapter, device, name)
        for adapter in ("grasp", "stochgrasp")
        for device, name in (("pcm-hermes-2", "hermes-1phase"), ("rram-wan2022", "neurram"))
    }
    shared = [row.value for row in rows if row.quantity == "tiles rewritten per batch"]
    assert all(shared)
    results = report(tmp_path / "run")
    assert {"costs.csv", "energy_by_part.pdf"} <= {path.name for path in results.files}
    run_study(asked.replace(costs=("ibm-34-tile",)), tmp_path / "run")
    again = read_costs(tmp_path / "run" / "costs.csv")
    assert {row.cost_model for row in again} == {"ibm-34-tile"}
    assert len(again) >= len(rows) - 4


def test_one_cost_model_or_one_per_device():
    check_costs(("neurram",), 3)
    check_costs(("neurram", "neurram"), 2)
    with pytest.raises(ValueError, match="names 2 cost models for 3 devices"):
        check_costs(("neurram", "neurram"), 3)
    with pytest.raises(ValueError, match="Unknown cost model 'pcm'"):
        check_costs(("pcm",), 1)
