"""The figures of a report as inline SVG and HTML: differences with intervals, trade-offs, learning curves, cost.

Drawn here rather than by a plotting library, because the report must open at once on a phone, work without any script
and without the network: the drawing code of a library is several megabytes and needs scripts allowed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from luthier.report import svg
from luthier.report.content import Comparison, Difference, Point, ReadingInfo
from luthier.report.words import (
    MARKS,
    decimals_of,
    direction,
    interval,
    label,
    mean,
    number,
    quantity,
    reading_value,
    verdict_words,
)

CURVE_POINTS = 120


def legend(comparison: Comparison) -> Markup:
    """Marks and names of the arms."""
    items = (
        Markup("<li>{}<span>{}</span>{}</li>").format(
            svg.swatch(i), arm, Markup(" <em>baseline</em>") if i == 0 else ""
        )
        for i, arm in enumerate(comparison.arms)
    )
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


# --------------------------------------------------------------------------- forest
def _reach(rows: Sequence[Difference]) -> float:
    """Half the width of the scale that one reading's rows share: their intervals at the stated level, with a margin."""
    ends = [abs(v) for d in rows for v in (d.difference, d.low, d.high) if v is not None and math.isfinite(v)]
    return 1.15 * max(ends, default=1.0) or 1.0


def _whisker(d: Difference, place: svg.Scale) -> Markup:
    """The interval as tested, thin, with arrow heads where it leaves the scale; the interval by itself, thick."""
    parts = []
    if d.tested_low is not None and d.tested_high is not None and d.basis != "constant":
        start, end = sorted((place(d.tested_low), place(d.tested_high)))
        parts.append(svg.line(max(start, 0.0), 0.5, min(end, 1.0), 0.5, "tested"))
        parts += [svg.text(0, 0.5, "\u2039", "beyond", -2, 5)] if start < 0 else []
        parts += [svg.text(1, 0.5, "\u203a", "beyond end", 2, 5)] if end > 1 else []
    if d.low is not None and d.high is not None:
        parts.append(svg.line(place(d.low), 0.5, place(d.high), 0.5, "bar"))
    return Markup("").join(parts)


def _place(reading: ReadingInfo, reach: float) -> svg.Scale:
    """Zero in the middle, the better side on the right."""
    return svg.Scale(-reach, reach, turned=reading.better < 0)


def _track(d: Difference, arm: int, reach: float) -> Markup:
    """The drawing of one row."""
    place = _place(d.reading, reach)
    parts = [svg.line(0.5, 0, 0.5, 1, "zero")]
    if d.difference is not None:
        kind = "decided" if d.verdict in ("better", "worse") else "open"
        parts += [_whisker(d, place), svg.shape(arm, place(d.difference), 0.5, "", kind)]
    said = f"{d.arm} minus {d.baseline}, {label(d.reading.name)}: {interval(d, None)}, {verdict_words(d)}"
    return Markup('<svg class="track {}" role="img" aria-label="{}" width="100%" height="26">{}</svg>').format(
        d.verdict, said, Markup("").join(parts)
    )


def _row(d: Difference, arm: int, reach: float, decimals: int | None) -> Markup:
    form = (
        '<div class="row"><span class="who">{}<span>{}</span></span>{}<span class="figure">{}</span>'
        '<span class="verdict {}" title="{}"><b aria-hidden="true">{}</b> {}</span></div>'
    )
    said = (d.verdict, "; ".join(d.notes), MARKS[d.verdict], verdict_words(d))
    return Markup(form).format(
        svg.swatch(arm), svg.breakable(d.arm), _track(d, arm, reach), interval(d, decimals), *said
    )


def _scale(reading: ReadingInfo, reach: float) -> Markup:
    """Ticks under the rows of one reading."""
    place = _place(reading, reach)
    marks = [svg.text(place(v), 0, number(v, signed=True), "tick middle", 0, 12) for v in svg.ticks(-reach, reach, 4)]
    return Markup('<svg class="scale" aria-hidden="true" width="100%" height="16">{}</svg>').format(
        Markup("").join(marks)
    )


def forest(comparison: Comparison, baseline: str | None = None) -> Markup:
    """Differences of all arms to the baseline with their intervals; each reading has its own scale, better is right."""
    against = baseline or comparison.baseline
    blocks = []
    for axis, readings in comparison.axes().items():
        for reading in readings:
            rows = [d for arm in comparison.arms if arm != against and (d := comparison.of(reading.name, arm, against))]
            if not any(d.difference is not None for d in rows):
                continue
            reach, decimals = _reach(rows), decimals_of(comparison, reading.name)
            drawn = Markup("").join(_row(d, comparison.arms.index(d.arm), reach, decimals) for d in rows)
            unit = f"{reading.unit} · " if reading.unit not in ("", "1") else ""
            head = (label(reading.name), f"{axis} · {unit}{direction(reading)}")
            form = '<section class="reading"><h4>{} <small>{}</small></h4>{}{}</section>'
            blocks.append(Markup(form).format(*head, drawn, _scale(reading, reach)))
    return Markup('<div class="forest">{}</div>').format(Markup("").join(blocks))


