"""Run every arm with every seed: resumable, one file per run, failures recorded while the others go on.

Runs go one after another in this process with all threads, side by side in fresh processes that share the cores out
between them, or over a Ray cluster; two runs never compete for the same cores. Seeds are the outer loop, so that stopping
early leaves whole pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.compare._workers import Executor, InTurn, Job, Processes, RunOne, Trouble, check_sendable
from luthier.compare.results import RunResult, check_names, key_of, read_result, run_path, write_result
from luthier.core.errors import CheckpointError, ConfigError, OutputError, counted
from luthier.core.files import write_json
from luthier.report.content import Failure

Place = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened. kind "reused": a finished result was read; "damaged": a file is bad and is run again; "lost": the
    worker of a run is gone, and the run is given to another.

    done of total runs have ended; seconds: of this run; eta: seconds left, None while unknown.
    """

    kind: Literal["reused", "damaged", "start", "lost", "done", "failed", "interrupted"]
    arm: str = ""
    seed: int = 0
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    eta: float | None = None
    message: str = ""

    def __str__(self) -> str:
        left = "" if self.eta is None or self.done == self.total else f", about {duration(self.eta)} left"
        took = f" in {duration(self.seconds)}" if self.kind == "done" else ""
        what = f"{self.arm}, seed {self.seed}: " if self.arm else ""
        return f"[{self.done}/{self.total}] {what}{self.kind}{took}{': ' + self.message if self.message else ''}{left}"


@dataclass(frozen=True)
class Outcome:
    """All that is finished: results in the order of seeds and arms, failures, and whether Ctrl-C ended it early."""

    results: tuple[RunResult, ...]
    failures: tuple[Failure, ...]
    interrupted: bool = False


def duration(seconds: float) -> str:
    """Seconds in words that fit a progress line.

    >>> duration(3.21), duration(75), duration(7400)
    ('3.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class _Clock:
    """Durations by arm, for the time left."""

    executor: Executor
    seen: dict[str, list[float]] = field(default_factory=dict)

    def note(self, arm: str, seconds: float) -> None:
        """Remember how long a run of this arm took."""
        self.seen.setdefault(arm, []).append(seconds)

    def left(self, jobs: Sequence[Place]) -> float | None:
        """Seconds that these runs will take; None before anything was seen."""
        if not self.seen:
            return None
        mean = {a: sum(v) / len(v) for a, v in self.seen.items()}
        overall = sum(mean.values()) / len(mean)
        return sum(mean.get(arm, overall) for arm, _ in jobs) / self.executor.at_once


class _Ledger:
    """What is finished, what is left, and the files of both."""

    def __init__(
        self,
        arms: Mapping[str, Any],
        seeds: Sequence[int],
        out: Path,
        keys: Mapping[str, str],
        tell: Callable[[Event], None],
        executor: Executor,
    ) -> None:
        self.arms, self.out, self.keys, self.tell = arms, out, keys, tell
        self.jobs: list[Place] = [(arm, seed) for seed in seeds for arm in arms]
        self.results: dict[Place, RunResult] = {}
        self.failures: dict[Place, Failure] = {}
        self.clock = _Clock(executor)

    def event(self, kind: Any, job: Place | None = None, seconds: float = 0.0, message: str = "") -> None:
        """Tell of something that happened, with the counts and the time left."""
        left = self.clock.left([j for j in self.jobs if j not in self.results and j not in self.failures])
        arm, seed = job or ("", 0)
        done = len(self.results) + len(self.failures)
        self.tell(
            Event(
                kind=kind,
                arm=arm,
                seed=seed,
                done=done,
                total=len(self.jobs),
                seconds=seconds,
                eta=left,
                message=message,
            )
        )

    def read(self) -> None:
        """Take over finished results. Raises OutputError naming all files of another comparison."""
        foreign: list[str] = []
        for arm, seed in self.jobs:
            path = run_path(self.out, arm, seed)
            if not path.exists():
                continue
            try:
                result = read_result(path, self.keys[arm]).result
            except OutputError as fault:
                foreign.append(str(fault))
            except CheckpointError as fault:
                self.event("damaged", (arm, seed), message=f"{fault} It is run again now.")
            else:
                self.results[arm, seed] = result
                self.clock.note(arm, result.seconds)
                self.event("reused", (arm, seed), result.seconds)
        if foreign:
            raise OutputError("\n".join(foreign))

    def todo(self) -> list[Job]:
        """Runs without a result, in order."""
        return [Job(arm, self.arms[arm], seed) for arm, seed in self.jobs if (arm, seed) not in self.results]

    def finished(self, job: Place, result: RunResult) -> None:
        """Write a result and tell of it."""
        write_result(self.out, result, self.keys[job[0]])
        self.results[job] = result
        self.clock.note(job[0], result.seconds)
        self.event("done", job, result.seconds)

    def failed(self, job: Place, why: str, trace: str = "") -> None:
        """Record why a run gave nothing, and tell of it."""
        arm, seed = job
        record = {"arm": arm, "seed": seed, "key": self.keys[arm], "error": why, "traceback": trace}
        write_json(run_path(self.out, arm, seed, failed=True), record)
        self.failures[job] = Failure(arm=arm, seed=seed, why=why)
        self.event("failed", job, message=why)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the output folder, where the system has file locks; a second comparison in it is refused."""
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        handle = (out / "runs" / ".lock").open("w")
    except OSError as fault:
        raise OutputError(
            f"{out} requires a writable folder; got: {fault.strerror or fault}. Choose another one."
        ) from fault
    with handle:
        try:
            import fcntl
        except ImportError:
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise OutputError(
                f"{out} requires to be free; another comparison is running in it. Wait, or choose another."
            ) from fault
        yield


