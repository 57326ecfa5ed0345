"""Leases by which several processes share the work on one store without doing any of it twice."""

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from analog_grasp.study.store import Store

# How long a lease is valid without being renewed, and how often it is renewed, in seconds.
LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 10.0
# How often to look whether another process has finished the work that it holds, in seconds.
POLL_SECONDS = 0.5


class Leases:
    """The leases of this process on the work of a store.

    A lease is void once it has expired, or once its process no longer exists on this machine;
    any other process can then acquire the work. Returned by `open_leases`; used by one thread.
    """

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner

    def acquire(self, work: str) -> bool:
        """Acquire a piece of work; return False if another process holds it.

        Raises:
            OSError: The store cannot be written.
        """
        return self._store.acquire(work, self._owner, time.time() + LEASE_SECONDS, _lapsed)

    def release(self, work: str) -> None:
        """Release a piece of work, which is done or abandoned.

        Raises:
            OSError: The store cannot be written.
        """
        self._store.release(self._owner, work)


@contextmanager
def open_leases(store: Store) -> Iterator[Leases]:
    """Yield leases that are renewed while the block runs and released at its end.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Store(Path(folder) / "results.sqlite") as store, open_leases(store) as leases:
        ...         leases.acquire("chip 0 of pcm")
        True
    """
    # The thread distinguishes two blocks of one process.
    owner = f"{platform.node()}/{os.getpid()}/{threading.get_ident()}"
    ended = threading.Event()
    heart = threading.Thread(target=_renew_until, args=(store.path, owner, ended), daemon=True)
    heart.start()
    try:
        yield Leases(store, owner)
    finally:
        ended.set()
        heart.join()
        # What cannot be released, since the disk is full, expires.
        with suppress(OSError):
            store.release(owner)


def _renew_until(path: Path, owner: str, ended: threading.Event) -> None:
    """Renew the leases periodically; they expire if the store cannot be written."""
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(OSError), Store(path) as store:
            store.renew(owner, time.time() + LEASE_SECONDS)


def _lapsed(owner: str, expires: float) -> bool:
    node, pid, _ = owner.rsplit("/", 2)
    return time.time() > expires or (node == platform.node() and not _runs(int(pid)))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It exists and belongs to another user.
    return True
