"""Optuna study of a tuning: its database, its sampler, and errors of both as one sentence."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from analog_grasp.study.config import StudyConfig
from analog_grasp.tuning.search_space import Range
from analog_grasp.utils.seed import derive_seed

# The heartbeat of a process that is killed stops; its trial is then tried again. In seconds.
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
# How long a process waits for another one that is writing, in seconds.
_BUSY_SECONDS = 30
# For how long processes that start together may all try to create the tables of a new database.
_RACE_SECONDS = 5.0
# Trials drawn at random over the ranges before the sampler uses earlier results.
_RANDOM_TRIALS = 8
# Packages of database drivers, where they are not called as the module that SQLAlchemy imports.
_DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
_EXAMPLES = "give one such as sqlite:///study.sqlite or postgresql://user@host/name."

Values = dict[str, Any]
"""Values of the searched settings in one trial, by name."""


def first_values(config: StudyConfig, space: Mapping[str, Range]) -> list[Values]:
    """Return the values of the first trials: as given, and the same without noise-aware loss.

    Example:
        >>> from analog_grasp.tuning.search_space import search_space
        >>> first_values(StudyConfig(), search_space(["noise_weight"]))
        [{'noise_weight': 0.01}, {'noise_weight': 0.0}]
    """
    given = {name: config.value(name) for name in space}
    without = given | {"noise_weight": 0.0}
    return [given, without] if "noise_weight" in given and given != without else [given]


def propose(
    trial: optuna.Trial, place: int, space: Mapping[str, Range], first: Sequence[Values]
) -> Values:
    """Return a trial's values: the first ones by its position, later ones from the sampler.

    A first value outside its range (noise weight 0, which no logarithmic range contains) is tried
    without being a point of the range.
    """
    fixed = first[place] if place < len(first) else {}
    outside = {name: value for name, value in fixed.items() if value not in space[name]}
    return outside | {
        name: bounds.suggest(trial, name) for name, bounds in space.items() if name not in outside
    }


class PositionSeededTPE(RandomSampler):
    """Optuna's TPE sampler with the draws of each trial seeded by its position in the study.

    Processes that share a study therefore propose different values, and a resumed study proposes
    what it would have proposed without the interruption. As of a random sampler, no settings are
    drawn jointly: there are too few trials to learn how settings interact.

    Source:
        Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011 (TPE).
    """

    def __init__(self, seed: int, first: Sequence[Values]) -> None:
        super().__init__()
        self._seed, self._first = seed, first

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of a setting in a trial."""
        place = position(trial, study.get_trials(deepcopy=False))
        if place < len(self._first):
            return self._first[place][param_name]
        sampler = TPESampler(
            seed=derive_seed(self._seed, "proposal", place, param_name) % 2**32,
            n_startup_trials=_RANDOM_TRIALS,
            multivariate=False,
            # Trials that run elsewhere count as poor, so that no process repeats them.
            constant_liar=True,
        )
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def position(trial: FrozenTrial, everyone: Sequence[FrozenTrial]) -> int:
    """Return a trial's position among all of the study; a retry has that of its first attempt."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    number = trial.number if first is None else first
    attempts = map(RetryHeartbeatStaleTrialCallback.retried_trial_number, everyone[:number])
    return sum(attempt is None for attempt in attempts)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppress optuna's lines about each trial and its warnings about experimental parts."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def shown_url(url: str) -> str:
    """Return the URL of a database without its password; raise ValueError if it is none.

    Example:
        >>> shown_url("postgresql://me:secret@host/trials")
        'postgresql://me:***@host/trials'
    """
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"The storage is not the URL of a database: {_EXAMPLES}") from error


def connect(url: str) -> RDBStorage:
    """Connect to the database at a URL, and create the tables of a study if necessary.

    A trial whose process no longer answers is put back, to be tried again.

    Raises:
        ValueError: It is not the URL of a database, or its driver is not installed.
        OSError: The database cannot be reached or written, or another optuna made its tables.
    """
    shown = shown_url(url)
    waiting = {"timeout": _BUSY_SECONDS} if make_url(url).get_backend_name() == "sqlite" else {}
    end = time.monotonic() + _RACE_SECONDS
    while True:
        try:
            with storage_errors(url):
                return RDBStorage(
                    url,
                    engine_kwargs={"connect_args": waiting},
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
        except OSError as error:
            cause = error.__cause__
            race = isinstance(cause, IntegrityError) or "already exists" in str(cause)
            if not race or time.monotonic() > end:
                raise
        except NoSuchModuleError as error:
            raise ValueError(
                f"The storage {shown} is a database of an unknown kind: {_EXAMPLES}"
            ) from error
        except ImportError as error:
            module = str(getattr(error.__cause__, "name", None))
            raise ValueError(
                f"The storage {shown} requires the Python module {module}, which is not installed: "
                f"run pip install '{_DRIVERS.get(module, module)}', or omit the storage to use a "
                "SQLite file."
            ) from error
        except RuntimeError as error:
            raise OSError(f"The storage {shown} cannot be used: {error}") from error
        time.sleep(0.25)


def share_heartbeats(study: optuna.Study, storage: RDBStorage) -> None:
    """Record a first heartbeat for each running trial that has none.

    A process that was killed before the first heartbeat of its trial would otherwise be waited
    for endlessly; one that lives continues its own heartbeat.
    """
    with storage.engine.connect() as connection:
        beating = {
            row[0] for row in connection.execute(text("SELECT trial_id FROM trial_heartbeats"))
        }
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial._trial_id not in beating:
            storage.record_heartbeat(trial._trial_id)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn an error of the database at a URL into one sentence."""
    try:
        yield
    except NoSuchModuleError:
        raise
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        # The database's own message.
        reason = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()[0]
        raise OSError(
            f"The storage {shown_url(url)} cannot be used ({reason.rstrip('.')}): it should be a "
            "database that can be reached and written to; finished trials are kept, and the same "
            "command resumes the tuning."
        ) from error
