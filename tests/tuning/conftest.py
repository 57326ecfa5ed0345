"""Tasks whose scores show every bit, and a formula in place of measurements."""

import math

import pytest
from datasets import Dataset

from analog_grasp.study.config import StudyConfig
from analog_grasp.tasks import registry
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.reviews import reviews as generate_reviews
from analog_grasp.tuning import optuna_study, tuner
from analog_grasp.tuning.tuner import Tuning

DEVICES = ("pcm-hermes-2", "rram-wan2022")


def lengths(_data_dir=None) -> SentenceTask:
    """Return a task to predict the length of a sentence."""
    reviews = generate_reviews(train=20, validation=6)

    def measured(rows: Dataset) -> Dataset:
        text = rows["text"][:]
        return Dataset.from_dict({"text": text, "label": [len(line) / 50 for line in text]})

    return SentenceTask(
        "lengths", measured(reviews.train), measured(reviews.validation), (), ("pearson",)
    )


class Sealed:
    """Rows that must not be used."""

    def __getattr__(self, name):
        raise AssertionError(f"The validation rows were asked for {name}.")

    def __len__(self):
        raise AssertionError("The validation rows were counted.")

    def __getitem__(self, key):
        raise AssertionError("The validation rows were read.")


def sealed(_data_dir=None) -> SentenceTask:
    """Return the same task with validation rows that must not be used."""
    task = lengths()
    task.validation = Sealed()
    return task


@pytest.fixture(autouse=True, scope="module")
def known_tasks():
    # By module: a fixture of the package would only end with the last test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._LOADERS, "lengths", lengths)
        patch.setitem(registry._LOADERS, "sealed", sealed)
        yield


@pytest.fixture
def settings(bert_folder) -> StudyConfig:
    return StudyConfig().replace(
        model=str(bert_folder), task="sealed", devices=DEVICES, times=("0s", "1d"), repeats=2,
        groups=4, epochs=1, batch_size=8, seed=3, then="none",
    )  # fmt: skip


@pytest.fixture
def formula(monkeypatch):
    """Replace measurements by a formula of the settings; 0.9 at most, at noise weight 0.1."""

    def measure(trial, settings, *_):
        distance = abs(math.log10(settings.training.noise_weight + 1e-6) + 1)
        trial.set_user_attr("digital", 0.9 - 0.01 * distance)
        trial.set_user_attr("cells", [["ideal", 0.0, [0.9 - 0.1 * distance]]])
        return 0.9 - 0.1 * distance, 0.9 + 0.01 * distance

    monkeypatch.setattr(tuner, "measure", measure)


@pytest.fixture
def impatient(monkeypatch):
    """Treat a process that does not answer as dead at once."""
    monkeypatch.setattr(optuna_study, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(optuna_study, "GRACE_SECONDS", 1)
    monkeypatch.setattr(tuner, "_POLL_SECONDS", 0.1)


@pytest.fixture(scope="session")
def tried():
    """Return a function for the scores of a tuning by the values that were tried."""

    def scores(tuning: Tuning) -> dict:
        return {tuple(sorted(t.values.items())): t.score for t in tuning.trials()}

    return scores
