"""How the arms of a comparison were chosen, as rows for the page and lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.core.errors import counted
from luthier.report.content import Race, RaceLine
from luthier.report.words import DASH, label, number


@dataclass(frozen=True)
class Course:
    """One arm's way through the race: for each rung the best of its configurations in words, and where it ended."""

    arm: str
    cells: tuple[str, ...]
    end: str
    fate: str


def figures(line: RaceLine) -> str:
    """What a configuration read, with its rate.

    >>> figures(RaceLine(arm="a", rate=0.001, figures={"nll": 0.5}, fate="dropped"))
    'nll 0.5 @ 0.001'
    """
    read = ", ".join(f"{label(n)} {number(v)}" for n, v in line.figures.items())
    return f"{read or 'failed'} @ {line.rate:g}"


def courses(race: Race) -> list[Course]:
    """One course for each arm, those that came farthest first, and among them the better ones."""
    best: list[dict[str, tuple[int, RaceLine]]] = []
    for rung in race.rungs:
        here: dict[str, tuple[int, RaceLine]] = {}
        for place, line in enumerate(rung.lines, 1):
            if line.arm not in here or (here[line.arm][1].fate != "goes on" and line.fate == "goes on"):
                here[line.arm] = (place, line)
        best.append(here)
    arms = list(best[0]) if best else []
    far = {a: max(n for n, here in enumerate(best) if a in here) for a in arms}
    order = sorted(arms, key=lambda a: (best[far[a]][a][1].fate != "goes on", -far[a], best[far[a]][a][0]))
    return [_course(a, best, far[a]) for a in order]


def _course(arm: str, best: list[dict[str, tuple[int, RaceLine]]], far: int) -> Course:
    cells = tuple(_cell(*here[arm]) if arm in here else DASH for here in best)
    line = best[far][arm][1]
    ends: Mapping[str, str] = {"goes on": "last comparison", "dropped": f"dropped after rung {far + 1}",
                               "failed": f"failed in rung {far + 1}"}  # fmt: skip
    return Course(arm, cells, ends[line.fate] + (f": {line.why}" if line.why else ""), line.fate)


def _cell(place: int, line: RaceLine) -> str:
    return "failed" if line.fate == "failed" else f"{figures(line)}, place {place}"


def left_out(race: Race) -> list[tuple[str, str]]:
    """(reason, the components it holds for), in the order of the components."""
    found: dict[str, list[str]] = {}
    for component, why in race.left_out:
        found.setdefault(why, []).append(component)
    return [(why, ", ".join(names)) for why, names in found.items()]


def introduction(race: Race) -> str:
    """One paragraph: how many, by what, on which runs."""
    arms = len({line.arm for line in race.rungs[0].lines}) if race.rungs else 0
    rates = ", ".join(f"{r:g}" for r in race.rates)
    rungs = "; ".join(
        f"{counted(len(r.lines), 'configuration')}, {r.share:.0%} of the steps, {counted(len(r.seeds), 'seed')}"
        for r in race.rungs
    )
    return (f"{arms} arms at learning rates {rates} made {race.tried} configurations, judged by {race.judged}. Rungs: {rungs}. "
            "These runs used seeds and test rows of their own; the last comparison saw neither.")  # fmt: skip


def lines(race: Race) -> list[str]:
    """The race as plain lines."""
    said = ["How the arms were chosen", introduction(race), ""]
    said += [f"  {c.arm:<24} {' | '.join(c.cells)} | {c.end}" for c in courses(race)]
    if race.left_out:
        said += ["", "Left out"]
        said += [f"  {why}: {names}" for why, names in left_out(race)]
    return [*said, "", *race.notes]
