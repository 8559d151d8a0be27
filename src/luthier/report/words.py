"""Figures and findings in words: the same in the terminal, in HTML and in model cards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from luthier.core.errors import counted
from luthier.report.content import Comparison, Difference, ReadingInfo, Verdict

MINUS, DASH = "\u2212", "\u2013"
MARKS: dict[Verdict, str] = {
    "better": "▲",
    "worse": "▼",
    "undecided": "○",
    "equal": "=",
    "descriptive": "·",
    "unmeasured": DASH,
}
WORDS: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "undecided": "undecided",
    "equal": "equal",
    "descriptive": "no direction",
    "unmeasured": "not measured",
}
COUNTED = ("tokens", "images", "parameters", "passes", "rows", "steps")
"""What costs count, as the last word of their names."""


def digits_for(*spreads: float | None) -> int:
    """Decimals that show two significant digits of the smallest of the given spreads; 3 where none is known.

    >>> digits_for(0.012), digits_for(3.4), digits_for(250.0), digits_for(None)
    (3, 1, 0, 3)
    """
    known = [abs(s) for s in spreads if s is not None and math.isfinite(s) and s != 0]
    return max(0, min(8, 1 - math.floor(math.log10(min(known))))) if known else 3


def number(value: float | None, decimals: int | None = None, signed: bool = False) -> str:
    """A figure for people: four significant digits unless decimals are given, k/M/G from a hundred thousand, true
    minus.

    >>> number(0.12345), number(-3.0, 2, signed=True), number(807808.0), number(None), number(0.0000123)
    ('0.1235', '−3.00', '808k', '–', '1.23e−05')
    """
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{'+' if value > 0 else MINUS}∞"
    size = abs(value)
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if size >= limit * (1 - 5e-4):
            text = f"{value / (1e3 if sign == 'k' else limit):.3g}{sign}"
            break
    else:
        if decimals is not None:
            text = f"{value:.{decimals}f}"
        elif value == int(value):
            text = f"{int(value):,}"
        else:
            text = f"{value:.3g}" if size < 1e-3 else f"{value:.4g}"
    text = text[1:] if text.startswith("-") and not text.strip("-0.,") else text
    sign = "+" if signed and not text.startswith("-") and text.strip("0.,") else ""
    return sign + text.replace("-", MINUS)


def quantity(value: float | None, name: str) -> str:
    """A cost figure with its unit, guessed from the name where the name says it: seconds, bytes, or what is counted.

    >>> quantity(93.4, "seconds"), quantity(2.5e9, "peak_bytes"), quantity(409600.0, "train_tokens"), quantity(3.0, "rank")
    ('93.4 s', '2.33 GiB', '410k tokens', '3')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    if name.endswith("_per_second"):
        return f"{number(value)} {name.removesuffix('_per_second')}/s"
    if "second" in name or name in ("time", "s"):
        return f"{number(value / 3600, 2)} h" if value >= 7200 else f"{number(value, 1)} s"
    if "byte" in name:
        for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{value / size:.3g} {unit}"
        return f"{number(value)} B"
    counts = "forward passes" if name.startswith("forwards") else next((c for c in COUNTED if name.endswith(c)), "")
    return f"{number(value)} {counts}".rstrip()


def reading_value(value: float | None, reading: ReadingInfo, decimals: int | None = None, signed: bool = False) -> str:
    """A figure of a reading with its unit."""
    if reading.unit in ("bytes", "B", "byte") and value is not None and math.isfinite(value):
        sign = "+" if signed and value > 0 else MINUS if value < 0 else ""
        return sign + quantity(abs(value), "bytes")
    return number(value, decimals, signed) + measured_in(reading)


def measured_in(reading: ReadingInfo) -> str:
    """The unit as it stands behind a number; a unit that explains ("10 bins of equal width") stands in the table only."""
    explains = (
        reading.unit in ("", "1", "share")
        or reading.unit[0].isdigit()
        or any(sign in reading.unit for sign in (",", "=", "minus"))
    )
    return "%" if reading.unit == "%" else "" if explains else f" {reading.unit}"


