"""Successive halving: many configurations, few runs each; the best third gets more steps and other seeds, until few are left.

A configuration is an arm with a learning rate, so that every arm races at rates of its own. The last comparison is made on
seeds that chose nothing, with at most one configuration of each arm. All runs go through `runner.run_all`, whose files make
the race resumable: what is decided is a pure function of the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.compare.results import RunResult
from luthier.compare.runner import Event, Outcome, run_all
from luthier.core.errors import ConfigError, LuthierError, Refused, counted, sentence
from luthier.report.content import Failure, RaceLine, RaceRung

FIRST_CHOOSING_SEED = 1000
RunOne = Callable[[str, Any, int], RunResult]


@dataclass(frozen=True)
class Configuration:
    """An arm with a learning rate."""

    arm: str
    rate: float

    def __str__(self) -> str:
        return f"{self.arm} @ {self.rate:g}"


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """shares: of the full steps, for each choosing rung; counts: seeds of each of them; keep: share of configurations that goes
    on; seeds: of the last comparison; finalists: arms in it, the baseline among them."""

    shares: tuple[float, ...] = (0.25, 0.5)
    counts: tuple[int, ...] = (1, 2)
    keep: float = 1 / 3
    seeds: tuple[int, ...] = tuple(range(8))
    finalists: int = 5

    def __post_init__(self) -> None:
        if not self.shares or len(self.shares) != len(self.counts) or min(self.counts) < 1 or not self.seeds:
            raise ConfigError(sentence("a race", "seeds, and a share of steps and a number of seeds for each rung",
                                       f"{self.shares}, {self.counts}", "Give as many of one as of the other"))  # fmt: skip
        if not all(0 < s <= 1 for s in self.shares) or not 0 < self.keep < 1 or self.finalists < 2:
            raise ConfigError(sentence("a race", "shares above 0 and up to 1, 0 < keep < 1, two finalists at least",
                                       f"{self.shares}, {self.keep}, {self.finalists}", "Change them"))  # fmt: skip

    def rungs(self) -> list[tuple[float, tuple[int, ...]]]:
        """(share of steps, seeds) of each choosing rung; no seed comes twice, and none is one of the last comparison."""
        free = (s for s in range(FIRST_CHOOSING_SEED, FIRST_CHOOSING_SEED + 10**6) if s not in self.seeds)
        return [(share, tuple(next(free) for _ in range(n))) for share, n in zip(self.shares, self.counts, strict=True)]

    def sizes(self, arms: int, rates: int) -> list[int]:
        """How many configurations run in each choosing rung, and how many arms at the end, if nothing fails."""
        out = [arms * rates]
        for _ in self.shares[1:]:
            out.append(min(out[-1], max(self.finalists, math.ceil(self.keep * out[-1]))))
        return [*out, min(arms, self.finalists)]

    def runs(self, arms: int, rates: int) -> int:
        """Training runs of the whole race, at most one more for each rung and seed where the baseline is kept on."""
        return sum(n * s for n, s in zip(self.sizes(arms, rates), (*self.counts, len(self.seeds)), strict=True))


@dataclass(frozen=True, kw_only=True)
class Judge:
    """by: readings that decide; with several, the mean of the places on each; with none, the first by name that has a better
    direction. cap: (reading, most): configurations that read
    more come behind all others, the least excess first. Which way is better is the reading's own."""

    by: tuple[str, ...]
    cap: tuple[str, float] | None = None

    def words(self) -> str:
        """The rule in words."""
        rule = self.by[0] if len(self.by) == 1 else f"the mean of the places on {' and '.join(self.by)}"
        rule = rule if self.by else "the first reading of the measure"
        return rule + (f", {self.cap[0]} at most {self.cap[1]:g} (those above it come last)" if self.cap else "")

    @property
    def readings(self) -> tuple[str, ...]:
        """All readings that are looked at."""
        return (*self.by, self.cap[0]) if self.cap else self.by

    def settled(self, results: Sequence[RunResult]) -> Judge:
        """With the readings named, from those of the results. Raises Refused where there is none to judge by."""
        better = {n: r.better for result in results for n, r in result.readings.items()}
        fit = [n for n in sorted(better) if better[n] and not (self.cap and n == self.cap[0])]
        by = self.by or tuple(fit[:1])
        absent = [repr(n) for n in (*by, *self.readings) if n not in better]
        if results and (absent or not by):
            raise Refused(sentence("a race", f"the reading {absent[0] if absent else 'with a direction'} to judge by",
                                   f"readings {', '.join(sorted(better)) or 'none'}", "Name one of them with --by"))  # fmt: skip
        if dull := [n for n in by if n in better and not better[n]]:
            raise Refused(
                sentence("a race", "a reading of which more or less is better", dull[0], "Choose another with --by")
            )
        return replace(self, by=by)

    def order(self, figures: Sequence[Mapping[str, float]], better: Mapping[str, int]) -> list[int]:
        """Indices, best first; equals stay in the order given."""
        place = [0.0] * len(figures)
        for name in self.by:
            values = [better[name] * f[name] for f in figures]
            for i, v in enumerate(values):
                place[i] += sum(w > v for w in values) + sum(w == v for w in values) / 2
        over = [max(0.0, f[self.cap[0]] - self.cap[1]) if self.cap else 0.0 for f in figures]
        return sorted(range(len(figures)), key=lambda i: (over[i], place[i]))


