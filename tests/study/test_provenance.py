"""Provenance: run folders, cards given in Python, and cells whose origin has changed."""

import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study import study
from analog_grasp.study.api import compare
from analog_grasp.study.config import StudyConfig, flat, resolve
from analog_grasp.study.provenance import (
    adapter_hash,
    card_toml,
    check_same,
    open_run,
    read_run,
    with_card_files,
)
from analog_grasp.study.runner import measured_cells
from analog_grasp.study.store import Store
from analog_grasp.study.study import prepare
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.reviews import reviews

TASK = reviews(train=4, validation=4)
CONFIG = StudyConfig().replace(devices=("ideal",), repeats=3, seed=7, then="none")


def test_a_run_records_settings_versions_and_seeds(tmp_path):
    folder = tmp_path / "deep" / "run"
    open_run(folder, CONFIG, TASK)
    config, records = read_run(folder)
    assert config == CONFIG
    assert records["seeds"] == {"trainings": [7], "chips": [7, 8, 9]}
    assert records["versions"]["torch"] == version("torch")
    assert {"python", "analog-grasp", "aihwkit"} <= records["versions"].keys()


def test_the_same_run_resumes_and_its_record_is_kept(tmp_path):
    open_run(tmp_path, CONFIG, TASK)
    record = (tmp_path / "run.toml").read_bytes()
    (tmp_path / "results.sqlite").touch()
    open_run(tmp_path, CONFIG, TASK)
    assert (tmp_path / "run.toml").read_bytes() == record


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 8}, "another run, whose seed is 7 and not 8"),
        ({"adapters": ("grasp",)}, r"another run, whose adapters is .*'stochgrasp'"),
        ({"model": "mine"}, "another run, whose model is None and not 'mine'"),
        ({"adc_bits": 6, "repeats": 4}, "another run, whose adc_bits is None and not 6"),
    ],
)
def test_another_run_raises_with_the_first_difference(tmp_path, change, sentence):
    open_run(tmp_path, CONFIG, TASK)
    with pytest.raises(ValueError, match=sentence):
        open_run(tmp_path, CONFIG.replace(**change), TASK)


def test_the_engine_may_change_when_a_run_resumes(tmp_path):
    open_run(tmp_path, CONFIG, TASK)
    changed = CONFIG.replace(workers=4, engine="ray", until_ci=0.5)
    open_run(tmp_path, changed, TASK)
    assert read_run(tmp_path)[0] == changed


def test_a_run_grows_by_devices_times_and_repeats(tmp_path):
    open_run(tmp_path, CONFIG, TASK)
    asked = CONFIG.replace(devices=("rram-wan2022",), times=("10y", "1d"), repeats=2)
    grown = open_run(tmp_path, asked, TASK)
    assert grown.hardware.devices == ("ideal", "rram-wan2022")
    assert grown.run.times == (*CONFIG.run.times, "10y")
    assert grown.run.repeats == 3
    assert read_run(tmp_path)[0] == grown
    record = (tmp_path / "run.toml").read_bytes()
    assert open_run(tmp_path, CONFIG, TASK) == grown
    assert (tmp_path / "run.toml").read_bytes() == record


def test_each_device_keeps_its_cost_model(tmp_path):
    costs = {"rram-wan2022": "neurram", "pcm-hermes-2": "hermes-1phase", "ideal": "hermes-4phase"}

    def asked(*devices):
        return CONFIG.replace(devices=devices, costs=tuple(costs[name] for name in devices))

    open_run(tmp_path, asked("rram-wan2022", "pcm-hermes-2"), TASK)
    open_run(tmp_path, asked("pcm-hermes-2", "rram-wan2022"), TASK)
    grown = open_run(tmp_path, asked("pcm-hermes-2", "ideal"), TASK)
    assert dict(zip(grown.hardware.devices, grown.run.costs, strict=True)) == costs
    one = open_run(tmp_path, CONFIG.replace(costs=("neurram",)), TASK)
    assert one.run.costs == ("neurram",)
    with pytest.raises(ValueError, match="no cost model for rram-wan2022, a device that the run"):
        open_run(tmp_path, asked("pcm-hermes-2", "ideal"), TASK)


