"""What tests of tuning share: tasks whose scores show every bit, and a formula for a measuring."""

import math

import pytest
from datasets import Dataset

from analog_grasp.study.config import StudyConfig
from analog_grasp.tasks import registry
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.reviews import reviews as generate_reviews
from analog_grasp.tuning import storage as storage_module
from analog_grasp.tuning import tune as tune_module
from analog_grasp.tuning.tune import Tuning

DEVICES = ("pcm-hermes-2", "rram-wan2022")


def lengths(_data_dir=None) -> SentenceTask:
    """How long is the sentence?"""
    reviews = generate_reviews(train=20, validation=6)

    def measured(rows: Dataset) -> Dataset:
        text = rows["text"][:]
        return Dataset.from_dict({"text": text, "label": [len(line) / 50 for line in text]})

    return SentenceTask(
        "lengths", measured(reviews.train), measured(reviews.validation), (), ("pearson",)
    )


class Sealed:
    """Rows that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"The validation rows were asked for {name}.")

    def __len__(self):
        raise AssertionError("The validation rows were counted.")

    def __getitem__(self, key):
        raise AssertionError("The validation rows were read.")


def sealed(_data_dir=None) -> SentenceTask:
    """The same task, before its validation rows may be looked at."""
    task = lengths()
    task.validation = Sealed()
    return task


@pytest.fixture(autouse=True, scope="module")
def known_tasks():
    # By module: a package's fixture is given back only when all tests are over.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._LOADERS, "lengths", lengths)
        patch.setitem(registry._LOADERS, "sealed", sealed)
        yield


@pytest.fixture
def settings(bert_folder) -> StudyConfig:
    return StudyConfig().replace(
        model=str(bert_folder), task="sealed", devices=DEVICES, times=("0s", "1d"), repeats=2,
        groups=4, epochs=1, batch_size=8, seed=3,
    )  # fmt: skip


@pytest.fixture
def formula(monkeypatch):
    """Puts a formula of the settings in the place of the measuring; 0.9 at most, at lambda 0.1."""

    def measure(trial, settings, *_):
        distance = abs(math.log10(settings.training.noise_weight + 1e-6) + 1)
        trial.set_user_attr("digital", 0.9 - 0.01 * distance)
        trial.set_user_attr("cells", [["ideal", 0.0, [0.9 - 0.1 * distance]]])
        return 0.9 - 0.1 * distance, 0.9 + 0.01 * distance

    monkeypatch.setattr(tune_module, "measure", measure)


@pytest.fixture
def impatient(monkeypatch):
    """A process that does not answer is given up for dead at once."""
    monkeypatch.setattr(storage_module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storage_module, "GRACE_SECONDS", 1)
    monkeypatch.setattr(tune_module, "_POLL_SECONDS", 0.1)


@pytest.fixture(scope="session")
def tried():
    """Tells the scores of a tuning by what was tried."""

    def scores(tuning: Tuning) -> dict:
        return {tuple(sorted(t.values.items())): t.score for t in tuning.trials()}

    return scores