def decimals_of(comparison: Comparison, reading: str) -> int | None:
    """Decimals for all figures of one reading, from the width of its intervals; None for whole numbers that no seed changes.

    Never more than make six significant digits of the largest value; None too where all are below a ten-thousandth.
    """
    values = [
        v for by_seed in comparison.values.get(reading, {}).values() for v in by_seed.values() if math.isfinite(v)
    ]
    rows = [d for d in comparison.differences if d.reading.name == reading]
    halves = [(d.high - d.low) / 2 for d in rows if d.high is not None and d.low is not None]
    spreads = [spread(by_seed.values()) or 0.0 for by_seed in comparison.values.get(reading, {}).values()]
    if values and all(v == int(v) for v in values) and not any(halves) and not any(spreads):
        return None
    top = max(map(abs, values), default=0.0)
    if 0 < top < 1e-4:
        return None
    most = min(6, 5 - math.floor(math.log10(top))) if top else 6
    widths = next((w for w in (halves, [abs(d.difference or 0.0) for d in rows], spreads) if any(w)), [])
    if not widths and top:
        return max(0, min(3, 2 - math.floor(math.log10(top))))
    return max(0, min(most, digits_for(*widths)))


def interval(d: Difference, decimals: int | None, unit: bool = True) -> str:
    """The difference with its interval, such as '+0.10 nats [0.02, 0.18]'; `unit`: not where a heading has it."""
    if d.difference is None:
        return DASH
    said = reading_value(d.difference, d.reading, decimals, signed=True)
    head = said if unit else number(d.difference, decimals, signed=True)
    if d.low is None or d.high is None:
        return f"{head}, no interval"
    if d.low == d.high:
        return head
    return f"{head} [{number(d.low, decimals, True)}, {number(d.high, decimals, True)}]"


def verdict_words(d: Difference) -> str:
    """The verdict in words; where nothing was compared, the arms that lack the reading: "not measured in nll"."""
    return d.notes[0] if d.verdict == "unmeasured" and d.notes else WORDS[d.verdict]


