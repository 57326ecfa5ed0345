"""Claims: how processes share the work on one store without doing any of it twice."""

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from analog_grasp.study.store import Store

# How long a claim holds without being renewed, and how often it is renewed, in seconds.
LEASE = 60.0
HEARTBEAT = 10.0
# How often to look whether another process is done with what it has claimed, in seconds.
POLL = 0.5


class Claims:
    """What this process has taken on of the work on a store.

    A claim is void once its lease has run out, or its process is gone from this machine: then the
    work is for whoever comes next. To be had from `claiming`, and used by one thread.
    """

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner

    def take(self, work: str) -> bool:
        """Take a piece of work; False if another process is at it.

        Raises:
            OSError: The store cannot be written.
        """
        return self._store.claim(work, self._owner, time.time() + LEASE, _lapsed)

    def release(self, work: str) -> None:
        """Say that the work is done or given up.

        Raises:
            OSError: The store cannot be written.
        """
        self._store.release(self._owner, work)


@contextmanager
def claiming(store: Store) -> Iterator[Claims]:
    """Claims that are renewed while the block runs, and given up at its end.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Store(Path(folder) / "results.sqlite") as store, claiming(store) as claims:
        ...         claims.take("chip 0 of pcm")
        True
    """
    # The thread sets two blocks of one process apart.
    owner = f"{platform.node()}/{os.getpid()}/{threading.get_ident()}"
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(store.path, owner, ended), daemon=True)
    heart.start()
    try:
        yield Claims(store, owner)
    finally:
        ended.set()
        heart.join()
        # What cannot be given up, since the disk is full, lapses.
        with suppress(OSError):
            store.release(owner)


def _beat(path: Path, owner: str, ended: threading.Event) -> None:
    """Renew the claims now and then; if the store cannot be written, let them lapse."""
    while not ended.wait(HEARTBEAT):
        with suppress(OSError), Store(path) as store:
            store.renew(owner, time.time() + LEASE)


def _lapsed(owner: str, expires: float) -> bool:
    node, pid, _ = owner.rsplit("/", 2)
    return time.time() > expires or (node == platform.node() and not _runs(int(pid)))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is there, and another user's.
    return True
