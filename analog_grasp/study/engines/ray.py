"""The engine of several machines: a Ray cluster, one that runs already or one started here."""

import signal
import socket
from collections.abc import Generator, Iterable, Iterator
from functools import lru_cache
from typing import Any

import ray
import torch

from analog_grasp.study.evaluator import Bench, Cell, Job

# How often a job is begun again after its node or worker was lost.
RETRIES = 3
# How long to wait for a cell before looking whether the cluster has grown, s.
_LOOK = 5.0


def measure(
    bench: Bench, jobs: Iterable[Job], workers: int, address: str | None = None
) -> Generator[Cell, None, None]:
    """Measure on a Ray cluster, a job on each of its processors.

    The bench is put into the object store once. A job whose node is lost is begun again
    elsewhere, to the same bits; cells that it told already are told again.

    Args:
        bench: What is measured with.
        jobs: Taken one by one, as a processor becomes free.
        workers: The processors of a cluster started here, among which torch's threads are
            divided; a cluster that runs already has its own.
        address: The cluster's, as ray names it (``host:port``, ``auto``); None starts one.

    Raises:
        RuntimeError: A job failed, or its workers were lost again and again.
        ValueError: There is no cluster at the address.

    Source:
        Moritz et al., Ray, OSDI 2018.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect(workers, address)
    threads = 1 if address else max(1, torch.get_num_threads() // workers)
    try:
        yield from _shared_out(bench, iter(jobs), threads)
    finally:
        if ours:
            ray.shutdown()


def _connect(workers: int, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # What a request to terminate does is for the caller to say; ray would have it its own way.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"No Ray cluster answers at ray_address {address!r} ({error}): start one with ray "
            "start --head, or leave the address out to have one started here."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens, for which ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=_LOOK).close()


def _shared_out(bench: Bench, jobs: Iterator[Job], threads: int) -> Iterator[Cell]:
    for model in bench.models.values():
        model.cpu()
    # In a list, lest ray fetch it anew for every job.
    shared = [ray.put(bench)]
    running: list[Any] = []
    try:
        while True:
            room = int(ray.cluster_resources().get("CPU", 0))
            while len(running) < max(1, room) and (job := next(jobs, None)) is not None:
                running.append(_job.remote(shared, job, threads))
            if not running:
                return
            ready: list[Any] = ray.wait(running, timeout=_LOOK, fetch_local=False)[0]
            for cells in ready:
                if (cell := _next(cells)) is None:
                    running.remove(cells)
                else:
                    yield cell
    finally:
        for cells in running:
            # By its process: an exception raised in it may be swallowed by what it is computing.
            ray.cancel(cells, force=True)


def _next(cells: Any) -> Cell | None:
    """The next cell of a job; None where it is done."""
    try:
        reference = next(cells, None)
        return None if reference is None else ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or error
        raise RuntimeError(f"A job failed on the Ray cluster: {reason!r}.") from error


@ray.remote(num_cpus=1, max_retries=RETRIES, num_returns="streaming")
def _job(shared: list[Any], job: Job, threads: int) -> Iterator[Cell]:
    torch.set_num_threads(threads)
    yield from _bench(shared[0]).measure(job)


@lru_cache(maxsize=1)
def _bench(reference: Any) -> Bench:
    """The bench, once for each process of the cluster."""
    return ray.get(reference)
