"""Engine of one machine: this process, or several that share its cores."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from analog_grasp.study.evaluator import Cell, Evaluator, Job, measure_in_worker

# How often a job is given to another worker after the one that had it has died.
RETRIES = 2
# Workers are forks of a process that has imported everything and done nothing: they start at
# once, and inherit neither threads nor locks.
_FORKS = multiprocessing.get_context("forkserver")


def measure(evaluator: Evaluator, jobs: Iterable[Job], workers: int) -> Generator[Cell, None, None]:
    """Measure in this process with one worker, else in as many processes.

    Args:
        evaluator: Copied to each worker.
        jobs: Taken one by one, as a worker becomes free.
        workers: Number of processes, among which torch's threads are divided.

    Raises:
        RuntimeError: A worker failed; or it died, and so did those that had its job after it.
    """
    if workers == 1:
        for job in jobs:
            yield from evaluator.measure(job)
    else:
        yield from _distribute(evaluator, iter(jobs), workers)


@dataclass
class _Worker:
    """A process, this process's end of the pipe to it, and its job."""

    process: BaseProcess
    pipe: Connection
    job: Job
    deaths: int = 0
    """Number of workers that have died at this job."""
    has_evaluator: bool = False


def _distribute(evaluator: Evaluator, jobs: Iterator[Job], count: int) -> Iterator[Cell]:
    for model in evaluator.models.values():
        model.cpu()
    content = pickle.dumps(evaluator)
    _FORKS.set_forkserver_preload([__name__])
    threads = max(1, torch.get_num_threads() // count)
    workers: list[_Worker] = []
    try:
        while True:
            while len(workers) < count and (job := next(jobs, None)) is not None:
                workers.append(_start(job, threads))
            if not workers:
                return
            ready = wait([worker.pipe for worker in workers])
            for worker in [w for w in workers if w.pipe in ready]:
                match _receive(worker):
                    case Cell() as cell:
                        left = worker.job.cells - {cell.subject}
                        worker.job = worker.job._replace(cells=left)
                        yield cell
                    case "free":
                        if not _assign(worker, content, jobs):
                            workers.remove(worker)
                            _stop(worker)
                    case "dead":
                        workers.remove(worker)
                        workers.append(_start(worker.job, threads, _count_deaths(worker)))
                    case RuntimeError() as error:
                        raise error
    finally:
        for worker in workers:
            _stop(worker)


def _start(job: Job, threads: int, deaths: int = 0) -> _Worker:
    ours, theirs = _FORKS.Pipe()
    process = _FORKS.Process(target=_work, args=(theirs, threads), daemon=True)
    # Workers inherit the mask: Ctrl-C is for this process, which then stops them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()
    return _Worker(process, ours, job, deaths)


def _receive(worker: _Worker) -> Cell | str | RuntimeError:
    try:
        return worker.pipe.recv()
    except (EOFError, ConnectionError):
        return "dead"


def _assign(worker: _Worker, evaluator: bytes, jobs: Iterator[Job]) -> bool:
    """Send a free worker its first job or the next one; return False if there is none."""
    try:
        if not worker.has_evaluator:
            worker.pipe.send_bytes(evaluator)
            worker.has_evaluator = True
        elif (job := next(jobs, None)) is None:
            return False
        else:
            worker.job, worker.deaths = job, 0
        worker.pipe.send(worker.job)
    except ConnectionError:
        pass  # The worker has died, which the next read from its pipe shows.
    return True


def _count_deaths(worker: _Worker) -> int:
    """Return how many workers have died at this job.

    Raises:
        RuntimeError: Too many.
    """
    worker.process.join()
    if worker.deaths == RETRIES:
        raise RuntimeError(
            f"{RETRIES + 1} workers died one after another at chip {worker.job.chip.seed} of "
            f"{worker.job.chip.device}, the last with exit code {worker.process.exitcode}: fewer "
            "workers need less memory."
        )
    return worker.deaths + 1


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _work(pipe: Connection, threads: int) -> None:
    """Run a worker: report that it is free, receive the evaluator, then jobs; send each cell."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    # Those of other packages would be printed over the progress bar, once per worker.
    warnings.simplefilter("ignore")
    pipe.send("free")
    evaluator: Evaluator = pickle.loads(pipe.recv_bytes())
    while True:
        job: Job = pipe.recv()
        try:
            for cell in measure_in_worker(evaluator, job):
                pipe.send(cell)
        except Exception as error:
            failure = RuntimeError(f"A worker failed at chip {job.chip.seed}: {error!r}.")
            failure.add_note(traceback.format_exc())
            pipe.send(failure)
        pipe.send("free")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
