from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from luthier.compare.summary import compare
from luthier.report import plots
from luthier.report.svg import SHAPES, Scale, ticks
from tests.compare.synthetic import RECIPES, flat, runs_of

C = compare(runs_of(), tuple(RECIPES), range(5))


def test_ticks_are_round_inside_and_few():
    for low, high in ((0.0, 1.0), (-3.2, 7.7), (1e-9, 5e-9), (1e6, 1.1e6), (-0.2, -0.1)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        assert all(low - 1e-12 <= v <= high + 1e-12 for v in found)


def test_scale_turns_and_survives_one_value():
    assert Scale(0, 10)(2.5) == 0.25
    assert Scale(0, 10, turned=True)(2.5) == 0.75
    assert 0 < Scale.around([3.0, 3.0])(3.0) < 1
    assert 0 < Scale.around([math.nan, 0.0])(0.0) < 1


def test_band_is_the_mean_between_the_extremes_and_averages_neighbours():
    whole, k = plots.band([[(0, 1.0), (1, 3.0)], [(0, 3.0), (1, 5.0)]])
    assert (whole, k) == ([(0, 2.0, 1.0, 3.0), (1, 4.0, 3.0, 5.0)], 1)
    mixed, _ = plots.band([[(0, 0.0), (2, 2.0)], [(1, 5.0), (2, math.nan)]])
    assert mixed == [(0, 0.0, 0.0, 0.0), (1, 3.0, 1.0, 5.0), (2, 2.0, 2.0, 2.0)]
    many, k = plots.band([[(i, float(i)) for i in range(1000)]], most=100)
    assert (len(many), k) == (100, 10)
    assert many[0] == (4.5, 4.5, 0.0, 9.0)
    assert plots.band([[]]) == ([], 1)


def test_front_holds_exactly_the_points_that_no_other_dominates():
    points = {"a": (1.0, 1.0), "b": (2.0, 0.5), "c": (0.5, 0.9), "d": (2.0, 0.4), "e": (1.0, 1.0)}
    slow = [n for n, p in points.items() if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points.values())]
    assert sorted(plots.undominated(points)) == sorted(slow) == ["a", "b", "e"]


def test_forest_puts_better_on_the_right_whatever_the_direction():
    for better in (1, -1):
        runs = [
            flat(a, s, {"x": 0.5 + 0.01 * s + (0.3 * better if a == "b" else 0)}, better)
            for a in "ab"
            for s in range(4)
        ]
        drawn = str(plots.forest(compare(runs, ("a", "b"), range(4))))
        place = float(re.search(r'<svg x="([\d.]+)%" y="50.00%"[^>]*decided', drawn).group(1))  # type: ignore[union-attr]
        assert place > 60
        assert 'class="track better"' in drawn


def test_forest_shows_the_tested_interval_and_leaves_out_what_was_not_measured():
    drawn = str(plots.forest(C))
    assert drawn.count('class="row"') == 2 * len(C.readings)
    assert drawn.count('class="tested"') == 2 * len(C.readings) - 2
    lost = replace(C, differences=tuple(replace(d, difference=None) for d in C.differences))
    assert 'class="row"' not in str(plots.forest(lost))


def test_trade_offs_set_the_headline_of_quality_against_every_other_axis():
    assert [r.name for r in plots.headline(C).values()] == [
        "exact match",
        "distinct trigrams",
        "old skills kept",
        "calibration error",
        "time",
    ]
    drawn = str(plots.pareto(C))
    assert drawn.count("<figure") == 4
    assert drawn.count(' mean"') == 4 * 3
    assert drawn.count(' seed"') == 4 * 3 * 5
    only = compare([flat(a, s, {"x": 1.0 * s}) for a in "ab" for s in range(3)], ("a", "b"), range(3))
    assert plots.pareto(only) == ""


def test_curves_and_cost_hold_every_arm():
    drawn = str(plots.curves(C))
    assert drawn.count("<figure") == 2
    assert drawn.count('class="band') == drawn.count('class="curve') == 6
    costs = str(plots.cost(C))
    assert costs.count('class="row"') == 4 * 3
    assert "187 MiB" in costs or "188 MiB" in costs
    assert plots.curves(replace(C, curves={"x": {"nll": {0: [(0.0, math.nan)]}}})) == ""
    assert plots.cost(replace(C, cost={})) == ""


def test_a_curve_that_never_moves_is_told_and_not_drawn():
    still = {"images": {a: {s: [(0.0, 8.0), (1.0, 8.0)] for s in range(3)} for a in C.arms}}
    alone = str(plots.curves(replace(C, curves=still)))
    assert "<svg" not in alone and "The same at every step of every run: images 8." in alone
    moved = {"images": {**still["images"], C.arms[0]: {0: [(0.0, 8.0), (1.0, 9.0)]}}}
    assert "<svg" in str(plots.curves(replace(C, curves=moved)))
    both = str(plots.curves(replace(C, curves={**C.curves, **still})))
    assert both.count("<figure") == str(plots.curves(C)).count("<figure")


def test_more_arms_than_marks_still_draw():
    arms = tuple(f"r{i}" for i in range(len(SHAPES) + 2))
    runs = [flat(a, s, {"x": i + 0.1 * s, "y": 1.0 * i}) for i, a in enumerate(arms) for s in range(3)]
    assert str(plots.forest(compare(runs, arms, range(3)))).count('class="row"') == 2 * (len(arms) - 1)


def test_negative_costs_do_not_break_the_bars():
    assert "nan" not in str(plots.cost(replace(C, cost={"nll": {"saved": [-1.0]}, "dft": {"saved": [0.0]}})))


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, 1.0]])
def test_scale_of_odd_values_is_finite(values: list[float]):
    s = Scale.around(values)
    assert math.isfinite(s.low)
    assert s.high > s.low
