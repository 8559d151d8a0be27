"""The race against runs whose truth is known: who wins, ties, failures, caps, interruption, fresh seeds."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest

from luthier.compare.race import Configuration, Judge, Ladder, race
from luthier.compare.results import RunResult
from luthier.core.errors import ConfigError, LuthierError, Refused
from luthier.core.protocols import Reading
from luthier.core.streams import numpy_stream

TRUTH = {"base": (0.5, 0.01), "slow": (0.6, 0.001), "best": (0.9, 0.1), "fair": (0.7, 0.01), "poor": (0.2, 0.01)}
RATES = (0.001, 0.01, 0.1)
LADDER = Ladder(shares=(0.25, 0.5), counts=(1, 2), seeds=(0, 1, 2), finalists=3)
SCORE = Judge(by=("score",))


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """Runs here hold nothing; collecting after each would take longer than all of them."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def configure(recipe: Any, rate: float, share: float | None) -> Any:
    return {"arm": recipe, "lr": rate, "share": share}


def truth(arm: str, recipe: Any, seed: int) -> RunResult:
    """A score that falls off from the arm's best rate, by a factor for each decade, with a little luck of the seed."""
    name, rate, share = recipe["arm"], recipe["lr"], recipe["share"] or 1.0
    height, at = TRUTH[name]
    off = 0.3 * abs(round(math.log10(rate) - math.log10(at)))
    luck = 0.01 * float(numpy_stream(seed, f"luck.{name}").standard_normal())
    score = height * share**0.1 - off + luck
    readings = {"score": Reading("score", score, (), 1, "", "quality"),
                "cost": Reading("cost", height + off, (), -1, "", "cost"),
                "length": Reading("length", 1.0, (), 0, "", "style")}  # fmt: skip
    return RunResult(arm=arm, seed=seed, readings=readings, seconds=1.0)


def run(out: Path, run_one=truth, arms=tuple(TRUTH), judge=SCORE, ladder=LADDER, rates=RATES, **more):
    return race({a: a for a in arms}, rates, ladder, judge, configure, run_one, out, **more)


def test_the_best_arm_wins_at_its_own_rate_and_the_baseline_stays(tmp_path):
    said: list[str] = []
    got = run(tmp_path, on_rung=said.append)
    assert [str(c) for c in got.finalists] == ["base @ 0.01", "best @ 0.1", "fair @ 0.01"]
    means = {r.arm: [] for r in got.outcome.results}
    for r in got.outcome.results:
        means[r.arm].append(r.readings["score"].value)
    assert max(means, key=lambda a: sum(means[a])) == "best"
    assert [len(r.lines) for r in got.rungs] == [15, 5]
    assert said == ["rung 1 of 2: 15 configurations, 25% of the steps, 1 seed",
                    "rung 2 of 2: 5 configurations, 50% of the steps, 2 seeds",
                    "last comparison: 3 arms, all steps, 3 seeds that chose nothing"]  # fmt: skip
    assert got.rungs[0].lines[0].arm == "best"
    assert [line.fate for line in got.rungs[0].lines] == ["goes on"] * 5 + ["dropped"] * 10
    assert got.rungs[1].lines[-1].arm != "best"


def test_a_poor_baseline_is_kept_and_said_to_be(tmp_path):
    got = run(tmp_path, arms=("poor", "base", "best", "fair", "slow"))
    assert got.finalists[0].arm == "poor"
    assert [c.arm for c in got.finalists[1:]] == ["best", "fair"]
    (kept,) = [line for line in got.rungs[1].lines if line.arm == "poor" and line.fate == "goes on"]
    assert kept.why == "the baseline stays"


def test_the_best_other_arm_is_kept_where_the_baseline_fills_all_places(tmp_path):
    got = run(tmp_path, arms=("best", "poor"), ladder=Ladder(shares=(0.5, 0.5), counts=(1, 1), seeds=(0,), finalists=2))
    assert [(line.arm, line.fate) for line in got.rungs[0].lines[:3]] == [
        ("best", "goes on"),
        ("best", "dropped"),
        ("best", "dropped"),
    ]
    assert [str(c) for c in got.finalists] == ["best @ 0.1", "poor @ 0.01"]


def test_seeds_of_the_last_comparison_choose_nothing(tmp_path):
    ladder = Ladder(shares=(0.5, 0.5), counts=(2, 2), seeds=(1001, 3), finalists=2)
    asked: list[tuple[float | None, int]] = []

    def listening(arm, recipe, seed):
        asked.append((recipe["share"], seed))
        return truth(arm, recipe, seed)

    run(tmp_path, listening, ladder=ladder)
    chose = {s for share, s in asked if share is not None}
    assert chose == {1000, 1002, 1003, 1004}
    assert {s for share, s in asked if share is None} == {1001, 3}


def test_equals_stay_in_the_order_given(tmp_path):
    def flat(arm, recipe, seed):
        return RunResult(
            arm=arm, seed=seed, readings={"score": Reading("score", 0.5, (), 1, "", "quality")}, seconds=1.0
        )

    got = run(tmp_path, flat, ladder=Ladder(shares=(0.5,), counts=(1,), seeds=(0,), finalists=3))
    assert got.finalists == [Configuration(a, 0.001) for a in ("base", "slow", "best")]


