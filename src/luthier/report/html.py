"""One self-contained report.html: no script, no request to anywhere, and nothing a model wrote can act in it.

All text is escaped by the template engine, invisible and direction-changing signs are made visible, and the page
forbids itself scripts, frames, forms and any loading by its content security policy.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from luthier.core.files import write_text
from luthier.report import plots, race, svg
from luthier.report.content import Comparison, Difference, ReadingInfo, Verdict
from luthier.report.units import readable
from luthier.report.words import (
    DASH,
    MARKS,
    WORDS,
    conclusion,
    decimals_of,
    direction,
    first_words,
    interval,
    label,
    mean,
    number,
    reading_value,
    rows_of,
    spread,
    supporting,
    verdict_words,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_JOINERS = {"\u200d", "\u200c"}


def visible(words: str) -> str:
    """Text with control, format and direction-changing signs shown as ⟨U+...⟩; line breaks, tabs and joiners stay.

    >>> visible("a\\x00b\\u202ec")
    'a⟨U+0000⟩b⟨U+202E⟩c'
    """
    kept = "\n\t"
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _HIDDEN and c not in kept and c not in _JOINERS else c
        for c in words.replace("\r\n", "\n")
    )


def breakable(words: str) -> Markup:
    """A name, escaped and its hidden signs shown, that may be broken after its underscores, dots and slashes."""
    return svg.breakable(visible(words))


def flat(recipe: Any, at: str = "") -> dict[str, str]:
    """A recipe as dotted keys and plain words.

    >>> flat({"train": {"lr": 0.1}, "regularise": [{"neftune": {"alpha": 5.0}}], "measure": ["quality"]})
    {'train.lr': '0.1', 'regularise.neftune.alpha': '5.0', 'measure': 'quality'}
    """
    if isinstance(recipe, Mapping) and recipe:
        out: dict[str, str] = {}
        for key, value in recipe.items():
            for name, words in flat(value, f"{at}.{key}" if at else str(key)).items():
                out[name] = f"{out[name]}, {words}" if name in out else words
        return out
    if isinstance(recipe, Sequence) and not isinstance(recipe, str):
        if all(not isinstance(v, Mapping | Sequence) or isinstance(v, str) for v in recipe):
            return {at: ", ".join(map(_word, recipe)) or "none"}
        out = {}
        for value in recipe:
            for name, words in flat(value, at).items():
                out[name] = f"{out[name]}, {words}" if name in out else words
        return out
    return {at: _word(recipe)}


def _word(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else "none"
        if value in (None, {}, [])
        else json.dumps(value, ensure_ascii=False, default=str)
    )


@dataclass(frozen=True)
class Setting:
    """One line of the recipes side by side; a cell is None where a recipe does not have the setting."""

    key: str
    cells: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """Whether any recipe departs from another one here."""
        return len(set(self.cells)) > 1


def settings(comparison: Comparison) -> list[Setting]:
    """All settings of all recipes, those that differ first."""
    recipes = [flat(comparison.recipes.get(a) or {}) for a in comparison.arms]
    keys = list(dict.fromkeys(k for r in recipes for k in r if k))
    lines = [Setting(k, tuple(r.get(k) for r in recipes)) for k in keys]
    return sorted(lines, key=lambda s: not s.differs)


@dataclass(frozen=True)
class Cell:
    """One arm on one reading, in words for the table."""

    arm: str
    number: int
    value: str
    seeds: str
    change: str = ""
    bounds: str = ""
    verdict: str = ""
    mark: str = ""
    word: str = ""
    notes: tuple[str, ...] = ()


def _cell(comparison: Comparison, reading: ReadingInfo, arm: str, decimals: int | None) -> Cell:
    values = [v for _, v in sorted(comparison.values.get(reading.name, {}).get(arm, {}).items())]
    deviation = spread(values)
    lacks = comparison.lacks(reading.name, arm)
    value = number(mean(values), decimals) + (f" ± {number(deviation, decimals)}" if deviation else "")
    value = WORDS["unmeasured"] if lacks else value
    seeds = ", ".join(number(v, decimals) for v in values) or DASH
    d = comparison.of(reading.name, arm)
    if d is None or lacks:
        return Cell(arm, comparison.arms.index(arm), value, seeds)
    notes = [] if d.p_corrected is None else [f"p = {number(d.p)}, corrected {number(d.p_corrected)}"]
    if d.detectable is not None:
        size = reading_value(d.detectable, reading, decimals)
        notes.append(f"a true difference of {size} would be found {comparison.power:.0%} of the time")
    notes.append(f"by seed: {seeds}")
    verdict = (d.verdict, MARKS[d.verdict], verdict_words(d))
    change, _, bounds = interval(d, decimals, unit=False).partition(" [")
    bounds = f"[{bounds}" if bounds else ""
    change = "" if d.verdict == "unmeasured" else change
    return Cell(arm, comparison.arms.index(arm), value, seeds, change, bounds, *verdict, (*d.notes, *notes))


def table(comparison: Comparison) -> list[tuple[str, list[tuple[ReadingInfo, list[Cell]]]]]:
    """Axis -> reading -> one cell for each arm."""
    return [
        (
            axis,
            [
                (r, [_cell(comparison, r, a, decimals_of(comparison, r.name)) for a in comparison.arms])
                for r in readings
            ],
        )
        for axis, readings in comparison.axes().items()
    ]


@dataclass(frozen=True)
class Board:
    """What became of one arm: readings by verdict."""

    arm: str
    number: int
    groups: tuple[tuple[str, str, str, tuple[str, ...]], ...]


def _said(comparison: Comparison, d: Difference) -> str:
    """A reading's name, with its difference where that is decided."""
    if d.verdict not in ("better", "worse"):
        return label(d.reading.name)
    size = reading_value(d.difference, d.reading, decimals_of(comparison, d.reading.name), signed=True)
    return f"{label(d.reading.name)} {size}"