@dataclass
class Raced:
    """What a race found: the judge with its readings named, the rungs, the last comparison's configurations and its outcome.

    finalists: the baseline first. interrupted: Ctrl-C; the same call goes on.
    """

    judge: Judge
    rungs: list[RaceRung] = field(default_factory=list)
    finalists: list[Configuration] = field(default_factory=list)
    outcome: Outcome = field(default_factory=lambda: Outcome((), ()))
    interrupted: bool = False


Configure = Callable[[Any, float, "float | None"], Any]
"""(arm's recipe, rate, share of the steps, None in the last comparison) -> the recipe to run."""


def race(
    arms: Mapping[str, Any],
    rates: Sequence[float],
    ladder: Ladder,
    judge: Judge,
    configure: Configure,
    run_one: RunOne,
    out: Path,
    processes: int = 1,
    on_event: Callable[[Event], None] | None = None,
    on_rung: Callable[[str], None] | None = None,
    ray: str | None = None,
) -> Raced:
    """Race arms x rates; the first arm is the baseline and stays to the end, whatever it reads.

    Files lie under out/rungs/1, 2, ... and, of the last comparison, under out/runs, as `run_all` writes them. A configuration
    that lost a run is dropped, and the others go on. Raises LuthierError when the baseline fails at every rate, or nothing is
    left to compare it with; Refused when the judge's readings were not measured.
    """
    if len(arms) < 2 or not rates or len(set(rates)) < len(rates):
        raise ConfigError(
            sentence("a race", "two arms and different rates", f"{counted(len(arms), 'arm')}, {list(rates)}", "Name more")
        )
    tell, raced, baseline = on_rung or (lambda words: None), Raced(judge), next(iter(arms))
    going = [Configuration(a, r) for a in arms for r in rates]
    for n, (share, seeds) in enumerate(ladder.rungs(), 1):
        tell(
            f"rung {n} of {len(ladder.shares)}: {counted(len(going), 'configuration')}, {share:.0%} of the steps, "
            f"{counted(len(seeds), 'seed')}"
        )
        recipes = {str(c): configure(arms[c.arm], c.rate, share) for c in going}
        outcome = run_all(recipes, seeds, run_one, Path(out) / "rungs" / str(n), processes, on_event, ray=ray)
        if outcome.interrupted:
            raced.interrupted = True
            return raced
        raced.judge = judge = judge.settled(outcome.results)
        last = n == len(ladder.shares)
        keep = max(ladder.finalists, math.ceil(ladder.keep * len(going)))
        lines, going = judged(going, seeds, outcome, judge, baseline, ladder.finalists if last else keep, last)
        raced.rungs.append(RaceRung(share=share, seeds=seeds, lines=tuple(lines)))
    raced.finalists = going
    tell(
        f"last comparison: {counted(len(going), 'arm')}, all steps, {counted(len(ladder.seeds), 'seed')} that chose nothing"
    )
    recipes = {c.arm: configure(arms[c.arm], c.rate, None) for c in going}
    raced.outcome = run_all(recipes, ladder.seeds, run_one, Path(out), processes, on_event, ray=ray)
    raced.interrupted = raced.outcome.interrupted
    return raced


