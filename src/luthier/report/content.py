"""What a report shows, as plain typed data. `compare` fills it; tables, plots and HTML only read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["better", "worse", "undecided", "equal", "descriptive", "unmeasured"]
Basis = Literal["seeds", "seeds and items", "items", "constant", "none"]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ReadingInfo:
    """A measured figure by name: the axis it belongs to, its unit, and which direction is better (0: neither)."""

    name: str
    axis: str = "quality"
    unit: str = ""
    better: Literal[-1, 0, 1] = 1


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One reading of one arm minus the same reading of another, paired over seeds.

    difference: mean over the seeds in `seeds`; low, high: its interval at the stated level, by itself.
    tested_low, tested_high: the same interval at the level left for it after correction for all comparisons; a verdict
    is better or worse exactly when this one excludes zero. p, p_corrected: two-sided, before and after Holm's
    correction. detectable: the smallest true difference that this many seeds would show with the stated power. Figures
    that cannot be computed are None. "unmeasured": the runs of one of both arms do not take this reading, so nothing is
    compared. notes: whatever a reader must know before trusting the verdict.
    """

    arm: str
    baseline: str
    reading: ReadingInfo
    seeds: tuple[int, ...]
    arm_mean: float | None
    baseline_mean: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    tested_low: float | None = None
    tested_high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    detectable: float | None = None
    verdict: Verdict = "undecided"
    basis: Basis = "none"
    items: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run, or one reading of a run (`reading` names it), that gave no number, and why."""

    arm: str
    seed: int
    why: str
    reading: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the models of all arms made of one prompt, with one seed: texts, or images as PNGs in base64."""

    prompt: str
    seed: int
    outputs: Mapping[str, tuple[str, ...]]
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RaceLine:
    """One configuration in one rung: what it read (means over the rung's seeds), and what became of it and why."""

    arm: str
    rate: float
    figures: Mapping[str, float]
    fate: Literal["goes on", "dropped", "failed"]
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class RaceRung:
    """One rung of a race, best configuration first; share: of the full number of steps."""

    share: float
    seeds: tuple[int, ...]
    lines: tuple[RaceLine, ...]


@dataclass(frozen=True, kw_only=True)
class Race:
    """How the arms of a comparison were chosen.

    judged: by what, in words. rates: tried for every arm. left_out: (component, why it was no arm). notes: what a reader must
    know before trusting the choice.
    """

    judged: str
    rates: tuple[float, ...]
    rungs: tuple[RaceRung, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tried(self) -> int:
        """Configurations that were run at all."""
        return len(self.rungs[0].lines) if self.rungs else 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that a report of one comparison shows; the first arm is the baseline.

    values: reading -> arm -> seed -> value. curves: name -> arm -> seed -> points (step, value). cost: arm -> figure ->
    one value per finished seed. family: how many comparisons the verdicts are corrected for; first: readings with
    half of the chance of error to themselves. threads: of each run, if known. race: how the arms were chosen, where they were chosen.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    readings: tuple[ReadingInfo, ...]
    differences: tuple[Difference, ...]
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    level: float = 0.95
    power: float = 0.8
    family: int = 0
    first: tuple[str, ...] = ()
    about: Literal["recipes", "models"] = "recipes"
    curves: Mapping[str, Mapping[str, Mapping[int, Sequence[Point]]]] = field(default_factory=dict)
    cost: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    absent: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    title: str = ""
    race: Race | None = None

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    def of(self, reading: str, arm: str, baseline: str | None = None) -> Difference | None:
        """The difference of `arm` to `baseline` (the first arm unless given) on one reading."""
        against = self.baseline if baseline is None else baseline
        found = (d for d in self.differences if (d.reading.name, d.arm, d.baseline) == (reading, arm, against))
        return next(found, None)

    def lacks(self, reading: str, arm: str) -> bool:
        """Whether the arm has finished runs, and none of them took this reading."""
        return bool(self.cost.get(arm)) and not self.values.get(reading, {}).get(arm)

    def axes(self) -> dict[str, list[ReadingInfo]]:
        """Readings by axis, quality first, the rest in the order they were measured."""
        out: dict[str, list[ReadingInfo]] = {}
        for reading in sorted(self.readings, key=lambda r: r.axis != "quality"):
            out.setdefault(reading.axis, []).append(reading)
        return out
