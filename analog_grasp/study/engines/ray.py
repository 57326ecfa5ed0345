"""Engine of several machines: an existing Ray cluster, or one started here."""

import signal
import socket
from collections.abc import Generator, Iterable, Iterator
from functools import lru_cache
from typing import Any

import ray
import torch

from analog_grasp.study.evaluator import Cell, Evaluator, Job, measure_in_worker

# How often a job is restarted after its node or worker was lost.
RETRIES = 3
# How long to wait for a cell before checking whether the cluster has grown, s.
_POLL_SECONDS = 5.0


def measure(
    evaluator: Evaluator, jobs: Iterable[Job], workers: int, address: str | None = None
) -> Generator[Cell, None, None]:
    """Measure on a Ray cluster, one job per processor at a time.

    The evaluator is put into the object store once. A job whose node is lost is restarted
    elsewhere, to the same bits; cells that it has yielded already are yielded again.

    Args:
        evaluator: Sent to each process of the cluster.
        jobs: Taken one by one, as a processor becomes free.
        workers: Processors of a cluster started here, among which torch's threads are divided; an
            existing cluster has its own.
        address: Of the cluster, as ray names it (``host:port``, ``auto``); None starts one.

    Raises:
        RuntimeError: A job failed, or its workers were lost repeatedly.
        ValueError: There is no cluster at the address.

    Source:
        Moritz et al., Ray, OSDI 2018.
    """
    ours = not ray.is_initialized()
    if ours:
        _connect(workers, address)
    threads = 1 if address else max(1, torch.get_num_threads() // workers)
    try:
        yield from _distribute(evaluator, iter(jobs), threads)
    finally:
        if ours:
            ray.shutdown()


def _connect(workers: int, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # The caller decides what a request to terminate does; ray would install its own handler.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)
        else:
            _check_reachable(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"No Ray cluster answers at ray_address {address!r} ({error}): start one with ray "
            "start --head, or omit the address to have one started here."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Raise OSError where no process listens, for which ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection(
            (host.rpartition("/")[2], int(port)), timeout=_POLL_SECONDS
        ).close()


def _distribute(evaluator: Evaluator, jobs: Iterator[Job], threads: int) -> Iterator[Cell]:
    for model in evaluator.models.values():
        model.cpu()
    # In a list: ray would otherwise fetch it again for every job.
    shared = [ray.put(evaluator)]
    running: list[Any] = []
    try:
        while True:
            room = int(ray.cluster_resources().get("CPU", 0))
            while len(running) < max(1, room) and (job := next(jobs, None)) is not None:
                running.append(_job.remote(shared, job, threads))
            if not running:
                return
            ready: list[Any] = ray.wait(running, timeout=_POLL_SECONDS, fetch_local=False)[0]
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
    """Return the next cell of a job; None when it is done."""
    try:
        reference = next(cells, None)
        return None if reference is None else ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or error
        raise RuntimeError(f"A job failed on the Ray cluster: {reason!r}.") from error


@ray.remote(num_cpus=1, max_retries=RETRIES, num_returns="streaming")
def _job(shared: list[Any], job: Job, threads: int) -> Iterator[Cell]:
    torch.set_num_threads(threads)
    yield from measure_in_worker(_evaluator(shared[0]), job)


@lru_cache(maxsize=1)
def _evaluator(reference: Any) -> Evaluator:
    """Return the evaluator, fetched once by each process of the cluster."""
    return ray.get(reference)
