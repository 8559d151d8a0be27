"""From run results to verdicts: every reading of every pair of arms paired over seeds, tested, corrected and judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from luthier.compare.results import RunResult
from luthier.compare.statistics import MIN_SEEDS, Array, Paired, exact_share_interval, holm, mcnemar, paired, two_valued
from luthier.core.errors import ConfigError, Refused, sentence
from luthier.core.protocols import Reading
from luthier.report.content import Basis, Difference, Failure, ReadingInfo, Verdict

Runs = Mapping[tuple[str, int], RunResult]


@dataclass(frozen=True, kw_only=True)
class Design:
    """How to compare.

    alpha: the chance of any false verdict in the whole comparison. power: what `detectable` promises. pairs: each arm
    with the first one, or every two arms. about: "recipes" judges over seeds; "models" compares the models of one
    single seed over items, and a verdict then speaks of these models only. first: readings named before anything ran, as the
    question; half of alpha is theirs, so that the many others do not drown them.
    """

    alpha: float = 0.05
    power: float = 0.8
    pairs: Literal["baseline", "all"] = "baseline"
    about: Literal["recipes", "models"] = "recipes"
    first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("alpha", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} requires a number between 0 and 1; got {getattr(self, name)!r}. Give one.")


@dataclass(frozen=True)
class Pair:
    """One reading of two arms over the seeds where both have it.

    lost: arms with runs that gave no number. without: arms whose finished runs do not have this reading at all.
    """

    info: ReadingInfo
    arm: str
    baseline: str
    seeds: tuple[int, ...]
    first: Array
    second: Array
    items: Array | None
    lost: frozenset[str]
    notes: tuple[str, ...]
    without: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Every paired difference, of items too where they are known, is exactly zero."""
        same = len(self.seeds) > 0 and bool((self.first == self.second).all())
        return same and (self.items is None or not self.items.any())

    @property
    def constant(self) -> bool:
        """Each arm gave one value at every one of at least two seeds."""
        return len(self.seeds) > 1 and float(np.ptp(self.first)) == 0 and float(np.ptp(self.second)) == 0

    @property
    def known(self) -> bool:
        """A cost that no seed changes, such as trained parameters: known, so there is nothing to test."""
        return self.info.axis == "cost" and self.constant

    @property
    def right_or_wrong(self) -> bool:
        """Whether the items are known and are right or wrong each."""
        return self.items is not None and two_valued(self.items)


def readings_of(runs: Iterable[RunResult]) -> tuple[ReadingInfo, ...]:
    """All readings in the order met. Raises Refused where runs disagree on direction, unit or axis."""
    out: dict[str, ReadingInfo] = {}
    for run in runs:
        for name, r in run.readings.items():
            info = ReadingInfo(name=name, axis=r.axis, unit=r.unit, better=r.better)
            if out.setdefault(name, info) != info:
                came = f"{out[name]} and {info} ({run.arm}, seed {run.seed})"
                required = "one axis, unit and direction in all runs"
                raise Refused(sentence(f"comparing {name!r}", required, came, "Run the arms with one version"))
    return tuple(out.values())


def _items(pairs: Sequence[tuple[Reading, Reading]]) -> tuple[Array | None, str]:
    """Per-item differences (n, m) where they explain the reading, else None and the reason if there is one to tell."""
    counts = {len(r.items) for pair in pairs for r in pair}
    if counts <= {0, 1} or not pairs:
        return None, ""
    if len(counts) > 1:
        listed = ", ".join(map(str, sorted(counts)))
        return None, f"the number of items differs between runs ({listed}); the interval counts seeds only"
    values = np.array([[r.items for r in pair] for pair in pairs], np.float64)
    if not np.isfinite(values).all():
        return None, "some items have no value; the interval counts seeds only"
    given = np.array([[r.value for r in pair] for pair in pairs])
    if (np.abs(values.mean(-1) - given) > 1e-4 * max(float(np.ptp(values)), 1e-12)).any():
        return None, "the reading is not the mean of its items; the interval counts seeds only"
    return values[:, 1] - values[:, 0], ""


def _lacks(reading: str, arm: str, runs: Runs) -> bool:
    """Whether the arm has finished runs, and none of them took this reading."""
    mine = [run for (a, _), run in runs.items() if a == arm]
    return bool(mine) and not any(reading in run.readings for run in mine)


