"""Engines: processes of this machine that share its cores, or a Ray cluster."""

import multiprocessing
import os
import pickle
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from analog_grasp.study.evaluator import Cell, Evaluator, Job, measure_in_worker
from analog_grasp.study.progress import own_warnings
from analog_grasp.study.sections import RunSettings

# How often a job is given to another worker after the one that had it was lost.
RETRIES = 3
# Workers are forks of a process that has imported everything and done nothing: they start at
# once, and inherit neither threads nor locks.
_FORKS = multiprocessing.get_context("forkserver")
# How long to wait for a cell of a cluster before checking whether it has grown, s.
_POLL_SECONDS = 5.0


def measure(
    evaluator: Evaluator, jobs: Iterable[Job], run: RunSettings
) -> Generator[Cell, None, None]:
    """Measure with the engine that the settings of a run name, and yield each cell at once.

    Cells come in any order; a cell may come again where its job was restarted. When the generator
    is closed, all work stops.

    Args:
        evaluator: Copied to each worker.
        jobs: Taken one by one, as a worker becomes free.
        run: The engine, its number of workers, among which torch's threads are divided, and the
            address of a Ray cluster.

    Raises:
        RuntimeError: A job failed, or its workers died repeatedly.
        ValueError: There is no cluster at the address.
    """
    if run.engine == "local" and run.workers == 1:
        for job in jobs:
            yield from evaluator.measure(job)
        return
    for model in evaluator.models.values():
        model.cpu()
    if run.engine == "local":
        yield from _measure_in_processes(evaluator, iter(jobs), run.workers)
    else:
        yield from _measure_on_ray(evaluator, iter(jobs), run.workers, run.ray_address)


@dataclass
class _Worker:
    """A process, this process's end of the pipe to it, its job, and those that died at the job."""

    process: BaseProcess
    pipe: Connection
    job: Job
    deaths: int

    def assign(self, job: Job) -> None:
        self.job = job
        # The death of a worker is found when its pipe is read.
        with suppress(ConnectionError):
            self.pipe.send(job)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _measure_in_processes(evaluator: Evaluator, jobs: Iterator[Job], count: int) -> Iterator[Cell]:
    content = pickle.dumps(evaluator)
    threads = _threads_each(count)
    workers: list[_Worker] = []
    try:
        while True:
            while len(workers) < count and (job := next(jobs, None)) is not None:
                workers.append(_start(content, job, threads))
            if not workers:
                return
            ready = wait([worker.pipe for worker in workers])
            for worker in [w for w in workers if w.pipe in ready]:
                match _receive(worker):
                    case Cell() as cell:
                        left = worker.job.cells - {cell.subject}
                        worker.job = worker.job._replace(cells=left)
                        yield cell
                    case "done" if (job := next(jobs, None)) is not None:
                        worker.assign(job)
                        worker.deaths = 0
                    case "done":
                        workers.remove(worker)
                        worker.stop()
                    case "dead":
                        workers.remove(worker)
                        workers.append(_start(content, worker.job, threads, _deaths(worker)))
                    case RuntimeError() as error:
                        raise error
    finally:
        for worker in workers:
            worker.stop()


