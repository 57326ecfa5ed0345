"""The engine of one machine: this process, or several that share its cores."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from analog_grasp.study.evaluator import Bench, Cell, Job

# How often a job is given to another worker after the one that had it has died.
RETRIES = 2
# Workers are forks of a process that has imported everything and done nothing: they begin at once,
# and inherit neither threads nor locks.
_FORKS = multiprocessing.get_context("forkserver")


def measure(bench: Bench, jobs: Iterable[Job], workers: int) -> Generator[Cell, None, None]:
    """Measure in this process with one worker, else in as many processes.

    Args:
        bench: What is measured with.
        jobs: Taken one by one, as a worker becomes free.
        workers: The number of processes, among which torch's threads are divided.

    Raises:
        RuntimeError: A worker failed; or it died, and so did those that had its job after it.
    """
    if workers == 1:
        for job in jobs:
            yield from bench.measure(job)
    else:
        yield from _shared_out(bench, iter(jobs), workers)


@dataclass
class _Worker:
    """A process, our end of the pipe to it, and the job that it has."""

    process: BaseProcess
    pipe: Connection
    job: Job
    deaths: int = 0
    """How many workers have died of this job."""
    has_bench: bool = False


def _shared_out(bench: Bench, jobs: Iterator[Job], count: int) -> Iterator[Cell]:
    for model in bench.models.values():
        model.cpu()
    content = pickle.dumps(bench)
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
                match _hear(worker):
                    case Cell() as cell:
                        worker.job = _without(worker.job, cell)
                        yield cell
                    case "free":
                        if not _occupy(worker, content, jobs):
                            workers.remove(worker)
                            _stop(worker)
                    case "dead":
                        workers.remove(worker)
                        workers.append(_start(worker.job, threads, _deaths(worker)))
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


def _hear(worker: _Worker) -> Cell | str | RuntimeError:
    try:
        return worker.pipe.recv()
    except (EOFError, ConnectionError):
        return "dead"


def _occupy(worker: _Worker, bench: bytes, jobs: Iterator[Job]) -> bool:
    """Give a worker that is free its first job, or the next one; False if there is none."""
    try:
        if not worker.has_bench:
            worker.pipe.send_bytes(bench)
            worker.has_bench = True
        elif (job := next(jobs, None)) is None:
            return False
        else:
            worker.job, worker.deaths = job, 0
        worker.pipe.send(worker.job)
    except ConnectionError:
        pass  # It has died, which its pipe will tell.
    return True


def _without(job: Job, cell: Cell) -> Job:
    return Job(job.chip, job.cells - {(cell.adapter, cell.time_s)})


def _deaths(worker: _Worker) -> int:
    """One more than before; too many end the run."""
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
    """A worker: says that it is free, gets the bench, then jobs; tells each cell of them."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    pipe.send("free")
    bench: Bench = pickle.loads(pipe.recv_bytes())
    while True:
        job: Job = pipe.recv()
        try:
            for cell in bench.measure(job):
                pipe.send(cell)
        except Exception as error:
            told = RuntimeError(f"A worker failed at chip {job.chip.seed}: {error!r}.")
            told.add_note(traceback.format_exc())
            pipe.send(told)
        pipe.send("free")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
