"""The comparison as a table for the terminal, coloured where that is possible, plain text where it is not."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from luthier.core.errors import counted
from luthier.report import race
from luthier.report.content import Comparison, ReadingInfo, Verdict
from luthier.report.units import readable
from luthier.report.words import (
    MARKS,
    WORDS,
    conclusion,
    decimals_of,
    first_words,
    interval,
    label,
    mean,
    measured_in,
    number,
    spread,
    supporting,
    verdict_words,
)

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table

STYLES: dict[Verdict, str] = {
    "better": "green",
    "worse": "red",
    "undecided": "dim",
    "equal": "cyan",
    "descriptive": "dim",
    "unmeasured": "dim",
}
PLAIN_MARKS: dict[Verdict, str] = {"better": "+", "worse": "-", "undecided": "?", "equal": "=", "descriptive": ".",
                                   "unmeasured": ""}  # fmt: skip
PLAIN = str.maketrans({"\u2212": "-", "\u2013": "-", "±": "+-", "∞": "inf", "·": "-", "…": "..."})


def _value(comparison: Comparison, reading: ReadingInfo, arm: str, decimals: int | None) -> str:
    if comparison.lacks(reading.name, arm):
        return WORDS["unmeasured"]
    values = list(comparison.values.get(reading.name, {}).get(arm, {}).values())
    deviation = spread(values)
    return number(mean(values), decimals) + (f" ± {number(deviation, decimals)}" if deviation else "")


def _name(reading: ReadingInfo) -> str:
    unit = f", {reading.unit}" if reading.unit not in ("", "1") else ""
    arrow = {1: " ↑", -1: " ↓", 0: ""}[reading.better]
    return f"{label(reading.name)}{unit}{arrow}"


def comparison_table(comparison: Comparison) -> Table:
    """Readings by axis; for each arm mean ± deviation, difference to the first arm with interval, and verdict."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    table.add_column("reading", no_wrap=False)
    for arm in comparison.arms:
        table.add_column(escape(arm) + (" (baseline)" if arm == comparison.baseline else ""), overflow="fold")
    for axis, readings in comparison.axes().items():
        table.add_row(Text(axis, style="bold"), *[""] * len(comparison.arms))
        for reading in readings:
            decimals = decimals_of(comparison, reading.name)
            cells: list[RenderableType] = [Text("  " + _name(reading))]
            for arm in comparison.arms:
                cell = Text(_value(comparison, reading, arm, decimals))
                d = comparison.of(reading.name, arm)
                if d is not None and not comparison.lacks(reading.name, arm):
                    if d.verdict != "unmeasured":
                        cell.append("\n" + interval(d, decimals, unit=False), style="dim")
                    cell.append(f"\n{MARKS[d.verdict]} {verdict_words(d)}", style=STYLES[d.verdict])
                cells.append(cell)
            table.add_row(*cells)
    return table


def summary(comparison: Comparison) -> Group:
    """Conclusion, table, cautions: what a terminal shows at the end of a comparison."""
    from rich.console import Group
    from rich.text import Text

    comparison = readable(comparison)
    parts: list[RenderableType] = [Text(conclusion(comparison), style="bold"), Text()]
    parts += [comparison_table(comparison), Text()]
    parts += [Text(f"{f.arm}, seed {f.seed}: {f.why}", style="red") for f in comparison.failures]
    parts += [Text(line) for line in (*supporting(comparison), *comparison.notes)]
    level = f"{100 * comparison.level:g} %"
    parts.append(
        Text(
            f"[low, high]: {level} interval of the paired difference; ↑ ↓: which way is better; verdicts corrected "
            f"for {counted(comparison.family, 'comparison')}{first_words(comparison)}.",
            style="dim",
        )
    )
    if comparison.race is not None:
        parts += [Text(), *map(Text, race.lines(comparison.race))]
    return Group(*parts)


def print_summary(comparison: Comparison, console: Console | None = None) -> None:
    """Show `summary` on a console; plain text where the stream takes no colours or no such signs."""
    from rich.console import Console

    console = console or Console()
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    try:
        "▲▼○±\u2212".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        console.file.write(plain(comparison))
    else:
        console.print(summary(comparison))


def text(comparison: Comparison, width: int = 120) -> str:
    """`summary` as text without colours."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(
        summary(comparison)
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def plain(comparison: Comparison) -> str:
    """ASCII lines, one reading of one arm each, for logs and for tools that read columns separated by tabs."""
    comparison = readable(comparison)
    lines = [conclusion(comparison), "", "\t".join(("axis", "reading", "arm", "mean", "difference", "verdict"))]
    for axis, readings in comparison.axes().items():
        for reading in readings:
            decimals = decimals_of(comparison, reading.name)
            for arm in comparison.arms:
                d = comparison.of(reading.name, arm)
                said = (
                    ("baseline", "")
                    if d is None
                    else (interval(d, decimals), f"{PLAIN_MARKS[d.verdict]} {verdict_words(d)}".strip())
                )
                unit = "" if comparison.lacks(reading.name, arm) else measured_in(reading)
                value = _value(comparison, reading, arm, decimals) + unit
                lines.append("\t".join((axis, reading.name, arm, value, *said)))
    lines += [
        "",
        *(f"{f.arm}, seed {f.seed}: {f.why}" for f in comparison.failures),
        *supporting(comparison),
        *comparison.notes,
        *(race.lines(comparison.race) if comparison.race is not None else ()),
    ]
    whole = "\n".join(line.rstrip() for line in lines).translate(PLAIN)
    return whole.encode("ascii", "backslashreplace").decode() + "\n"