def test_failures_and_numbers_that_are_none_drop_a_configuration_and_stop_nothing(tmp_path):
    def fragile(arm, recipe, seed):
        if recipe["arm"] == "best":
            raise FloatingPointError("loss became nan")
        got = truth(arm, recipe, seed)
        if (recipe["arm"], recipe["lr"]) == ("fair", 0.01):
            bad = {**got.readings, "score": Reading("score", float("nan"), (), 1, "", "quality")}
            return RunResult(arm=arm, seed=seed, readings=bad, seconds=1.0)
        return got

    got = run(tmp_path, fragile)
    failed = {(line.arm, line.rate): line.why for line in got.rungs[0].lines if line.fate == "failed"}
    assert failed == {**{("best", r): "FloatingPointError: loss became nan" for r in RATES},
                      ("fair", 0.01): "its reading score is no finite number"}  # fmt: skip
    assert "best" not in {c.arm for c in got.finalists}
    assert len(got.finalists) == 3


def test_an_interrupted_race_goes_on_from_its_files_with_the_same_result(tmp_path):
    whole = run(tmp_path / "whole")
    left = [17]

    def stops(arm, recipe, seed):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return truth(arm, recipe, seed)

    half = run(tmp_path / "half", stops)
    assert half.interrupted
    assert len(half.rungs) == 1
    ran: list[str] = []

    def counting(arm, recipe, seed):
        ran.append(arm)
        return truth(arm, recipe, seed)

    again = run(tmp_path / "half", counting)
    assert not again.interrupted
    assert len(ran) == 15 + 2 * 5 + 3 * 3 - 17
    assert again.rungs == whole.rungs
    assert again.finalists == whole.finalists
    assert [r.as_json() for r in again.outcome.results] == [r.as_json() for r in whole.outcome.results]
    run(tmp_path / "half", lambda *a: pytest.fail("ran again"))


def test_a_cap_and_several_readings():
    figures = [
        {"score": 0.9, "lost": 0.5},
        {"score": 0.8, "lost": 0.1},
        {"score": 0.7, "lost": 0.0},
        {"score": 0.95, "lost": 0.2},
    ]
    better = {"score": 1, "lost": -1}
    assert Judge(by=("score",), cap=("lost", 0.1)).order(figures, better) == [1, 2, 3, 0]
    both = Judge(by=("score", "lost"))
    places = [0.5 + 1 + 3.5, 2.5 + 1.5, 3.5 + 0.5, 0.5 + 2.5]
    assert both.order(figures, better) == sorted(range(4), key=lambda i: places[i])
    assert both.words() == "the mean of the places on score and lost"
    assert Judge(by=("score",), cap=("lost", 0.1)).words() == "score, lost at most 0.1 (those above it come last)"


def test_a_reading_where_less_is_better(tmp_path):
    got = run(tmp_path, judge=Judge(by=("cost",)))
    assert [c.arm for c in got.finalists] == ["base", "poor", "slow"]


def test_without_a_name_the_first_reading_with_a_direction_decides(tmp_path):
    got = run(tmp_path, judge=Judge(by=()))
    assert got.judge == Judge(by=("cost",))
    assert run(tmp_path / "capped", judge=Judge(by=(), cap=("cost", 9.0))).judge.by == ("score",)


def test_the_number_of_runs_is_told_before(tmp_path):
    ran: list[str] = []

    def counting(arm, recipe, seed):
        ran.append(arm)
        return truth(arm, recipe, seed)

    run(tmp_path, counting)
    assert LADDER.sizes(5, 3) == [15, 5, 3]
    assert LADDER.runs(5, 3) == len(ran) == 15 + 10 + 9
    assert Ladder().sizes(40, 3) == [120, 40, 5]
    assert Ladder().sizes(2, 1) == [2, 2, 2]


def test_what_cannot_race_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="a race requires two arms and different rates; got 1 arm"):
        run(tmp_path, arms=("base",))
    with pytest.raises(ConfigError, match="different rates"):
        run(tmp_path, rates=(0.1, 0.1))
    with pytest.raises(Refused, match=r"requires the reading 'scores' to judge by; got readings cost, length, score"):
        run(tmp_path / "a", judge=Judge(by=("scores",)))
    with pytest.raises(Refused, match="a reading of which more or less is better; got length"):
        run(tmp_path / "b", judge=Judge(by=("length",)))

    def breaks(arm, recipe, seed):
        raise ValueError("no data")

    def lonely(arm, recipe, seed):
        return truth(arm, recipe, seed) if recipe["arm"] == "base" else breaks(arm, recipe, seed)

    with pytest.raises(
        LuthierError, match="baseline base requires a run that ends at some rate; got none: ValueError: no data"
    ):
        run(tmp_path / "c", breaks)
    with pytest.raises(LuthierError, match=r"another arm than the baseline; got none whose runs ended: slow @ 0\.001"):
        run(tmp_path / "d", lonely)
    with pytest.raises(ConfigError, match="a number of seeds for each rung"):
        Ladder(shares=(0.5,), counts=(1, 2))
    with pytest.raises(ConfigError, match="two finalists at least"):
        Ladder(finalists=1)