def _threads_each(count: int) -> int:
    """Return the number of torch's threads for each of so many processes."""
    return max(1, torch.get_num_threads() // count)


def _start(evaluator: bytes, job: Job, threads: int, deaths: int = 0) -> _Worker:
    worker = _Worker(*_fork(_work, threads, evaluator), job, deaths)
    worker.assign(job)
    return worker


def _fork(
    work: Callable[[Connection, int], None], threads: int, content: bytes
) -> tuple[BaseProcess, Connection]:
    """Start a process that does some work with so many threads, and send it what the work needs.

    Returns the process, and the pipe to it.
    """
    _FORKS.set_forkserver_preload([__name__])
    ours, theirs = _FORKS.Pipe()
    process = _FORKS.Process(target=work, args=(theirs, threads), daemon=True)
    # Workers inherit the mask: Ctrl-C is for this process, which then stops them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    # The death of a process is found when its pipe is read.
    with suppress(ConnectionError):
        ours.send_bytes(content)
    return process, ours


@contextmanager
def helped(work: Callable[[], object], count: int) -> Iterator[None]:
    """Run a function in `count` - 1 other processes as well while this one does the same work.

    Torch's threads are divided among them. Their warnings become this process's; an error ends one
    of them, and meets this process too, to which the work is left. They are stopped at the end.

    Example:
        >>> with helped(int, 1):
        ...     "alone"
        'alone'
    """
    content, before = pickle.dumps(work) if count > 1 else b"", torch.get_num_threads()
    threads = _threads_each(count)
    helpers: list[tuple[BaseProcess, Connection]] = []
    try:
        torch.set_num_threads(threads)
        for _ in range(count - 1):
            helpers.append(_fork(_help, threads, content))
        yield
    finally:
        torch.set_num_threads(before)
        for process, pipe in helpers:
            # Also of interrupted work: what is trained by then is not trained again.
            with suppress(EOFError, ConnectionError):
                while pipe.poll():
                    warnings.warn(pipe.recv(), stacklevel=2)
            process.kill()
            process.join()
            pipe.close()


def _help(pipe: Connection, threads: int) -> None:
    """Run a helper: receive a function, call it, and send the text of each warning."""
    _begin(threads)
    work = pickle.loads(pipe.recv_bytes())
    with own_warnings(pipe.send), suppress(Exception):
        work()


def _receive(worker: _Worker) -> Cell | str | RuntimeError:
    try:
        return worker.pipe.recv()
    except (EOFError, ConnectionError):
        return "dead"


def _deaths(worker: _Worker) -> int:
    """Return how many workers have died at this job; raise RuntimeError where they are too many."""
    worker.process.join()
    if worker.deaths == RETRIES:
        raise RuntimeError(
            f"{RETRIES + 1} workers died one after another at {worker.job.chip}, the last with "
            f"exit code {worker.process.exitcode}: fewer workers need less memory."
        )
    return worker.deaths + 1


def _work(pipe: Connection, threads: int) -> None:
    """Run a worker: receive the evaluator, then jobs; send each cell, and the end of each job."""
    _begin(threads)
    evaluator: Evaluator = pickle.loads(pipe.recv_bytes())
    while True:
        job: Job = pipe.recv()
        try:
            for cell in measure_in_worker(evaluator, job):
                pipe.send(cell)
        except Exception as error:
            failure = RuntimeError(f"A worker failed at {job.chip}: {error!r}.")
            failure.add_note(traceback.format_exc())
            pipe.send(failure)
        pipe.send("done")


def _begin(threads: int) -> None:
    """Set up a process of this one, with which it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    # Those of other packages would be printed over the progress bar, once per process.
    warnings.simplefilter("ignore")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _measure_on_ray(
    evaluator: Evaluator, jobs: Iterator[Job], workers: int, address: str | None
) -> Iterator[Cell]:
    """Measure on a Ray cluster, one job per processor at a time.

    A cluster that is running in this process, or at the address, is used; else one is started. The
    evaluator is put into its object store once. A job whose node is lost is restarted elsewhere, to
    the same bits.

    Source:
        Moritz et al., Ray, OSDI 2018.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(workers, address)
    threads = 1 if address else _threads_each(workers)
    remote: Any = ray.remote(num_cpus=1, max_retries=RETRIES, num_returns="streaming")(_run_job)
    running: list[Any] = []
    try:
        # In a list: ray would otherwise fetch it again for every job.
        shared = [ray.put(evaluator)]
        while True:
            room = int(ray.cluster_resources().get("CPU", 0))
            while len(running) < max(1, room) and (job := next(jobs, None)) is not None:
                running.append(remote.remote(shared, job, threads))
            if not running:
                return
            ready: list[Any] = ray.wait(running, timeout=_POLL_SECONDS, fetch_local=False)[0]
            for cells in ready:
                if (reference := next(cells, None)) is None:
                    running.remove(cells)
                else:
                    yield ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or error
        raise RuntimeError(f"A job failed on the Ray cluster: {reason!r}.") from error
    finally:
        for cells in running:
            # By its process: an exception raised in it may be swallowed by what it is computing.
            ray.cancel(cells, force=True)
        if ours:
            ray.shutdown()


def _connect(workers: int, address: str | None) -> None:
    import ray

    new: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    # The caller decides what a request to terminate does; ray would install its own handler.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = (address or "").rpartition(":")
        if host and port.isdecimal():
            # Where no process listens, ray would wait for minutes.
            place = (host.rpartition("/")[2], int(port))
            socket.create_connection(place, timeout=_POLL_SECONDS).close()
        options = {"address": address} if address else new
        ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"No Ray cluster answers at ray_address {address!r} ({error}): start one with ray "
            "start --head, or omit the address to have one started here."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _run_job(shared: list[Any], job: Job, threads: int) -> Iterator[Cell]:
    torch.set_num_threads(threads)
    yield from measure_in_worker(_fetched(shared[0]), job)


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> Evaluator:
    """Return the evaluator, fetched once by each process of the cluster."""
    import ray

    return ray.get(reference)