def _check(arms: Mapping[str, Any], seeds: Sequence[int], processes: int | Literal["auto"]) -> None:
    check_names(arms)
    if not arms or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"a comparison requires arms and different seeds; got {counted(len(arms), 'arm')} and seeds {list(seeds)}. Name them."
        )
    if processes != "auto" and processes < 1:
        raise ConfigError(f"processes requires a number from 1 on, or 'auto'; got {processes}. Give one.")


def _executor(processes: int | Literal["auto"], ray: str | None, run_one: RunOne, arms: Mapping[str, Any]) -> Executor:
    """Who runs the jobs."""
    if ray is not None:
        from luthier.compare._ray import Ray

        check_sendable("on Ray", run_one, arms)
        return Ray(ray, 0 if processes == "auto" else processes)
    if processes == "auto" or processes == 1:
        return InTurn()
    check_sendable(f"in {processes} processes", run_one, arms)
    return Processes(processes)


def _carry_out(ledger: _Ledger, executor: Executor, run_one: RunOne) -> None:
    """Run what is left, and write every answer as it comes."""

    def tell(kind: Literal["start", "lost"], job: Job, message: str) -> None:
        ledger.event(kind, (job.arm, job.seed), message=message)

    if not (todo := ledger.todo()):
        return
    with closing(executor.run(todo, run_one, tell)) as answers:
        for job, answer in answers:
            if isinstance(answer, Trouble):
                ledger.failed((job.arm, job.seed), answer.why, answer.trace)
            else:
                ledger.finished((job.arm, job.seed), answer)


def run_all(
    arms: Mapping[str, Any],
    seeds: Sequence[int],
    run_one: RunOne,
    out: Path,
    processes: int | Literal["auto"] = "auto",
    on_event: Callable[[Event], None] | None = None,
    context: Mapping[str, Any] | None = None,
    ray: str | None = None,
) -> Outcome:
    """Run arms x seeds; finished runs under `out` are taken over, failed and damaged ones are run again.

    arms: name -> recipe; the first is the baseline. run_one(arm, recipe, seed) returns that run's RunResult, and leaves
    Ctrl-C to this function. processes: "auto" is 1, one run after another in this process with all its threads; more
    start that many fresh processes, each with an equal share of the cores as threads. context: whatever else must be
    equal for a stored result to be taken over, such as versions or the fingerprint of the data. ray: address of a Ray
    cluster; `processes` is then the number of runs at once ("auto": one for each machine or GPU), and a run whose worker is
    lost is run again by another.
    Raises OutputError before anything runs when `out` holds results of another comparison, or when the disk refuses.
    """
    _check(arms, seeds, processes)
    executor = _executor(processes, ray, run_one, arms)
    out = Path(out)
    keys = {arm: key_of(recipe, context) for arm, recipe in arms.items()}
    ledger = _Ledger(arms, seeds, out, keys, on_event or (lambda event: None), executor)
    interrupted = False
    with _alone(out):
        ledger.read()
        try:
            _carry_out(ledger, executor, run_one)
        except KeyboardInterrupt:
            interrupted = True
            ledger.event("interrupted", message="finished runs are kept; the same command goes on from here")
    results = tuple(ledger.results[j] for j in ledger.jobs if j in ledger.results)
    return Outcome(results, tuple(ledger.failures[j] for j in ledger.jobs if j in ledger.failures), interrupted)
