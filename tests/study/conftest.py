"""A study of seconds: a tiny model, and a regression, whose scores show every bit of a logit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.runner import prepare, run
from analog_grasp.study.store import Store
from analog_grasp.tasks import Task, load_task
from analog_grasp.tasks.reviews import reviews as generate_reviews

ADAPTERS = ("grasp", "stochgrasp")


@pytest.fixture(scope="session")
def stsb(tmp_path_factory) -> Path:
    """How much longer is one sentence? In the official layout of STS-B."""
    reviews = generate_reviews(train=24, validation=18)
    folder = tmp_path_factory.mktemp("glue")
    (folder / "STS-B").mkdir()
    head = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    for name, rows in (("train", reviews.train), ("dev", reviews.validation)):
        text = rows["text"][:]
        lines = ["\t".join(head.split())]
        for first, second in zip(text[::2], text[1::2], strict=True):
            label = min(abs(len(first) - len(second)) / 10, 5)
            lines.append("\t".join([*"0123456", first, second, f"{label:.3f}"]))
        (folder / "STS-B" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def task(stsb) -> Task:
    return load_task("glue/stsb", stsb)


@pytest.fixture(scope="session")
def asked(bert_folder, stsb) -> dict:
    """The settings of the study: 16 cells, each scored in two ways."""
    return {
        "model": str(bert_folder),
        "task": "glue/stsb",
        "data_dir": str(stsb),
        "adapters": ADAPTERS,
        "devices": ("pcm-hermes-2", "rram-wan2022"),
        "times": ("0s", "1d"),
        "repeats": 2,
        "groups": 4,
        "epochs": 1,
        "batch_size": 6,
        "seed": 3,
    }


@pytest.fixture(scope="session")
def measure() -> Callable[..., Path]:
    """Carries out a study in a folder."""

    def measured(settings: StudyConfig, folder: Path, progress=silent) -> Path:
        run(prepare(settings, folder), progress)
        return folder

    return measured


@pytest.fixture(scope="session")
def values() -> Callable[[Path], dict]:
    """What a folder holds, cell by cell."""

    def read(folder: Path) -> dict:
        with Store(folder / "results.sqlite") as store:
            return {cell.key: cell.value for cell in store.measurements()}

    return read


@pytest.fixture(scope="session")
def saved() -> Callable[..., tuple[str, ...]]:
    """The folders of the adapters that a run has trained."""

    def folders(run_folder: Path, *names: str) -> tuple[str, ...]:
        return tuple(str(run_folder / "adapters" / name) for name in names or ADAPTERS)

    return folders


@pytest.fixture(scope="session")
def trained(asked, measure, tmp_path_factory) -> Path:
    """The folder of the whole study, from training to the last cell, that nothing disturbed."""
    return measure(resolve(asked), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def settings(asked, trained, saved) -> StudyConfig:
    """The same study with the adapters as that run has saved them."""
    return resolve(asked | {"adapters": saved(trained)})


@pytest.fixture(scope="session")
def version_1() -> str:
    """The tables of a store as version 1 made them."""
    return """
CREATE TABLE measurements (
    task TEXT NOT NULL, metric TEXT NOT NULL, adapter TEXT NOT NULL, placement TEXT NOT NULL,
    device TEXT NOT NULL, time_s REAL NOT NULL, repeat INTEGER NOT NULL,
    seed INTEGER NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (task, metric, adapter, placement, device, time_s, repeat, seed)
) WITHOUT ROWID;
CREATE TABLE adapters (
    position INTEGER PRIMARY KEY, adapter TEXT NOT NULL, task TEXT NOT NULL,
    trainable_parameters INTEGER NOT NULL, head_parameters INTEGER NOT NULL,
    digital TEXT NOT NULL, train_seconds REAL NOT NULL, path TEXT NOT NULL,
    fingerprint TEXT NOT NULL, UNIQUE (adapter, task)
);
PRAGMA application_id = 1634169712;
PRAGMA user_version = 1;
    """
