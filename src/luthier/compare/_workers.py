"""Where the runs of a comparison happen: one after another here, or side by side in processes (`_ray.py`: on a cluster)."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from typing import Any, Literal, Protocol

from luthier.compare.results import RunResult, plain
from luthier.core.errors import ConfigError, LuthierError

RunOne = Callable[[str, Any, int], RunResult]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One run that is asked for."""

    arm: str
    recipe: Any
    seed: int


@dataclass(frozen=True)
class Trouble:
    """Why a run gave nothing: one line, and the traceback where there is one."""

    why: str
    trace: str = ""


Answer = RunResult | Trouble
Tell = Callable[[Literal["start", "lost"], Job, str], None]


class Executor(Protocol):
    """Runs jobs. at_once: how many at the same time, known at the latest when the first one starts."""

    at_once: int

    def run(self, jobs: Sequence[Job], run_one: RunOne, tell: Tell) -> Generator[tuple[Job, Answer]]:
        """Every job with its answer as it ends; tells of starts and losses. Closing it early ends what still runs."""
        ...


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(run_one: RunOne, job: Job) -> Answer:
    """One run, timed, checked to be the one that was asked for; an error becomes its trouble."""
    started = time.perf_counter()
    try:
        result = run_one(job.arm, job.recipe, job.seed)
        if not isinstance(result, RunResult) or (result.arm, result.seed) != (job.arm, job.seed):
            came = f"{result.arm}, seed {result.seed}" if isinstance(result, RunResult) else type(result).__name__
            raise TypeError(f"a run of {job.arm}, seed {job.seed} requires its own RunResult; got {came}")
    except (Exception, SystemExit) as fault:
        text = str(fault).strip() or "no message"
        why = text if isinstance(fault, LuthierError) else f"{type(fault).__name__}: {text}"
        return Trouble(why, traceback.format_exc())
    seconds = result.seconds or time.perf_counter() - started
    return replace(result, recipe=result.recipe or plain(job.recipe), seconds=seconds)


def sent(answer: Answer) -> bytes:
    """An answer as bytes for another process; one that cannot be sent becomes its trouble."""
    try:
        return pickle.dumps(answer)
    except Exception as fault:
        return pickle.dumps(Trouble(f"{type(fault).__name__}: {fault}", traceback.format_exc()))


def check_sendable(where: str, run_one: RunOne, arms: Mapping[str, Any]) -> None:
    """Raises ConfigError for a function or recipes that other processes cannot be given."""
    try:
        pickle.dumps((run_one, dict(arms)))
    except Exception as fault:
        raise ConfigError(
            f"running {where} requires a function and recipes that can be sent there; got {fault}. "
            "Define the function at the top of a module, or use one process."
        ) from fault


class InTurn:
    """One run after another in this process, with all its threads."""

    at_once = 1

    def run(self, jobs: Sequence[Job], run_one: RunOne, tell: Tell) -> Generator[tuple[Job, Answer]]:
        """See `Executor`."""
        for job in jobs:
            tell("start", job, "")
            yield job, attempt(run_one, job)
            gc.collect()


def _work(pipe: Any, run_one: RunOne) -> None:
    """The life of a worker: jobs in, results out, until the pipe closes; it never outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send_bytes(sent(attempt(run_one, job)))
        gc.collect()


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Give child processes their share of the cores; this process is as before afterwards."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


class _Worker:
    """A spawned process and the job it has now."""

    def __init__(self, run_one: RunOne, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, run_one), daemon=True)
        with _environment(threads):
            self.process.start()
        theirs.close()
        self.job = Job("", None, 0)

    def give(self, job: Job) -> None:
        """Hand over a run."""
        self.job = job
        with suppress(OSError):  # a worker that is already dead is noticed by its closed pipe
            self.pipe.send(job)

    def answer(self) -> Answer:
        """What came back, or why nothing did."""
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            if code is not None and code < 0:
                hint = "; the system may have been short of memory" if -code == signal.SIGKILL else ""
                return Trouble(f"its process was ended by {signal.Signals(-code).name}{hint}")
            return Trouble(f"its process ended with exit status {code}")

    def stop(self) -> None:
        """End the process, at once if it must be."""
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(5)
        self.pipe.close()


class Processes:
    """So many fresh processes side by side, each with an equal share of the cores as threads."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def run(self, jobs: Sequence[Job], run_one: RunOne, tell: Tell) -> Generator[tuple[Job, Answer]]:
        """See `Executor`."""
        threads, todo, workers = max(1, cores() // self.at_once), deque(jobs), list[_Worker]()

        def give(worker: _Worker) -> None:
            job = todo.popleft()
            tell("start", job, "")
            worker.give(job)

        try:
            while todo or workers:
                while todo and len(workers) < self.at_once:
                    workers.append(_Worker(run_one, threads))
                    give(workers[-1])
                ready = set(connection.wait([w.pipe for w in workers]))
                for worker in [w for w in workers if w.pipe in ready]:
                    yield worker.job, worker.answer()
                    if worker.process.is_alive() and todo:
                        give(worker)
                    else:
                        workers.remove(worker)
                        worker.stop()
        finally:
            for worker in workers:
                worker.stop()