def pair_up(
    info: ReadingInfo, baseline: str, arm: str, runs: Runs, seeds: Sequence[int], failed: set[tuple[str, int]]
) -> Pair:
    """Line up one reading of two arms by seed."""
    without = tuple(a for a in (baseline, arm) if _lacks(info.name, a, runs))
    both: list[tuple[int, Reading, Reading]] = []
    lost: set[str] = set()
    notes: list[str] = []
    for seed in seeds:
        found = {a: runs[a, seed].readings.get(info.name) for a in (baseline, arm) if (a, seed) in runs}
        usable = {a: r for a, r in found.items() if r is not None and math.isfinite(r.value)}
        if len(usable) == 2:
            both.append((seed, usable[baseline], usable[arm]))
            continue
        for a in (baseline, arm):
            if not without and ((a, seed) in failed or (a in found and a not in usable)):
                lost.add(a)
                notes.append(f"{a} gave no number at seed {seed}")
    items, why = _items([(a, b) for _, a, b in both])
    first = np.array([a.value for _, a, _ in both], np.float64)
    second = np.array([b.value for _, _, b in both], np.float64)
    notes += [why] if why else []
    return Pair(
        info, arm, baseline, tuple(s for s, _, _ in both), first, second, items, frozenset(lost), tuple(notes), without
    )


def _p(pair: Pair, stats: Paired, about: str) -> float:
    """The p-value that may decide; 1 where the design can decide nothing."""
    if about == "models":
        return mcnemar(pair.items) if pair.items is not None and pair.right_or_wrong else stats.p_value()
    return stats.p_value() if stats.pairs >= MIN_SEEDS else 1.0


def _interval(pair: Pair, stats: Paired, about: str, level: float) -> tuple[float | None, float | None]:
    if pair.known or pair.equal:
        return stats.mean, stats.mean
    if about == "models" and pair.items is not None and pair.right_or_wrong:
        return exact_share_interval(pair.items, level)
    half = math.inf if about == "recipes" and stats.pairs < 2 else stats.half_width(level)
    return (stats.mean - half, stats.mean + half) if math.isfinite(half) else (None, None)


def _one_seed(pair: Pair, stats: Paired) -> str:
    """What the items say about the two models of the only seed; it does not speak of the recipes."""
    if pair.items is None:
        return "one seed: the luck of the seed is unknown"
    p = _p(pair, stats, "models")
    differ = "differ" if p <= 0.05 else "do not clearly differ"
    return (
        f"one seed: the luck of the seed is unknown; these two models {differ} on their {stats.items} items "
        f"(p = {p:.2g}), which says nothing of the recipes"
    )


def judge(pair: Pair, stats: Paired | None, decided: bool, about: str) -> tuple[Verdict, tuple[str, ...]]:
    """Verdict on one pair and the notes that belong to it; `decided`: its corrected test excludes zero."""
    if pair.without:
        return "unmeasured", (f"not measured in {' and '.join(pair.without)}",)
    if stats is None:
        return "undecided", ("no seed has both arms",)
    if pair.equal:
        return "equal", ("every paired difference is exactly zero",)
    if pair.info.better == 0:
        return "descriptive", ()
    won = pair.arm if stats.mean * pair.info.better > 0 else pair.baseline
    word: Verdict = "better" if won == pair.arm else "worse"
    if pair.known:
        return word, ("the same at every seed: known, not estimated",)
    if about == "models":
        return (word if decided else "undecided"), () if pair.items is not None else ("no items to compare over",)
    if stats.pairs < MIN_SEEDS:
        few = f"{stats.pairs} seeds: a verdict needs {MIN_SEEDS} at least"
        return "undecided", (_one_seed(pair, stats) if stats.pairs == 1 else few,)
    notes = ("every seed gave the same value in each arm: seeds tell nothing about luck here",) if pair.constant else ()
    if decided and won in pair.lost:
        return "undecided", (*notes, f"{won} lost runs, and those that remain may be its lucky ones")
    return (word if decided else "undecided"), notes


