"""A claim is data: arms, seeds, the direction expected, a verdict. It may fail, and then it says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import ConfigError, sentence, unknown

Figures = Mapping[str, float]
Run = Callable[[int], Mapping[str, Figures]]
TUNING_SEED = 1_000_003
AXES = ("fidelity", "diversity", "alignment", "drift", "cost")
"""What every claim on images reports: figures named axis/name, or in `absent` why the axis has no meaning there."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published claim made small enough to run.

    component: short name of the technique; papers: ids; says: the claim in our words; world: where it is tried.
    expect: "arm > arm" or "arm < arm" on the figure `measure`; `also` holds further expectations "arm > arm : measure",
    reported beside it.
    Either `recipe` (a plain recipe), `arms` (name -> dotted overrides) and `grid` (dotted key -> values tried for every arm
    alike, chosen on data and a seed that no reported figure uses), or `run(seed)` for worlds that need no training engine.
    absent: of AXES, those that have no meaning in this world, and why. note: what a reader must know to judge the verdict.
    """

    component: str
    papers: tuple[int, ...]
    source: str
    says: str
    world: str
    expect: str
    measure: str
    seeds: Sequence[int] = tuple(range(8))
    also: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    run: Run | None = None
    budget_s: float = 120
    note: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ConfigError unless there is exactly one way to run and at least five seeds."""
        if (self.run is None) == (self.recipe is None):
            raise ConfigError(
                sentence(f"claim {self.component}", "exactly one of `recipe` and `run`", "both or none", "Give one")
            )
        if len(self.seeds) < 5:
            raise ConfigError(
                sentence(f"claim {self.component}", "at least 5 seeds", str(len(self.seeds)), "Add seeds")
            )
        if odd := sorted(set(self.absent) - set(AXES)):
            raise ConfigError(f"claim {self.component}: {unknown('axis', odd[0], AXES)}")
        for text in (self.expect, *self.also):
            parse_expectation(text, self.measure)


@dataclass(frozen=True)
class Expectation:
    """arm is expected above (sign 1) or below (-1) other on a figure."""

    arm: str
    other: str
    sign: int
    measure: str


_FORM = re.compile(r"^\s*([\w.+-]+)\s*([<>])\s*([\w.+-]+)\s*(?::\s*([\w./@+-]+)\s*)?$")


def parse_expectation(text: str, measure: str) -> Expectation:
    """Read "dft > nll" or "dft > nll : forgetting". Raises ConfigError for another form.

    >>> parse_expectation("a < b : loss", "accuracy")
    Expectation(arm='a', other='b', sign=-1, measure='loss')
    """
    found = _FORM.match(text)
    if found is None:
        raise ConfigError(
            sentence("a claim", "an expectation 'arm > arm' or 'arm > arm : measure'", repr(text), "Rewrite it")
        )
    arm, sign, other, own = found.groups()
    return Expectation(arm, other, 1 if sign == ">" else -1, own or measure)


@dataclass(frozen=True)
class Judged:
    """One expectation tried: paired mean difference in the expected direction, its 95 % interval, and the verdict."""

    expect: str
    measure: str
    difference: float
    low: float
    high: float
    verdict: str


def judge(differences: Sequence[float], level: float = 0.95) -> tuple[float, float, float, str]:
    """(mean, low, high, verdict) of paired differences in the expected direction, Student's t over seeds.

    holds: the interval lies above 0; fails: below; undecided: it contains 0. Equal differences have no spread; then the
    sign of the mean decides and exactly 0 is undecided.

    >>> judge([1.0, 1.1, 0.9, 1.0, 1.05])[3], judge([1.0, -1.0, 0.5, -0.6, 0.1])[3]
    ('holds', 'undecided')
    """
    from math import sqrt
    from statistics import mean, stdev

    from scipy.stats import t

    n = len(differences)
    centre, spread = mean(differences), stdev(differences)
    half = float(t.ppf((1 + level) / 2, n - 1)) * spread / sqrt(n)
    low, high = centre - half, centre + half
    return centre, low, high, "holds" if low > 0 else "fails" if high < 0 else "undecided"