def test_other_versions_are_stated_when_a_run_resumes(tmp_path):
    open_run(tmp_path, CONFIG, TASK)
    path = tmp_path / "run.toml"
    path.write_text(path.read_text().replace(f'torch = "{version("torch")}"', 'torch = "1.0.0"'))
    with pytest.warns(UserWarning, match=r"begun with other versions \(torch 1.0.0 to"):
        open_run(tmp_path, CONFIG, TASK)


@pytest.mark.parametrize("content", ["garbage", "[]"])
def test_a_damaged_adapter_configuration_raises_with_its_path(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config.json is damaged: restore it"):
        adapter_hash(tmp_path)


def test_devices_that_would_share_a_folder_raise(tmp_path):
    path = card_file(tmp_path, ('name = "mine"', 'name = "gaussian-0.1"'))
    with pytest.raises(ValueError, match="must differ by more than ':' and '-'"):
        CONFIG.replace(devices=("gaussian:0.1", str(path))).hardware.cards()


def test_a_moved_card_file_is_the_same_device_and_another_of_its_name_raises(tmp_path):
    here, there, other = (tmp_path / name for name in ("here", "there", "other"))
    for folder in (here, other):
        folder.mkdir()
        card_file(folder)
    mine = CONFIG.replace(devices=(str(here / "mine.toml"),))
    open_run(tmp_path / "run", mine, TASK)
    with pytest.raises(ValueError, match="have the same name"):
        open_run(tmp_path / "run", CONFIG.replace(devices=(str(other / "mine.toml"),)), TASK)
    assert read_run(tmp_path / "run")[0] == mine
    here.rename(there)
    moved = CONFIG.replace(devices=(str(there / "mine.toml"),))
    assert open_run(tmp_path / "run", moved, TASK) == moved


def test_a_folder_of_other_files_raises_and_is_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="files that do not belong to a run"):
        open_run(tmp_path, CONFIG, TASK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex holds files that do not belong to a run"):
        open_run(tmp_path / "thesis.tex", CONFIG, TASK)


def test_reading_a_folder_without_a_run_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: it should hold run\.toml"):
        read_run(tmp_path)


def test_reading_a_damaged_run_raises(tmp_path):
    open_run(tmp_path, CONFIG, TASK)
    (tmp_path / "run.toml").write_text("repeats = [")
    with pytest.raises(ValueError, match=r"run\.toml is not valid TOML"):
        read_run(tmp_path)


def test_a_missing_adapter_raises(finished_run, tmp_path, run_study, settings):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    shutil.rmtree(folder / "adapters" / "grasp")
    with pytest.raises(
        ValueError, match="differs from the one that this run has measured: restore it"
    ):
        run_study(resolve(settings), folder)


def test_an_adapter_changed_after_it_was_measured_raises(
    finished_run, tmp_path, run_study, read_values, settings
):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    path = folder / "adapters" / "grasp" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, path)
    with pytest.raises(
        ValueError, match=r"adapters/grasp differs from the one that this run has measured"
    ):
        run_study(resolve(settings), folder)
    assert read_values(folder) == read_values(finished_run)


def test_saved_adapters_are_loaded_once(config, tmp_path, monkeypatch, run_study):
    loads = []
    load = study.load_with_hash
    monkeypatch.setattr(study, "load_with_hash", lambda *a: loads.append(a[0]) or load(*a))
    run_study(config, tmp_path / "run")
    assert sorted(loads) == sorted(map(Path, config.model.adapters))


def card_file(folder: Path, change: tuple[str, str] = ("", "")) -> str:
    path = folder / "mine.toml"
    text = (Path(study.__file__).parents[2] / "device_models/pcm-hermes-2.toml").read_text()
    text = text.replace('name = "pcm-hermes-2"', 'name = "mine"')
    path.write_text(text.replace(*change) if change[0] else text)
    return str(path)


def test_a_card_file_is_called_by_its_name(config, finished_run, tmp_path, run_study, read_values):
    mine = config.replace(devices=(card_file(tmp_path),))
    found = read_values(run_study(mine, tmp_path / "run"))
    shipped = {key._replace(device="mine"): v for key, v in read_values(finished_run).items()
               if key.device == "pcm-hermes-2"}  # fmt: skip
    assert found == shipped


