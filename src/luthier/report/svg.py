"""Small drawing parts: SVG that fits any width without distorting text, needs no script, and escapes what it is given.

Positions are shares of the plot (0 to 1) and written in per cent, sizes of text and marks are pixels; so one drawing
serves a phone and a wide screen. Paths lie in an inner drawing that is stretched while its strokes are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from luthier.report.words import number

SHAPES = (
    "M0 -5A5 5 0 1 1 -.01 -5Z",
    "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "M0 -6L5.6 4.2H-5.6Z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0Z",
    "M0 6L5.6 -4.2H-5.6Z",
    "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M0 -6L1.8 -1.9L6 -1.9L2.6 .9L3.8 5.3L0 2.7L-3.8 5.3L-2.6 .9L-6 -1.9L-1.8 -1.9Z",
    "M-3 -5.2H3L6 0L3 5.2H-3L-6 0Z",
)


def breakable(words: str) -> Markup:
    """A name, escaped, that may be broken after its underscores, dots and slashes."""
    out = str(escape(words))
    for sign in "/._":
        out = out.replace(sign, f"{sign}<wbr>")
    return Markup(out)


def percent(share: float) -> str:
    """A share as per cent for an attribute, within what drawing programs accept."""
    return f"{100 * min(max(share, -9.0), 9.0):.2f}%"


def shape(arm: int, x: float, y: float, title: str = "", kind: str = "") -> Markup:
    """The mark of an arm, by its number, at (x, y); `kind` adds a class. Marks differ by form as well as by colour."""
    tip = Markup("<title>{}</title>").format(title) if title else Markup("")
    n = arm % len(SHAPES)
    drawn = Markup('<path d="{}"/>{}').format(SHAPES[n], tip)
    place = (percent(x), percent(y))
    return Markup('<svg x="{}" y="{}" overflow="visible" class="mark a{} {}">{}</svg>').format(*place, n, kind, drawn)


def swatch(arm: int) -> Markup:
    """The mark of an arm for legends and headings."""
    return Markup('<svg class="swatch mark a{}" viewBox="-7 -7 14 14" aria-hidden="true"><path d="{}"/></svg>').format(
        arm % len(SHAPES), SHAPES[arm % len(SHAPES)]
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*map(percent, (x1, y1, x2, y2)), kind)


def text(x: float, y: float, words: str, kind: str = "", dx: float = 0, dy: float = 0) -> Markup:
    """Words at a place, moved by (dx, dy) pixels."""
    place = (percent(x), percent(y), dx, dy)
    return Markup('<text x="{}" y="{}" dx="{}" dy="{}" class="{}">{}</text>').format(*place, kind, words)


def path(points: Sequence[tuple[float, float]], kind: str, close: bool = False) -> Markup:
    """A path through points in shares, for use inside `stretched`."""
    joined = "L".join(f"{1000 * x:.1f} {1000 * y:.1f}" for x, y in points)
    return Markup('<path d="M{}{}" class="{}"/>').format(joined, "Z" if close else "", kind)


def stretched(*inner: Markup) -> Markup:
    """A layer for paths: as wide and high as the plot."""
    return Markup('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{}</svg>').format(
        Markup("").join(inner)
    )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values inside [low, high], about so many.

    >>> ticks(0.12, 0.83)
    [0.2, 0.4, 0.6, 0.8]
    >>> ticks(5.0, 5.0)
    [5.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


@dataclass(frozen=True)
class Scale:
    """From values to shares of the plot; `turned` puts the high values at the start."""

    low: float
    high: float
    turned: bool = False

    @classmethod
    def around(cls, values: Sequence[float], margin: float = 0.08, turned: bool = False) -> Scale:
        """A scale that holds all finite values with a margin; never of zero length."""
        known = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(known), max(known)
        pad = (high - low) * margin or abs(high) * 0.1 or 1.0
        return cls(low - pad, high + pad, turned)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return 1 - share if self.turned else share


def axes(x: Scale, y: Scale, x_name: str, y_name: str) -> Markup:
    """Grid lines, tick labels and names of both axes. The y scale counts from the top, as drawing does."""
    parts = []
    for value in ticks(y.low, y.high, 5):
        parts += [line(0, y(value), 1, y(value), "grid"), text(0, y(value), number(value), "tick end", -8, 4)]
    for value in ticks(x.low, x.high):
        parts += [line(x(value), 0, x(value), 1, "grid"), text(x(value), 1, number(value), "tick middle", 0, 18)]
    parts += [text(1, 1, x_name, "axis end", 0, 37), text(0, 0, y_name, "axis", -44, -14)]
    return Markup("").join(parts)


def plot(inner: Markup, described: str, height: int = 260) -> Markup:
    """The outer drawing with room for ticks; `described` is read to those who cannot see it."""
    return Markup('<svg class="plot" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        described, height, inner
    )
