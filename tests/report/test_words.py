from __future__ import annotations

import math

import pytest

from luthier.compare.summary import compare
from luthier.compare.verdicts import Design
from luthier.report.content import Comparison, Difference, Failure, ReadingInfo
from luthier.report.words import conclusion, decimals_of, digits_for, interval, number, quantity, supporting
from tests.compare.synthetic import RECIPES, flat, runs_of

ARMS = tuple(RECIPES)


def test_numbers_for_people():
    assert [number(x) for x in (0.0, 3.0, -1234.5678, 99_900.0, 100_000.0, 2.5e6, 3e9)] == [
        "0",
        "3",
        "\u22121235",
        "99,900",
        "100k",
        "2.5M",
        "3G",
    ]
    assert number(-0.0004, 2) == "0.00"
    assert number(-0.0004, 2, signed=True) == "0.00"
    assert number(0.25, 2, signed=True) == "+0.25"
    assert number(math.nan) == "not a number"
    assert number(-math.inf) == "\u2212∞"
    assert quantity(90.0, "peak_bytes") == "90 B"
    assert quantity(8000.0, "seconds") == "2.22 h"
    assert quantity(789_760.0, "train_tokens") == "790k tokens"
    assert quantity(807_808.0, "trained_parameters") == "808k parameters"
    assert quantity(400.0, "forwards_reference") == "400 forward passes"
    assert quantity(1500.0, "tokens_per_second") == "1,500 tokens/s"
    assert digits_for(0.0, math.nan) == 3


def test_interval_in_words():
    r = ReadingInfo(name="x", unit="nats")
    d = Difference(
        arm="b",
        baseline="a",
        reading=r,
        seeds=(0,),
        arm_mean=1.0,
        baseline_mean=0.5,
        difference=0.5,
        low=0.25,
        high=0.75,
    )
    assert interval(d, 2) == "+0.50 nats [+0.25, +0.75]"
    blank = Difference(arm="b", baseline="a", reading=r, seeds=(), arm_mean=None, baseline_mean=None, difference=None)
    assert interval(blank, 2) == "\u2013"


def test_conclusion_names_who_is_better_on_what():
    c = compare(runs_of(), ARMS, range(5))
    assert conclusion(c) == (
        "Of 3 recipes over 5 paired seeds against nll, dft is better on quality, worse on diversity and mixed on cost; "
        "nll + neftune is worse on cost; nothing else differs beyond noise."
    )
    assert supporting(c)[0].startswith("A true difference of")


def verdict_of(better: dict[str, list[float]], seeds: int = 4, **kwargs: object) -> str:
    runs = [flat(arm, s, {"x": v}) for arm, values in better.items() for s, v in enumerate(values)]
    return conclusion(compare(runs, tuple(better), range(seeds), **kwargs))  # type: ignore[arg-type]


def test_conclusion_of_other_outcomes():
    base = [0.5, 0.51, 0.49, 0.502]
    assert verdict_of({"a": base, "b": [v + 0.3 for v in base[::-1]], "c": [v + 0.3 for v in base[::-1]]}) == (
        "Of 3 recipes over 4 paired seeds against a, b and c are better on quality."
    )
    assert (
        verdict_of({"a": base, "b": base[::-1]})
        == "Of 2 recipes over 4 paired seeds, none differs from a beyond noise."
    )
    assert verdict_of({"a": base, "b": base}) == "The 2 recipes gave exactly the same figures over 4 paired seeds."
    assert verdict_of({"a": base[:1], "b": [0.9]}, 1).startswith("One seed cannot tell 2 recipes from luck")
    assert verdict_of({"a": base[:2], "b": [0.9, 0.91]}, 2).startswith("Two seeds cannot tell")
    assert (
        verdict_of({"a": [0.5], "b": []}, 1)
        == "No seed has finished runs of two of the 2 recipes: nothing can be compared yet."
    )
    assert conclusion(
        compare([flat("a", 0, {"x": 1.0}, better=0), flat("b", 0, {"x": 2.0}, better=0)], ("a", "b"), (0,))
    ).startswith("Nothing that")
    items = [
        flat(a, 0, {"x": v}, items={"x": [1.0] * int(40 * v) + [0.0] * int(40 - 40 * v)})
        for a, v in (("a", 0.25), ("b", 0.75))
    ]
    about = compare(items, ("a", "b"), (0,), Design(about="models"))
    assert conclusion(about) == "Of 2 models on the same items against a, b is better on quality."


def test_supporting_lines_tell_of_lost_runs():
    runs = [r for r in runs_of() if (r.arm, r.seed) not in {("dft", 4), ("nll", 3)}]
    lines = supporting(compare(runs, ARMS, range(5), failures=[Failure(arm="dft", seed=4, why="x")]))
    assert lines[0] == "1 run failed: dft seed 4."
    assert lines[1] == "1 of 15 runs has not been made yet."


def test_decimals_follow_the_interval_and_whole_numbers_stay_whole():
    c: Comparison = compare(runs_of(), ARMS, range(5))
    assert decimals_of(c, "exact match") == 3
    assert decimals_of(c, "trained parameters") is None
    assert number(12.0, decimals_of(c, "trained parameters")) == "12"


@pytest.mark.parametrize("value", [1e-12, 5.0, 1e15, -3.3e-5])
def test_numbers_are_short(value: float):
    assert len(number(value)) <= 9
