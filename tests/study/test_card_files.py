"""Device cards given in Python: written into the run's folder, measured, resumed."""

import pytest

from analog_grasp.devices.card import DeviceCard
from analog_grasp.study.api import compare
from analog_grasp.study.config import resolve
from analog_grasp.study.provenance import card_toml, with_card_files
from analog_grasp.study.store import Store
from analog_grasp.tasks.classification import SentenceTask


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
