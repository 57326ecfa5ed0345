"""The folder of a run: whose it is, and what it tells."""

import tomllib
from importlib.metadata import version

import pytest

from analog_grasp.study.config import StudyConfig
from analog_grasp.study.folder import claim, read

SETTINGS = StudyConfig().replace(devices=("ideal",), repeats=3, seed=7)


def test_a_claimed_folder_records_settings_versions_and_seeds(tmp_path):
    folder = tmp_path / "deep" / "run"
    claim(folder, SETTINGS)
    settings, records = read(folder)
    assert settings == SETTINGS
    assert records["chips"]["seeds"] == [7, 8, 9]
    assert records["versions"]["torch"] == version("torch")
    assert {"python", "analog-grasp", "aihwkit"} <= records["versions"].keys()


def test_the_same_run_goes_on_and_its_record_stays(tmp_path):
    claim(tmp_path, SETTINGS)
    record = (tmp_path / "run.toml").read_bytes()
    (tmp_path / "results.sqlite").touch()
    claim(tmp_path, SETTINGS)
    assert (tmp_path / "run.toml").read_bytes() == record


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"repeats": 4}, "another run, whose repeats is 3 and not 4"),
        ({"times": ("1d",)}, r"another run, whose times is .*'0s'.* and not \['1d'\]"),
        ({"model": "mine"}, "another run, whose model is None and not 'mine'"),
    ],
)
def test_another_run_is_refused_by_the_first_difference(tmp_path, change, sentence):
    claim(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=sentence):
        claim(tmp_path, SETTINGS.replace(**change))


def test_how_the_work_is_done_may_change_as_it_goes_on(tmp_path):
    claim(tmp_path, SETTINGS)
    changed = SETTINGS.replace(workers=4, engine="ray", until_ci=0.5)
    claim(tmp_path, changed)
    assert read(tmp_path)[0] == changed


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="files that are not of a run"):
        claim(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match=r"run holds files that are not of a run"):
        claim(tmp_path / "run", SETTINGS)


def test_an_empty_folder_is_taken(tmp_path):
    claim(tmp_path, SETTINGS)
    assert tomllib.loads((tmp_path / "run.toml").read_text())["devices"] == ["ideal"]


def test_reading_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: it should hold run\.toml"):
        read(tmp_path)


def test_reading_a_damaged_run_is_refused(tmp_path):
    claim(tmp_path, SETTINGS)
    (tmp_path / "run.toml").write_text("repeats = [")
    with pytest.raises(ValueError, match=r"run\.toml is not valid TOML"):
        read(tmp_path)