def judged(going: Sequence[Configuration], seeds: Sequence[int], outcome: Outcome, judge: Judge, baseline: str, keep: int,
           one_each: bool) -> tuple[list[RaceLine], list[Configuration]]:  # fmt: skip
    """The lines of a rung, best first, and the configurations that go on: `keep` of them, the best of the baseline and the best
    of the others among them.

    one_each: at most one configuration of an arm goes on, and the baseline comes first.
    """
    found, failed = _figures(going, seeds, outcome, judge)
    if baseline not in {c.arm for c in found}:
        why = next(iter(failed.values()), "no run ended")
        raise LuthierError(sentence(f"the race's baseline {baseline}", "a run that ends at some rate", f"none: {why}",
                                    "Try it with `luthier run`"))  # fmt: skip
    better = {r.name: r.better for result in outcome.results for r in result.readings.values()}
    known = [c for c in going if c in found]
    order = [known[i] for i in judge.order([found[c] for c in known], better)]
    first = next(c for c in order if c.arm == baseline)
    others = [c for c in order if c.arm != baseline]
    if not others:
        raise LuthierError(sentence("a race", "another arm than the baseline", "none whose runs ended: "
                                    + "; ".join(f"{c}: {w}" for c, w in list(failed.items())[:3]), "Repair one of them"))  # fmt: skip
    on = _best(order, keep, one_each)
    forced = first not in on
    if lone := [c for c in (first, others[0]) if c not in on]:
        on = [*on[: keep - len(lone)], *lone]
    lines = [RaceLine(arm=c.arm, rate=c.rate, figures=found[c], fate="goes on" if c in on else "dropped",
                      why="the baseline stays" if forced and c == first else "") for c in order]  # fmt: skip
    lines += [RaceLine(arm=c.arm, rate=c.rate, figures={}, fate="failed", why=w) for c, w in failed.items()]
    return lines, [first, *(c for c in on if c != first)] if one_each else on


def _best(order: Sequence[Configuration], keep: int, one_each: bool) -> list[Configuration]:
    """The first `keep` of them; one_each: the first of each arm only."""
    arms: dict[str, Configuration] = {}
    for c in order:
        arms.setdefault(c.arm, c)
    return list(arms.values() if one_each else order)[:keep]


def _figures(
    going: Sequence[Configuration], seeds: Sequence[int], outcome: Outcome, judge: Judge
) -> tuple[dict[Configuration, dict[str, float]], dict[Configuration, str]]:
    """Means over seeds of the judge's readings, and why the other configurations have none."""
    runs: dict[tuple[str, int], RunResult] = {(r.arm, r.seed): r for r in outcome.results}
    lost: dict[str, Failure] = {f.arm: f for f in reversed(outcome.failures)}
    found: dict[Configuration, dict[str, float]] = {}
    failed: dict[Configuration, str] = {}
    for c in going:
        if str(c) in lost:
            failed[c] = lost[str(c)].why
            continue
        own = [runs[str(c), s].readings for s in seeds]
        figures = {n: math.fsum(r[n].value for r in own) / len(own) if all(n in r for r in own) else math.nan
                   for n in judge.readings}  # fmt: skip
        if odd := [n for n, v in figures.items() if not math.isfinite(v)]:
            failed[c] = f"its reading {odd[0]} is no finite number"
        else:
            found[c] = figures
    return found, failed
