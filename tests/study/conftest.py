"""Study of seconds: a tiny model and a regression, whose scores show every bit of a logit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.study.progress import silent
from analog_grasp.study.runner import run
from analog_grasp.study.store import Store
from analog_grasp.study.study import prepare
from analog_grasp.tasks import Task, load_task
from analog_grasp.tasks.reviews import reviews as generate_reviews

ADAPTERS = ("grasp", "stochgrasp")


@pytest.fixture(scope="session")
def stsb(tmp_path_factory) -> Path:
    """Return a task in the official layout of STS-B: the difference in length of two sentences."""
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
def settings(bert_folder, stsb) -> dict:
    """Return the settings of the study: 16 cells, each with two scores."""
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
        "then": "none",
        "batch_size": 6,
        "seed": 3,
    }


@pytest.fixture(scope="session")
def run_study() -> Callable[..., Path]:
    """Return a function that runs a study in a folder."""

    def run_in(config: StudyConfig, folder: Path, progress=silent) -> Path:
        run(prepare(config, folder), progress)
        return folder

    return run_in


@pytest.fixture(scope="session")
def read_values() -> Callable[[Path], dict]:
    """Return a function that reads the values of a run by cell."""

    def read(folder: Path) -> dict:
        with Store(folder / "results.sqlite") as store:
            return {cell.key: cell.value for cell in store.measurements()}

    return read


@pytest.fixture(scope="session")
def saved_folders() -> Callable[..., tuple[str, ...]]:
    """Return a function that names the folders of the adapters that a run has trained."""

    def folders(run_folder: Path, *names: str) -> tuple[str, ...]:
        return tuple(str(run_folder / "adapters" / name) for name in names or ADAPTERS)

    return folders


@pytest.fixture(scope="session")
def finished_run(settings, run_study, tmp_path_factory) -> Path:
    """Return the folder of the study, trained and measured without interruption."""
    return run_study(resolve(settings), tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def config(settings, finished_run, saved_folders) -> StudyConfig:
    """Return the same study with the adapters that `finished_run` has saved."""
    return resolve(settings).replace(adapters=saved_folders(finished_run))