def listed(words: Sequence[str]) -> str:
    """Words in a row.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else ""


def label(name: str) -> str:
    """A reading's name for people: underscores become spaces.

    >>> label("exact_match")
    'exact match'
    """
    return name.replace("_", " ")


def direction(reading: ReadingInfo) -> str:
    """Which way is better, in words."""
    return {1: "higher is better", -1: "lower is better", 0: "neither way is better"}[reading.better]


def spread(values: Iterable[float]) -> float | None:
    """Standard deviation over seeds; None for fewer than two finite values."""
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2:
        return None
    mean = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))


def mean(values: Iterable[float]) -> float | None:
    """Mean of the finite values; None without any."""
    known = [v for v in values if math.isfinite(v)]
    return math.fsum(known) / len(known) if known else None


# ----------------------------------------------------------------------- findings
def rows_of(comparison: Comparison, arm: str, baseline: str | None = None) -> list[Difference]:
    """The differences of one arm to the baseline, quality first."""
    readings = [r.name for group in comparison.axes().values() for r in group]
    found = (comparison.of(name, arm, baseline) for name in readings)
    return [d for d in found if d is not None]


def _claim(comparison: Comparison, arm: str) -> str:
    """What is decided about one arm against the baseline, by axis: 'better on quality, mixed on cost', or nothing."""
    verdicts: dict[str, set[str]] = {}
    for d in rows_of(comparison, arm):
        if d.verdict in ("better", "worse"):
            verdicts.setdefault(d.reading.axis, set()).add(d.verdict)
    said = {w: [axis for axis, v in verdicts.items() if v == {w}] for w in ("better", "worse")}
    said["mixed"] = [axis for axis, v in verdicts.items() if len(v) == 2]
    return listed([f"{word} on {listed(axes)}" for word, axes in said.items() if axes])


def _claims(comparison: Comparison) -> list[str]:
    """One clause for all arms of which the same is decided."""
    by_claim: dict[str, list[str]] = {}
    for arm in comparison.arms[1:]:
        if claim := _claim(comparison, arm):
            by_claim.setdefault(claim, []).append(arm)
    return [f"{listed(arms)} {'is' if len(arms) == 1 else 'are'} {claim}" for claim, arms in by_claim.items()]


def conclusion(comparison: Comparison) -> str:
    """The finding in one sentence: who is better or worse on which axis, and that the rest is noise."""
    n, seeds = len(comparison.arms), max((len(d.seeds) for d in comparison.differences), default=0)
    models = comparison.about == "models"
    what = "models" if models else "recipes"
    over = "on the same items" if models else f"over {counted(seeds, 'paired seed')}"
    rows = [d for arm in comparison.arms[1:] for d in rows_of(comparison, arm)]
    tested = [d for d in rows if d.reading.better != 0 and d.verdict != "unmeasured"]
    if not tested:
        if any(d.verdict == "unmeasured" for d in rows):
            return f"No reading that has a better direction was measured in {comparison.baseline} and in another of these {n} {what}."
        return f"Nothing that has a better direction was measured on these {n} {what}."
    if not seeds:
        return f"No seed has finished runs of two of the {n} {what}: nothing can be compared yet."
    if all(d.verdict == "equal" for d in tested):
        return f"The {n} {what} gave exactly the same figures {over}."
    if not models and seeds < 3:
        few = "One seed" if seeds == 1 else "Two seeds"
        return f"{few} cannot tell {n} recipes from luck: every verdict on an estimated figure is undecided."
    said = _claims(comparison)
    if not said:
        return f"Of {n} {what} {over}, none differs from {comparison.baseline} beyond noise."
    rest = "; nothing else differs beyond noise" if any(d.verdict == "undecided" for d in tested) else ""
    return f"Of {n} {what} {over} against {comparison.baseline}, {'; '.join(said)}{rest}."


def first_words(comparison: Comparison) -> str:
    """Which readings were named first, as the end of a sentence about the correction; empty where none was."""
    if not comparison.first:
        return ""
    n = sum(d.p_corrected is not None for d in comparison.differences if d.reading.name in comparison.first)
    return (
        f", the {n} of {listed([label(r) for r in comparison.first])} (named before anything ran) apart from all others"
    )


def supporting(comparison: Comparison) -> list[str]:
    """What a reader of the conclusion must know next: lost runs, and how small a difference would have been seen."""
    out = []
    runs = [f for f in comparison.failures if not f.reading]
    if runs:
        named = listed([f"{f.arm} seed {f.seed}" for f in runs[:6]]) + (" and more" if len(runs) > 6 else "")
        out.append(f"{counted(len(runs), 'run')} failed: {named}.")
    bad = {(f.arm, f.seed) for f in comparison.failures if f.reading}
    if bad:
        out.append(f"{counted(len(bad), 'run')} gave readings that are not finite numbers.")
    if comparison.absent:
        whole = len(comparison.arms) * len(comparison.seeds)
        has = "has" if len(comparison.absent) == 1 else "have"
        out.append(f"{len(comparison.absent)} of {whole} runs {has} not been made yet.")
    rows = [d for arm in comparison.arms[1:] for d in rows_of(comparison, arm)]
    for d in rows:
        if d.detectable is not None and d.verdict == "undecided":
            size = reading_value(d.detectable, d.reading, digits_for(d.detectable))
            found = f"would be found {comparison.power:.0%} of the time"
            out.append(
                f"A true difference of {size} in {label(d.reading.name)} {found}; smaller ones may hide in the noise."
            )
            break
    return out