def boards(comparison: Comparison) -> list[Board]:
    """For each arm but the baseline: (verdict, mark, word, readings)."""
    out = []
    for i, arm in enumerate(comparison.arms[1:], 1):
        rows = rows_of(comparison, arm)
        judged: tuple[Verdict, ...] = ("better", "worse", "undecided", "equal")
        found = {v: tuple(_said(comparison, d) for d in rows if d.verdict == v) for v in judged}
        groups = [(v, MARKS[v], WORDS[v], found[v]) for v in judged if found[v]]
        missing = [d for d in rows if d.verdict == "unmeasured"]
        for said in dict.fromkeys(map(verdict_words, missing)):
            names = tuple(label(d.reading.name) for d in missing if verdict_words(d) == said)
            groups.append(("unmeasured", MARKS["unmeasured"], said, names))
        out.append(Board(arm, i, tuple(groups)))
    return out


def others(comparison: Comparison) -> list[tuple[str, Difference]]:
    """Differences between arms other than the baseline, where all pairs were compared."""
    return [
        (interval(d, decimals_of(comparison, d.reading.name)), d)
        for d in comparison.differences
        if d.baseline != comparison.baseline
    ]


@cache
def _template() -> Any:
    from jinja2 import BaseLoader, Environment, StrictUndefined

    environment = Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(visible=visible, breakable=breakable, label=label, direction=direction, number=number,
                               verdict_words=verdict_words)  # fmt: skip
    return environment.from_string(files("luthier.report").joinpath("report.html.j2").read_text(encoding="utf-8"))


def race_shown(comparison: Comparison) -> dict[str, Any] | None:
    """What the page shows of the race that chose the arms, if there was one."""
    found = comparison.race
    if found is None:
        return None
    return {
        "introduction": race.introduction(found),
        "courses": race.courses(found),
        "left_out": race.left_out(found),
        "rungs": [(n, [(race.figures(line), line) for line in r.lines]) for n, r in enumerate(found.rungs, 1)],
        "notes": found.notes,
        "tried": found.tried,
    }


def render(comparison: Comparison) -> str:
    """The whole page as text."""
    comparison = readable(comparison)
    lines = settings(comparison)
    style = files("luthier.report").joinpath("report.css").read_text(encoding="utf-8")
    runs = len(comparison.arms) * len(comparison.seeds)
    lost = len([f for f in comparison.failures if not f.reading]) + len(comparison.absent)
    return _template().render(
        c=comparison,
        policy=POLICY,
        style=Markup(style),
        conclusion=conclusion(comparison),
        first=first_words(comparison),
        supporting=supporting(comparison),
        table=table(comparison),
        boards=boards(comparison),
        others=others(comparison),
        legend=plots.legend(comparison),
        forest=plots.forest(comparison),
        pareto=plots.pareto(comparison),
        curves=plots.curves(comparison),
        cost=plots.cost(comparison),
        differing=[s for s in lines if s.differs],
        same=[s for s in lines if not s.differs],
        race=race_shown(comparison),
        swatches=[svg.swatch(i) for i in range(len(comparison.arms))],
        runs=runs,
        finished=runs - lost,
        marks=MARKS,
    )


def write_report(comparison: Comparison, path: Path) -> Path:
    """Write the page; atomic. Returns the path."""
    write_text(Path(path), render(comparison))
    return Path(path)
