"""Where the trials of a tuning are kept: a file, or a database that several machines share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

# The heartbeat of a process that is killed stops; its trial is then tried again. In seconds.
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
# How long a process waits for another one that is writing, in seconds.
_BUSY_SECONDS = 30
# Processes that begin together may all want to make the tables of a new database.
_ATTEMPTS = 20
_ATTEMPT_SECONDS = 0.25


def file_url(path: Path) -> str:
    """The URL of a SQLite file.

    Example:
        >>> file_url(Path("runs/tune/study.sqlite"))
        'sqlite:///runs/tune/study.sqlite'
    """
    return f"sqlite:///{path.as_posix()}"


def shown_url(url: str) -> str:
    """The URL of a database as it may be shown, without its password.

    Raises:
        ValueError: It is no URL of a database.

    Example:
        >>> shown_url("postgresql://me:secret@host/trials")
        'postgresql://me:***@host/trials'
    """
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError) as error:
        raise ValueError(
            "The storage is no URL of a database: give one such as sqlite:///study.sqlite or "
            "postgresql://user@host/name."
        ) from error


def connect(url: str) -> RDBStorage:
    """The database at a URL, with the tables of a study.

    A trial whose process no longer answers is put back, to be tried again.

    Raises:
        ValueError: The URL is none.
        OSError: The database cannot be reached or written, or another optuna has made its tables.
    """
    shown = shown_url(url)
    for _ in range(_ATTEMPTS):
        try:
            with storage_errors(url):
                return _open(url)
        except OSError as error:
            last = error
            if not _is_race(error.__cause__):
                raise
            time.sleep(_ATTEMPT_SECONDS)
        except (ImportError, RuntimeError) as error:
            raise OSError(f"The storage {shown} cannot be used: {error}") from error
    raise last


def share_heartbeats(study: optuna.Study, storage: RDBStorage) -> None:
    """Give each running trial without any heartbeat its first one.

    A process that was killed before the first heartbeat of its trial would otherwise be waited
    for without end; one that lives goes on by itself.
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
    except (SQLAlchemyError, StorageInternalError) as error:
        raise OSError(
            f"The storage {shown_url(url)} cannot be used ({_reason(error)}): it should be a "
            "database that can be reached and written to; what was measured before is kept, and "
            "the same command goes on."
        ) from error


def _open(url: str) -> RDBStorage:
    waiting = {"timeout": _BUSY_SECONDS} if make_url(url).get_backend_name() == "sqlite" else {}
    return RDBStorage(
        url,
        engine_kwargs={"connect_args": waiting},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


def _is_race(error: BaseException | None) -> bool:
    """Whether another process has just made what this one was about to make."""
    taken = isinstance(error, OperationalError | ProgrammingError) and "already exists" in str(
        error
    )
    return taken or isinstance(error, IntegrityError)


def _reason(error: Exception) -> str:
    """The database's own words, on one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return str(getattr(cause, "orig", None) or cause or error).strip().splitlines()[0].rstrip(".")