# --------------------------------------------------------------------------- trade-offs
def headline(comparison: Comparison) -> dict[str, ReadingInfo]:
    """The reading that stands for each axis: the first one with a direction."""
    found = {axis: next((r for r in rows if r.better), None) for axis, rows in comparison.axes().items()}
    return {axis: r for axis, r in found.items() if r is not None}


def _means(comparison: Comparison, reading: str) -> dict[str, float]:
    means = {a: mean(comparison.values.get(reading, {}).get(a, {}).values()) for a in comparison.arms}
    return {a: m for a, m in means.items() if m is not None}


def undominated(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other point equals or exceeds in both figures and exceeds in one; by the first
    figure.

    >>> undominated({"a": (1, 5), "b": (2, 2), "c": (1, 4)})
    ['a', 'b']
    """

    def worse(p: tuple[float, float], q: tuple[float, float]) -> bool:
        return q[0] >= p[0] and q[1] >= p[1] and q != p

    front = [n for n, p in points.items() if not any(worse(p, q) for q in points.values())]
    return sorted(front, key=lambda n: points[n])


def _seeds(comparison: Comparison, x: str, y: str, arm: str) -> list[Point]:
    """Both figures of each run of an arm that has both."""
    first, second = (comparison.values.get(name, {}).get(arm, {}) for name in (x, y))
    pairs = [(u, second[s]) for s, u in first.items() if s in second]
    return [(u, v) for u, v in pairs if math.isfinite(u) and math.isfinite(v)]


def _front(points: Mapping[str, Point], names: Sequence[str], x: svg.Scale, y: svg.Scale) -> list[Point]:
    """The staircase through the points that no other one dominates."""
    stairs: list[Point] = []
    for name in names:
        u, v = points[name]
        stairs += [(x(u), stairs[-1][1])] if stairs else []
        stairs.append((x(u), y(v)))
    return stairs


def _panel(comparison: Comparison, x: ReadingInfo, y: ReadingInfo) -> Markup:
    """One trade-off: both scales turned so that right and up is better."""
    mx, my = _means(comparison, x.name), _means(comparison, y.name)
    points = {a: (mx[a], my[a]) for a in comparison.arms if a in mx and a in my}
    seeds = {a: _seeds(comparison, x.name, y.name, a) for a in points}
    shown = [p for ps in seeds.values() for p in ps] + list(points.values())
    across = svg.Scale.around([u for u, _ in shown], 0.12, turned=x.better < 0)
    up = svg.Scale.around([v for _, v in shown], 0.12, turned=y.better > 0)
    front = undominated({a: (x.better * u, y.better * v) for a, (u, v) in points.items()})
    unit = f", {x.unit}" if x.unit not in ("", "1") else ""
    parts = [svg.axes(across, up, f"{label(x.name)}{unit} →", "")]
    if len(front) > 1:
        parts.append(svg.stretched(svg.path(_front(points, front, across, up), "front")))
    number_of = {a: i for i, a in enumerate(comparison.arms)}
    parts += [svg.shape(number_of[a], across(u), up(v), "", "seed") for a, ps in seeds.items() for u, v in ps]
    for a, (u, v) in points.items():
        tip = f"{a}: {reading_value(u, x)}, {reading_value(v, y)}"
        parts.append(svg.shape(number_of[a], across(u), up(v), tip, "mean"))
    parts.append(svg.text(1, 0, "better ↗", "corner end", -4, 14))
    best = f"Not beaten in both by means: {', '.join(front)}." if points else "No run has both figures."
    said = f"{label(y.name)} against {label(x.name)}. {best}"
    form = '<figure class="chart"><figcaption><b>{}</b> ↑ against {}</figcaption>{}<p class="small">{}</p></figure>'
    return Markup(form).format(label(y.name), x.axis, svg.plot(Markup("").join(parts), said), best)


def pareto(comparison: Comparison) -> Markup:
    """The headline of quality against that of every other axis; small marks are seeds, large ones means."""
    heads = headline(comparison)
    first = next(iter(heads), None)
    panels = [_panel(comparison, r, heads[first]) for axis, r in heads.items() if axis != first] if first else []
    return Markup('<div class="charts">{}</div>').format(Markup("").join(panels)) if panels else Markup("")


# --------------------------------------------------------------------------- curves
def _at(points: Sequence[Point], x: float) -> float | None:
    """Linear interpolation inside the range of a curve that is sorted by x; None outside."""
    i = bisect_left(points, (x, -math.inf))
    if i < len(points) and points[i][0] == x:
        return points[i][1]
    if i in (0, len(points)):
        return None
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def band(
    curves: Sequence[Sequence[Point]], most: int = CURVE_POINTS
) -> tuple[list[tuple[float, float, float, float]], int]:
    """(x, mean, lowest, highest) over seeds, and how many neighbouring steps each point averages to keep at most
    `most`.

    Points that are not finite are left out; a seed counts only inside its own range.
    """
    clean = [sorted({x: y for x, y in c if math.isfinite(x) and math.isfinite(y)}.items()) for c in curves]
    steps = sorted({x for c in clean for x, _ in c})
    rows = [(x, [y for c in clean if (y := _at(c, x)) is not None]) for x in steps]
    whole = [(x, math.fsum(ys) / len(ys), min(ys), max(ys)) for x, ys in rows if ys]
    k = max(1, math.ceil(len(whole) / most))
    groups = [list(zip(*whole[i : i + k])) for i in range(0, len(whole), k)]
    out = [(math.fsum(x) / len(x), math.fsum(m) / len(m), min(lo), max(hi)) for x, m, lo, hi in groups]
    return out, k


def curve(comparison: Comparison, name: str) -> Markup:
    """One learning curve: the mean over seeds of each arm, in a band from the lowest to the highest seed."""
    drawn = {a: band(list(seeds.values())) for a, seeds in comparison.curves[name].items() if a in comparison.arms}
    drawn = {a: b for a, b in drawn.items() if b[0]}
    if not drawn:
        return Markup("")
    everything = [row for rows, _ in drawn.values() for row in rows]
    x = svg.Scale.around([r[0] for r in everything], 0.01)
    low = svg.Scale.around([v for r in everything for v in r[2:]], 0.06)
    y = svg.Scale(low.low, low.high, turned=True)
    bands, lines = [], []
    for i, a in enumerate(comparison.arms):
        rows = drawn.get(a, ([], 1))[0]
        if rows:
            edge = [(x(r[0]), y(r[3])) for r in rows] + [(x(r[0]), y(r[2])) for r in reversed(rows)]
            bands.append(svg.path(edge, f"band a{i % len(svg.SHAPES)}", close=True))
            lines.append(svg.path([(x(r[0]), y(r[1])) for r in rows], f"curve a{i % len(svg.SHAPES)}"))
    marks = [svg.shape(comparison.arms.index(a), x(rows[-1][0]), y(rows[-1][1]), a) for a, (rows, _) in drawn.items()]
    last = ", ".join(f"{a} ends at {rows[-1][1]:.4g}" for a, (rows, _) in drawn.items())
    inner = Markup("").join([svg.axes(x, y, "step", ""), svg.stretched(*bands, *lines), *marks])
    k = max(k for _, k in drawn.values())
    said = f"Each point averages {k} neighbouring steps." if k > 1 else ""
    return Markup('<figure class="chart"><figcaption><b>{}</b></figcaption>{}<p class="small">{}</p></figure>').format(
        label(name), svg.plot(inner, f"{label(name)} by step: {last}"), said
    )


def level(comparison: Comparison, name: str) -> float | None:
    """The value that a curve has at every step of every run, None where it moves."""
    seen = {y for by_seed in comparison.curves[name].values() for points in by_seed.values() for _, y in points}
    value = seen.pop() if len(seen) == 1 else math.nan
    return value if math.isfinite(value) else None


def curves(comparison: Comparison) -> Markup:
    """All learning curves; those that never move are told in a line."""
    levels = {name: level(comparison, name) for name in comparison.curves}
    drawn = [curve(comparison, name) for name, one in levels.items() if one is None]
    told = ", ".join(f"{label(name)} {number(one)}" for name, one in levels.items() if one is not None)
    charts = Markup('<div class="charts">{}</div>').format(Markup("").join(drawn)) if any(drawn) else Markup("")
    return charts + (Markup('<p class="small">The same at every step of every run: {}.</p>').format(told) if told else Markup(""))


# --------------------------------------------------------------------------- cost
def _cost_row(arm: int, who: str, name: str, values: Sequence[float], top: float) -> Markup:
    m = mean(values)
    share, low, high = (
        v / top if top > 0 else 0.0 for v in (m or 0.0, min(values, default=0.0), max(values, default=0.0))
    )
    bar = Markup('<rect class="a{}" width="{}" height="100%" rx="3"/>{}').format(
        arm % len(svg.SHAPES),
        svg.percent(max(0.0, share)),
        svg.line(low, 0.5, high, 0.5, "range") if high > low else "",
    )
    form = (
        '<div class="row"><span class="who">{}<span>{}</span></span><svg class="costbar" width="100%" height="16" '
        'aria-hidden="true">{}</svg><span class="figure">{}</span></div>'
    )
    return Markup(form).format(svg.swatch(arm), svg.breakable(who), bar, quantity(m, name))


def cost(comparison: Comparison) -> Markup:
    """Every cost figure as bars from zero: mean over seeds, with a line from the lowest to the highest."""
    names = list(dict.fromkeys(n for a in comparison.arms for n in comparison.cost.get(a, {})))
    blocks = []
    for name in names:
        given = ((a, comparison.cost.get(a, {}).get(name, ())) for a in comparison.arms)
        values = {a: [v for v in vs if math.isfinite(v)] for a, vs in given}
        if any(values.values()):
            top = max(v for vs in values.values() for v in vs)
            rows = Markup("").join(_cost_row(i, a, name, vs, top) for i, (a, vs) in enumerate(values.items()))
            blocks.append(Markup('<section class="reading"><h4>{}</h4>{}</section>').format(label(name), rows))
    return Markup('<div class="costs">{}</div>').format(Markup("").join(blocks)) if blocks else Markup("")
