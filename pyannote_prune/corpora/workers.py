"""Processes and actors that diarize: one recording each at a time, replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pyannote_prune.corpora.diarizer import Diarizer, Outcome, failure
from pyannote_prune.corpora.jobs import Job
from pyannote_prune.errors import InputError, InterruptionError, describe
from pyannote_prune.inference.devices import find_device

# attempts at a recording, the last by a new worker
_ATTEMPTS = 2
# workers that may die in a row while they load the pipeline
_DEAD_ON_ARRIVAL = 3
# seconds that the exit code of a process whose pipe is closed may take
_SECONDS_TO_DIE = 5.0


class Worker(Protocol):
    """A process or an actor with a diarizer"""

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of its diarizer there."""
        ...

    def kill(self) -> None:
        """End it, whatever it does."""
        ...

    def epitaph(self, error: Exception) -> str:
        """Why it died, in words."""
        ...


@dataclass
class _Task:
    """What a worker does: load the pipeline, where there is no recording"""

    number: int
    worker: Worker
    job: Job | None
    begin: float


def dispatch(
    jobs: Sequence[Job], start: Callable[[int], Worker], num_workers: int, timeout: float | None = None
) -> Generator[tuple[Job, Outcome], None, None]:
    """Have workers diarize recordings

    A worker that dies costs one attempt at its recording, which another worker then tries once more, after all others.
    One that takes longer than the time-out is killed, and its recording not tried again.

    Parameters
    ----------
    jobs : sequence of Job
        The largest files are begun first.
    start : callable
        Makes a worker, given its number from 0.
    num_workers : int
    timeout : float, optional
        Seconds for a recording.

    Yields
    ------
    job : Job
    outcome : Outcome
        As soon as it is there.

    Raises
    ------
    InputError
        When the pipeline cannot be loaded.
    InterruptionError
        When workers die while they load it.
    """
    queue, attempts = deque(sorted(jobs, key=_size, reverse=True)), Counter[Job]()
    running: dict[Future[Any], _Task] = {}
    unborn = 0

    def begin(number: int, worker: Worker | None = None) -> None:
        fresh = worker is None
        worker = start(number) if worker is None else worker
        job = None if fresh else queue.popleft()
        future = worker.submit("setup") if job is None else worker.submit("process", job)
        running[future] = _Task(number, worker, job, time.monotonic())

    try:
        for number in range(min(num_workers, len(queue))):
            begin(number)
        while queue or any(task.job for task in running.values()):
            done, _ = wait(running, _until_next(running, timeout), FIRST_COMPLETED)
            late = {each for each in running.keys() - done if _seconds_left(running[each], timeout) <= 0}
            for future in done | late:
                task = running.pop(future)
                alive, outcome = True, None
                if future in late:
                    alive, outcome = False, _too_slow(task, timeout)
                else:
                    try:
                        outcome = future.result()
                        unborn = 0
                    except InputError as error:  # of Ray, whose text is a traceback
                        raise InputError(str(getattr(error, "cause", error))) from error
                    except Exception as error:
                        alive = False
                        unborn += task.job is None
                        if unborn >= _DEAD_ON_ARRIVAL:
                            told = task.worker.epitaph(error)
                            raise InterruptionError(
                                f"Workers die while they load the pipeline ({told}): fewer of them need less memory."
                            ) from error
                        if task.job is not None:
                            attempts[task.job] += 1
                            if attempts[task.job] < _ATTEMPTS:
                                queue.append(task.job)
                            else:
                                outcome = _killed(task, error)
                if not alive:
                    task.worker.kill()
                if queue:
                    begin(task.number, task.worker if alive else None)
                elif alive:
                    task.worker.kill()
                if task.job is not None and outcome is not None:
                    yield task.job, outcome
    finally:
        for task in running.values():
            task.worker.kill()


def _seconds_left(task: _Task, timeout: float | None) -> float:
    return float("inf") if task.job is None or timeout is None else task.begin + timeout - time.monotonic()


def _until_next(running: dict[Future[Any], _Task], timeout: float | None) -> float | None:
    least = min(_seconds_left(task, timeout) for task in running.values())
    return None if least == float("inf") else max(0.0, least)


def _too_slow(task: _Task, timeout: float | None) -> Outcome | None:
    assert task.job is not None
    error = InputError(f"{task.job.path} took longer than the time-out of {timeout:g} s.")
    return failure(task.job.uri, error, time.monotonic() - task.begin, task.job.uri)


def _killed(task: _Task, error: Exception) -> Outcome:
    assert task.job is not None
    told = InputError(f"{task.job.path} ended {_ATTEMPTS} processes that worked on it ({task.worker.epitaph(error)}).")
    return failure(task.job.uri, told, time.monotonic() - task.begin, task.job.uri)


class Process:
    """A process of this machine with a diarizer

    Parameters
    ----------
    diarizer : Diarizer
    num_threads : int
        Threads of PyTorch and ONNX Runtime.
    """

    def __init__(self, diarizer: Diarizer, num_threads: int) -> None:
        self._diarizer = diarizer
        # one of its own for each process: when a process dies, it is clear which recording it worked on
        self._executor = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(num_threads,)
        )
        self._process: Any = None

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the diarizer there."""
        before = set(multiprocessing.active_children())
        future = self._executor.submit(_call, self._diarizer, method, *arguments)
        if self._process is None:
            (self._process,) = set(multiprocessing.active_children()) - before
        return future

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._executor.shutdown(wait=False)

    def epitaph(self, error: Exception) -> str:
        """Why it died, in words."""
        # the executor waits for the process, too: who does so second sees the exit code a little later
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while (code := self._process.exitcode) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if code is None or code >= 0:
            return describe(error)
        name = signal.Signals(-code).name
        return f"{name}: possibly for lack of memory" if name == "SIGKILL" else name


def _begin(num_threads: int) -> None:
    # Ctrl-C is for the parent, which ends this process; if that is killed, this one ends by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    torch.set_num_threads(num_threads)


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _call(diarizer: Diarizer, method: str, *arguments: Any) -> Any:
    return getattr(diarizer, method)(*arguments)


def diarize_in_processes(
    diarizer: Diarizer, jobs: Sequence[Job], num_processes: int, timeout: float | None = None
) -> Generator[tuple[Job, Outcome], None, None]:
    """Diarize recordings in processes of this machine, the largest files first

    Processor cores are divided among the processes, and so are GPUs, if there are several.

    Parameters
    ----------
    diarizer : Diarizer
    jobs : sequence of Job
    num_processes : int
    timeout : float, optional
        Seconds for a recording.

    Yields
    ------
    job : Job
    outcome : Outcome

    Raises
    ------
    InputError
        When a recording is a stream, or the pipeline cannot be loaded.
    """
    refuse_streams(jobs)
    num_processes = min(num_processes, len(jobs))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = find_device(diarizer.device)
    several = device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1

    def start(number: int) -> Process:
        own = f"cuda:{number % torch.cuda.device_count()}" if several else diarizer.device
        return Process(replace(diarizer, device=own), max(1, cores // num_processes))

    yield from dispatch(jobs, start, num_processes, timeout)


def refuse_streams(jobs: Sequence[Job]) -> None:
    """Refuse what other processes cannot read, by an `InputError`."""
    for job in jobs:
        if job.is_stream:
            raise InputError(f"{job.path} is a stream, which this process alone can read: leave out --jobs and --ray.")


def _size(job: Job) -> int:
    return job.path.stat().st_size if job.path.is_file() else 0