def _basis(pair: Pair, stats: Paired, about: str) -> Basis:
    if pair.known:
        return "constant"
    if about == "models":
        return "items" if stats.items else "none"
    return "none" if stats.pairs < 2 else "seeds and items" if stats.items else "seeds"


def _difference(pair: Pair, stats: Paired | None, p: tuple[float, float, float] | None, design: Design) -> Difference:
    """p: raw, corrected, and the level tested at; None outside the family."""
    verdict, notes = judge(pair, stats, p is not None and p[0] <= p[2], design.about)
    out = Difference(
        arm=pair.arm,
        baseline=pair.baseline,
        reading=pair.info,
        seeds=pair.seeds,
        arm_mean=None,
        baseline_mean=None,
        difference=None,
        verdict=verdict,
        notes=(*pair.notes, *notes),
    )
    if stats is None:
        return out
    tested_level = 1 - (p[2] if p else design.alpha)
    low, high = _interval(pair, stats, design.about, 1 - design.alpha)
    tested = _interval(pair, stats, design.about, tested_level)
    estimated = p is not None and verdict != "equal"
    judged = estimated and (stats.pairs >= MIN_SEEDS or design.about == "models")
    effect = stats.detectable(tested_level, design.power) if judged else math.inf
    return replace(
        out,
        arm_mean=math.fsum(pair.second) / len(pair.second),
        baseline_mean=math.fsum(pair.first) / len(pair.first),
        difference=stats.mean,
        low=low,
        high=high,
        tested_low=tested[0],
        tested_high=tested[1],
        p=p[0] if p and judged else None,
        p_corrected=p[1] if p and judged else None,
        detectable=effect if math.isfinite(effect) else None,
        items=stats.items,
        basis=_basis(pair, stats, design.about),
    )


def _corrected(raw: Sequence[float], first: Sequence[bool], alpha: float) -> tuple[Array, Array]:
    """Holm's correction; where some comparisons come first, of these and of the others apart, each with half of alpha."""
    values, mine = np.asarray(raw, np.float64), np.asarray(first, bool)
    if mine.all() or not mine.any():
        return holm(values, alpha)
    corrected, tested = np.empty(len(values)), np.empty(len(values))
    for group in (mine, ~mine):
        part, tested[group] = holm(values[group], alpha / 2)
        corrected[group] = np.minimum(1.0, 2 * part)
    return corrected, tested


def differences(
    runs: Sequence[RunResult],
    arms: Sequence[str],
    seeds: Sequence[int],
    design: Design | None = None,
    failures: Sequence[Failure] = (),
) -> tuple[tuple[Difference, ...], int]:
    """Compare every reading of every pair of arms; returns the differences and how many were corrected for.

    The first arm is the baseline. failures: runs that ended in an error; an arm that lost runs cannot be found better.
    """
    design = design or Design()
    if design.about == "models" and len(seeds) != 1:
        raise Refused(sentence("comparing models", "exactly one seed", str(len(seeds)), "Compare recipes, or name one"))
    table = {(r.arm, r.seed): r for r in runs if r.arm in arms and r.seed in seeds}
    failed = {(f.arm, f.seed) for f in failures}
    chosen = [(arms[0], a) for a in arms[1:]] if design.pairs == "baseline" else list(combinations(arms, 2))
    readings = readings_of(table.values())
    if readings and (absent := [n for n in design.first if n not in {r.name for r in readings}]):
        known = ", ".join(r.name for r in readings)
        raise Refused(
            sentence("the reading that comes first", f"one that was taken: {known}", absent[0], "Name one of them")
        )
    pairs = [pair_up(i, base, a, table, seeds, failed) for i in readings for base, a in chosen]
    stats = [paired(c.first, c.second, c.items) if c.seeds else None for c in pairs]
    family = [k for k, c in enumerate(pairs) if c.info.better != 0 and not c.known and not c.without]
    raw = [_p(pairs[k], s, design.about) if (s := stats[k]) is not None else 1.0 for k in family]
    corrected, tested = _corrected(raw, [pairs[k].info.name in design.first for k in family], design.alpha)
    p = {k: (raw[i], float(corrected[i]), float(tested[i])) for i, k in enumerate(family)}
    found = tuple(_difference(c, s, p.get(k), design) for k, (c, s) in enumerate(zip(pairs, stats)))
    return found, len(family)