def test_devices_with_the_same_name_raise(config, tmp_path):
    (tmp_path / "other").mkdir()
    both = (card_file(tmp_path), card_file(tmp_path / "other"))
    with pytest.raises(ValueError, match="a device is called by the name in its card"):
        prepare(config.replace(devices=both), tmp_path / "run")


def test_an_edited_card_is_measured_again_and_old_cells_are_kept(
    config, tmp_path, run_study, read_values
):
    mine = config.replace(devices=(card_file(tmp_path),), repeats=1)
    first = read_values(run_study(mine, tmp_path / "run"))
    card_file(tmp_path, ("[0.16603222,", "[0.5,"))
    second = read_values(run_study(mine, tmp_path / "run"))
    assert second.keys() == first.keys()
    assert all(second[key] != first[key] for key in first)
    card_file(tmp_path, ('title = "', 'title = "Once more: '))
    steps = []
    run_study(mine, tmp_path / "run", lambda *stage: steps.append(stage))
    assert steps == []
    assert read_values(tmp_path / "run") == first


@pytest.mark.parametrize("setting", ["then", "injection", "noise_target", "converters"])
def test_a_run_does_not_resume_with_an_edited_card_of_its_training(config, tmp_path, setting):
    path = card_file(tmp_path)
    where = path if setting == "converters" else f"{path}@1d"
    named = {setting: (where,) if setting == "then" else where}
    trained = config.replace(adapters=("grasp",), **named)
    open_run(tmp_path / "run", trained, TASK)
    open_run(tmp_path / "run", trained, TASK)
    card_file(tmp_path, ("[0.16603222,", "[0.5,"))
    with pytest.raises(ValueError, match="another run, with other content of the mine card"):
        open_run(tmp_path / "run", trained, TASK)


def test_a_run_resumes_with_the_moved_cards_of_a_list(tmp_path):
    here, there = (tmp_path / name for name in ("here", "there"))
    for folder in (here, there):
        folder.mkdir()
        card_file(folder)
    moved = [CONFIG.replace(injection=f"{f}/mine.toml@1d,ideal@0s") for f in (here, there)]
    open_run(tmp_path / "run", moved[0], TASK)
    open_run(tmp_path / "run", moved[1], TASK)
    with pytest.raises(ValueError, match=r"injection is 'mine.toml@1d,ideal@0s' and not 'mine"):
        open_run(tmp_path / "run", CONFIG.replace(injection=f"{here}/mine.toml@1h,ideal@0s"), TASK)
    first = CONFIG.replace(injection="pcm-hermes-2@1d,./mine.toml@0s")
    with pytest.raises(ValueError, match="another run, whose injection is 'pcm-hermes-2@1d,mine"):
        check_same("The output", "run", flat(first), flat(first) | {"injection": "mine.toml@0s"})


def test_a_run_does_not_resume_with_other_training_rows_or_metrics(tmp_path):
    open_run(tmp_path, CONFIG, TASK)
    edited = TASK.with_rows(reviews(train=5, validation=4).train, TASK.validation)
    with pytest.raises(ValueError, match="another run, with other content of the training rows"):
        open_run(tmp_path, CONFIG.replace(trainings=2), edited)
    other = replace(TASK, metrics=("f1", *TASK.metrics))
    with pytest.raises(
        ValueError,
        match=r"whose metrics is \['accuracy'\] and not \['f1', 'accuracy'\]: .*\(--metric\)",
    ):
        open_run(tmp_path, CONFIG, other)
    assert read_run(tmp_path)[1]["metrics"] == ["accuracy"]


