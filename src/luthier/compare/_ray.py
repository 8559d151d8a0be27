"""Runs of a comparison on a Ray cluster: same results as here, and a run whose worker is lost is given to another."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from luthier.compare._workers import THREAD_VARIABLES, Answer, Job, RunOne, Tell, Trouble, attempt, sent
from luthier.core.errors import ConfigError, MissingExtra, Refused, sentence

RERUNS = 3
_SECONDS = 10.0
_LOOK = 0.5
"""Seconds between two looks at whether Ctrl-C was pressed."""


def _there(payload: bytes, folder: str, path: list[str], threads: int) -> bytes:
    """One run in a worker, in the driver's folder, with the driver's modules and its share of the threads."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    sys.path += [p for p in path if p not in sys.path]
    try:
        os.chdir(folder)
    except OSError as fault:
        return sent(Trouble(sentence("a run on Ray", f"the folder {folder} on every machine", str(fault),
                                     "Start the comparison in a folder that all of them share")))  # fmt: skip
    run_one, job = pickle.loads(payload)
    return sent(attempt(run_one, job))


def connect(address: str) -> tuple[Any, bool]:
    """(the ray module, whether this call connected it) for "HOST:PORT", "ray://HOST:PORT", "auto" or "local".

    Raises MissingExtra without ray, and ConfigError where no cluster answers.
    """
    try:
        import ray
    except ImportError as fault:
        raise MissingExtra("compare --ray", "ray", "ray") from fault
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address not in ("auto", "local"):  # ray itself waits for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if not port.isdigit():
                raise ValueError("no HOST:PORT")
            socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as fault:
        came = f"{address!r} ({str(fault).strip().splitlines()[0].rstrip('.') if str(fault).strip() else type(fault).__name__})"
        raise ConfigError(sentence("--ray", "the address of a running Ray cluster", came,
                                   "Start one with `ray start --head`, and give its HOST:PORT")) from fault  # fmt: skip
    return ray, True


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C as something to look at: an exception that rises inside Ray's own code can be lost there."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def share(nodes: Sequence[Mapping[str, float]], asked: int) -> tuple[int, int, float]:
    """(runs at once, cores of each, GPUs of each) over machines with these resources ("CPU", "GPU").

    asked: runs at once; 0 is one for each GPU, and one for each machine where there are fewer.

    >>> share([{"CPU": 8.0}, {"CPU": 4.0}], 0), share([{"CPU": 8.0}, {"CPU": 8.0}], 4)
    ((2, 4, 0.0), (4, 4, 0.0))
    >>> share([{"CPU": 16.0, "GPU": 4.0}], 0), share([{"CPU": 16.0, "GPU": 1.0}], 2)
    ((4, 4, 1.0), (2, 8, 0.5))
    """
    nodes = [n for n in nodes if n.get("CPU", 0) >= 1]
    if not nodes:
        raise Refused(sentence("--ray", "a cluster with a free machine of at least one core", "none", "Add a worker"))
    gpus = min(n.get("GPU", 0.0) for n in nodes)
    at_once = asked or max(len(nodes), int(gpus) * len(nodes))
    each = math.ceil(at_once / len(nodes))
    return at_once, max(1, int(min(n["CPU"] for n in nodes) // each)), min(1.0, gpus / each)


class Ray:
    """The workers of a Ray cluster; each run has its share of a machine. asked: runs at once, see `share`."""

    def __init__(self, address: str, asked: int = 0) -> None:
        self.address, self.asked, self.at_once = address, asked, max(1, asked)

    def run(self, jobs: Sequence[Job], run_one: RunOne, tell: Tell) -> Generator[tuple[Job, Answer]]:
        """See `Executor`. A run is given away at most `RERUNS` times more when its worker or machine is lost."""
        with _interrupts() as seen:
            yield from self._run(jobs, run_one, tell, seen)

    def _run(self, jobs: Sequence[Job], run_one: RunOne, tell: Tell, seen: list[int]) -> Generator[tuple[Job, Answer]]:
        ray, mine = connect(self.address)
        waiting, running, lost = deque(jobs), dict[Any, Job](), Counter[tuple[str, int]]()
        try:
            nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
            self.at_once, cpus, gpus = share(nodes, self.asked)
            task = ray.remote(_there).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
            while waiting or running:
                if seen:
                    raise KeyboardInterrupt
                while waiting and len(running) < self.at_once:
                    job = waiting.popleft()
                    tell("start", job, "")
                    payload = pickle.dumps((run_one, job))
                    running[task.remote(payload, os.getcwd(), [p for p in sys.path if p], cpus)] = job
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK)
                if not ready:
                    continue
                (done,) = ready
                job = running.pop(done)
                try:
                    answer: Answer = pickle.loads(ray.get(done))
                except ray.exceptions.RayTaskError as fault:
                    answer = Trouble(f"the worker could not begin: {fault.cause}", str(fault))
                except ray.exceptions.RayError as fault:
                    lost[job.arm, job.seed] += 1
                    answer = Trouble(f"its worker was lost ({type(fault).__name__})", str(fault))
                    if lost[job.arm, job.seed] <= RERUNS:
                        tell("lost", job, f"{answer.why}; it is run again")
                        waiting.appendleft(job)
                        continue
                yield job, answer
        finally:
            for ref in running:
                ray.cancel(ref, force=True)
            if mine:
                ray.shutdown()
