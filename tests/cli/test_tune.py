"""The command tune on a tiny model: its files, and how it ends if interrupted or wrong."""

import csv
import tomllib

import pytest

from analog_grasp.tuning import tuner

FILES = (
    "trials.csv", "best.toml", "summary.md", "accuracy_vs_noise_weight.png",
    "accuracy_vs_noise_weight.svg",
)  # fmt: skip


@pytest.fixture(scope="session")
def small_study(tiny) -> list[str]:
    """A tuning of two trials of four cells."""
    return [
        "tune", *tiny, "--groups", "4", "--epochs", "1", "--batch-size", "8",
        "--devices", "ideal,pcm-hermes-2", "--times", "0s,1d", "--repeats", "1", "--trials", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def studied(small_study, tmp_path_factory):
    """The folder of that tuning."""
    from analog_grasp.cli import main

    folder = tmp_path_factory.mktemp("runs") / "studied"
    assert main([*small_study, "--out", str(folder)]) == 0
    return folder


def rows(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_tune_writes_all_that_it_names(ag, small_study, studied):
    ended = ag(*small_study, "--out", studied)
    assert ended.status == 0
    for name in FILES:
        assert (studied / name).stat().st_size > 0
        assert f"wrote {studied / name}" in ended.out.splitlines()
    assert [row["noise_weight"] for row in rows(studied)] == ["0.01", "0.0"]
    levels = ["ideal@0s", "ideal@1d", "pcm-hermes-2@0s", "pcm-hermes-2@1d"]
    assert list(rows(studied)[0])[-4:] == levels
    for shown in ("Best trials", "The best of 2 complete trials", "which no trial has used"):
        assert shown in ended.out
    assert "too few complete trials" in (studied / "summary.md").read_text()


def test_the_best_setting_serves_train_and_compare(ag, studied, tmp_path):
    best = studied / "best.toml"
    assert tomllib.loads(best.read_text())["noise_weight"] in (0.0, 0.01)
    trained = ["train", "--adapter", "stochgrasp", "--config", best, "--out", tmp_path / "one"]
    assert ag(*trained).status == 0
    compared = ["compare", "--config", best, "--out", tmp_path / "both"]
    assert ag(*compared).status == 0


def test_more_trials_resume_the_same_study(ag, small_study, studied):
    before = rows(studied)
    ended = ag(*small_study, "--trials", "4", "--multi", "--out", studied)
    assert ended.status == 2
    assert "whose multi is False and not True" in ended.err
    ended = ag(*small_study, "--trials", "3", "--out", studied)
    assert ended.status == 0
    assert "tuning stochgrasp: 1 of 3 trials" in ended.err
    assert rows(studied)[:2] == before
    assert len(rows(studied)) == 3


def test_two_goals_have_a_front(ag, small_study, tmp_path):
    given = ["--multi", "--search", "noise_weight,injection", "--ranges", "injection=0:0.2"]
    ended = ag(*small_study, *given, "--out", tmp_path / "run")
    assert ended.status == 0
    for name in ("front.svg", "front.png", "accuracy_vs_injection.svg"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert "on the Pareto front" in ended.out


def test_an_interrupted_tuning_says_what_is_kept(ag, small_study, tmp_path, monkeypatch):
    measure, out = tuner.measure, tmp_path / "run"

    def interrupted(trial, *others):
        if trial.number == 1:
            raise KeyboardInterrupt
        return measure(trial, *others)

    with monkeypatch.context() as patch:
        patch.setattr(tuner, "measure", interrupted)
        ended = ag(*small_study, "--out", out)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == (
        f"Interrupted: 1 of 2 trials are finished and kept in {out}; the same command resumes the "
        "tuning."
    )
    assert ag(*small_study, "--out", out).status == 0
    assert [row["noise_weight"] for row in rows(out)] == ["0.01", "0.0"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--held-out", "30"], "from 1 to 16"),
        (["--adapter", "grasp"], "grasp has no noise_weight"),
        (["--storage", "postgresql://me:secret@localhost:1/x"], "postgresql://me:***@localhost"),
    ],
)
def test_wrong_requests_of_tune(error_of, small_study, tmp_path, options, named):
    sentence = error_of(*small_study, "--out", tmp_path / "run", *options)
    assert named in sentence
    assert "secret" not in sentence
    assert not (tmp_path / "run").exists()


def test_folder_of_a_comparison(error_of, small_study, tmp_path):
    (tmp_path / "run.toml").touch()
    assert "do not belong to a tuning" in error_of(*small_study, "--out", tmp_path)