def test_a_run_does_not_resume_with_another_adapter_to_start_from(finished_run, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(finished_run / "adapters" / "grasp", start)
    config = CONFIG.replace(start_from=str(start))
    open_run(tmp_path / "run", config, TASK)
    open_run(tmp_path / "run", config, TASK)
    shutil.copytree(finished_run / "adapters" / "stochgrasp", start, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="another run, with other content of the start from"):
        open_run(tmp_path / "run", config.replace(trainings=2), TASK)


def noisy(name="noisy-hermes", **changes) -> DeviceCard:
    card = DeviceCard.load("pcm-hermes-2").with_(adc_bits=6, **changes)
    return card.model_copy(update={"name": name})


@pytest.mark.parametrize("name", [*DeviceCard.names(), "gaussian:0.02"])
def test_a_card_is_the_same_after_it_was_written(name, tmp_path):
    card = DeviceCard.load(name)
    for each in (card, card.without("drift", "read"), card.with_(stuck_on=0.01, tile_size=64)):
        path = tmp_path / "card.toml"
        path.write_text(card_toml(each))
        assert DeviceCard.load(path) == each


def test_a_card_that_no_file_can_state_raises():
    with pytest.raises(ValueError, match=r"rram-wan2022 cannot be written .*programming_noise=F"):
        card_toml(DeviceCard.load("rram-wan2022").without("programming"))


def test_cards_become_names_or_paths(tmp_path):
    card = noisy()
    asked = {"devices": [card, "ideal"], "injection": card.at("1d"), "groups": 4, "times": ["1d"]}
    path = (tmp_path / "devices" / "noisy-hermes.toml").resolve()
    assert with_card_files(asked, tmp_path) == {
        "devices": [str(path), "ideal"], "injection": f"{path}@1d", "groups": 4, "times": ["1d"],
    }  # fmt: skip
    assert DeviceCard.load(path) == card
    # The folder is still new: nothing but cards is in it.
    assert with_card_files(asked, tmp_path)["groups"] == 4


def test_two_cards_of_one_name_raise(tmp_path):
    with pytest.raises(ValueError, match="Two different cards have the name noisy-hermes"):
        with_card_files({"devices": [noisy(), noisy(dac_bits=4)]}, tmp_path)


def test_cards_are_not_written_into_a_foreign_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="files that do not belong to a run"):
        with_card_files({"devices": [noisy()]}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_on_a_card_resumes_from_its_folder(
    settings, finished_run, saved_folders, tmp_path, monkeypatch
):
    few = {"task": "glue/stsb", "data_dir": settings["data_dir"], "model": settings["model"]}
    few |= {"adapters": saved_folders(finished_run, "grasp"), "times": ["1d"], "repeats": 1}
    results = compare(tmp_path / "run", **few, devices=[noisy()])
    assert {m.device for m in results.measurements} == {"noisy-hermes"}
    config = resolve({}, tmp_path / "run" / "run.toml")
    assert config.hardware.cards() == {"noisy-hermes": noisy()}
    scored = []
    scores = SentenceTask.scores
    monkeypatch.setattr(SentenceTask, "scores", lambda *args: scored.append(args) or scores(*args))
    # By the same card, and without Python by the run's own settings.
    assert compare(tmp_path / "run", **few, devices=[noisy()]).measurements == results.measurements
    again = compare(tmp_path / "run", config=tmp_path / "run" / "run.toml")
    assert again.measurements == results.measurements
    assert scored == []
    # A card that has changed is measured again, under the same name.
    changed = compare(tmp_path / "run", **few, devices=[noisy(dac_bits=3)])
    assert len(scored) == 1
    assert [m.value for m in changed.measurements] != [m.value for m in results.measurements]
    with Store(tmp_path / "run" / "results.sqlite") as store:
        assert len(store.cells()) == 2 * len(results.measurements)


def test_a_run_does_not_resume_with_an_edited_card_of_its_second_stage(config, tmp_path):
    """Its adapters were distilled on chips of the card as it was."""
    devices = (card_file(tmp_path),)
    mine = config.replace(adapters=("grasp",), devices=devices, then=("devices",))
    open_run(tmp_path / "run", mine, TASK)
    assert read_run(tmp_path / "run")[1]["second_stage"] == ["mine@0s..1d"]
    open_run(tmp_path / "run", mine, TASK)
    card_file(tmp_path, ("[0.16603222,", "[0.5,"))
    with pytest.raises(ValueError, match="another run, with other content of the mine card"):
        open_run(tmp_path / "run", mine, TASK)


def test_the_seeds_of_chips_that_were_added_are_recorded(config, tmp_path, run_study):
    few = config.replace(adapters=("grasp",), devices=("gaussian",), times=("0s",))
    folder = run_study(few.replace(until_ci=1e-9, repeats_limit=6), tmp_path / "run")
    seeds = [3, 4, 5, 6, 7, 8]
    assert read_run(folder)[1]["seeds"]["chips"] == seeds
    # Asked for fewer again, it has them all the same.
    assert measured_cells(prepare(few, folder)) == (len(seeds), len(seeds))
