from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from luthier.compare.results import RunResult
from luthier.compare.summary import compare
from luthier.compare.verdicts import Design, differences
from luthier.core.errors import ConfigError, Refused
from luthier.report.content import Comparison, Difference, Failure
from tests.compare.synthetic import flat, run_of, runs_of


def one(runs: list[RunResult], seeds: int = 5, design: Design | None = None, **kwargs: object) -> Difference:
    (found,), _ = differences(runs, ("a", "b"), range(seeds), design, **kwargs)  # type: ignore[arg-type]
    return found


def two_arms(a: list[float], b: list[float], better: int = 1, axis: str = "quality") -> list[RunResult]:
    return [flat(arm, s, {"x": v}, better, axis) for arm, values in (("a", a), ("b", b)) for s, v in enumerate(values)]


def test_a_clear_difference_is_found_in_the_right_direction():
    runs = [([0.50, 0.52, 0.49, 0.51, 0.505]), ([0.61, 0.60, 0.60, 0.62, 0.615])]
    up, down = one(two_arms(*runs)), one(two_arms(*runs, better=-1))
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert up.basis == "seeds"
    assert up.low is not None
    assert up.low > 0
    assert up.difference == pytest.approx(0.104)
    assert one(two_arms(*runs[::-1])).verdict == "worse"
    assert one(two_arms(*runs, better=0)).verdict == "descriptive"


def test_verdict_and_tested_interval_always_agree():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        shift = rng.normal(0, 0.6, 6)
        runs = [
            flat(arm, s, {f"r{k}": rng.normal() * 0.3 + (shift[k] if arm == "b" else 0) for k in range(6)})
            for arm in "ab"
            for s in range(5)
        ]
        found, family = differences(runs, ("a", "b"), range(5))
        assert family == 6
        for d in found:
            assert d.tested_low is not None
            assert d.tested_high is not None
            assert d.low is not None
            assert d.p_corrected is not None
            assert (d.verdict != "undecided") == (d.tested_low > 0 or d.tested_high < 0) == (d.p_corrected <= 0.05)
            assert d.tested_low <= d.low
            seen.add(d.verdict)
    assert seen == {"better", "worse", "undecided"}


def test_equal_means_every_difference_is_exactly_zero():
    assert one(two_arms([0.5, 0.7], [0.5, 0.7]), 2).verdict == "equal"
    assert one(two_arms([0.5], [0.5]), 1).verdict == "equal"
    assert one(two_arms([0.5, 0.7, 0.6], [0.5, 0.7, 0.6000001]), 3).verdict == "undecided"
    swapped = [flat("a", 0, {"x": 0.5}, items={"x": (0.0, 1.0)}), flat("b", 0, {"x": 0.5}, items={"x": (1.0, 0.0)})]
    assert one(swapped, 1).verdict == "undecided"


def test_one_and_two_seeds_never_decide_however_large_the_difference():
    for n in (1, 2):
        found = one(two_arms([0.0, 0.001][:n], [0.9, 0.902][:n]), n)
        assert found.verdict == "undecided"
        assert f"{'one seed' if n == 1 else '2 seeds'}" in found.notes[-1]
        assert found.detectable is None


def test_one_seed_with_items_says_what_the_items_say_and_of_whom():
    right = {"a": [1.0] * 40 + [0.0] * 60, "b": [1.0] * 70 + [0.0] * 30}
    runs = [flat(arm, 0, {"x": np.mean(v)}, items={"x": v}) for arm, v in right.items()]
    found = one(runs, 1)
    assert found.verdict == "undecided"
    assert "these two models differ on their 100 items" in found.notes[-1]
    models = one(runs, 1, Design(about="models"))
    assert (models.verdict, models.basis) == ("better", "items")
    assert models.p == pytest.approx(stats.binomtest(30, 30, 0.5).pvalue)
    with pytest.raises(Refused, match="exactly one seed"):
        one(runs, 2, Design(about="models"))


def test_failed_and_nan_runs_are_named_and_never_make_their_arm_better():
    values = ([0.5, 0.51, 0.5, 0.49, 0.5], [0.9, 0.91, math.nan, 0.9, 0.9])
    nan = one(two_arms(*values))
    assert nan.verdict == "undecided"
    assert nan.seeds == (0, 1, 3, 4)
    assert "b gave no number at seed 2" in nan.notes
    assert "b lost runs" in nan.notes[-1]
    failed = one(
        [r for r in two_arms(*values) if not (r.arm == "b" and r.seed == 2)],
        failures=[Failure(arm="b", seed=2, why="out of memory")],
    )
    assert failed.verdict == "undecided"
    assert one(two_arms(*values, better=-1)).verdict == "worse"
    absent = one([r for r in two_arms(*values) if r.seed != 2])
    assert absent.verdict == "better"
    assert absent.notes == ()


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_reading_that_an_arm_lacks_is_not_measured_and_not_counted(lacking: str):
    def runs(extra: bool) -> list[RunResult]:
        return [
            flat(arm, s, {"x": 0.5 + 0.01 * s + shift} | ({"y": 1.0 + s} if extra and arm != lacking else {}))
            for arm, shift in (("a", 0.0), ("b", 0.1 + 0.001))
            for s in range(4)
        ]

    with_it, without = (compare(runs(extra), ("a", "b"), range(4)) for extra in (True, False))
    y = with_it.of("y", "b")
    assert y is not None
    assert (y.verdict, y.notes, y.difference, y.p_corrected) == (
        "unmeasured",
        (f"not measured in {lacking}",),
        None,
        None,
    )
    assert with_it.family == without.family == 1
    assert with_it.of("x", "b") == without.of("x", "b")


def test_lost_runs_are_not_taken_for_a_reading_that_was_not_asked_for():
    runs = [flat("a", s, {"x": float(s)}) for s in range(3)]
    failures = [Failure(arm="b", seed=s, why="out of memory") for s in range(3)]
    assert one(runs, 3, failures=failures).verdict == "undecided"
    partly = [*runs, flat("b", 0, {"x": 1.0}), flat("b", 1, {})]
    assert one(partly, 3).notes[0] == "b gave no number at seed 1"


def test_no_common_seed_and_missing_readings():
    found = one([flat("a", 0, {"x": 1.0}), flat("b", 1, {"x": 1.0})], 2)
    assert (found.verdict, found.difference) == ("undecided", None)
    lost = [flat("a", s, {"x": 1.0 + s}) for s in range(3)] + [flat("b", s, {}) for s in range(3)]
    assert one(lost, 3).notes == ("not measured in b",)


def test_a_cost_that_no_seed_changes_is_known_not_tested():
    known = one(two_arms([800.0] * 3, [100.0] * 3, better=-1, axis="cost"), 3)
    assert (known.verdict, known.basis, known.p) == ("better", "constant", None)
    _, family = differences(two_arms([800.0] * 3, [100.0] * 3, axis="cost"), ("a", "b"), range(3))
    assert family == 0
    quality = one(two_arms([0.70] * 4, [0.71] * 4), 4)
    assert "seeds tell nothing about luck" in quality.notes[0]


def test_items_widen_the_interval_and_bad_items_are_told():
    runs = runs_of(("nll", "dft"))
    with_items = {d.reading.name: d for d in differences(runs, ("nll", "dft"), range(5))[0]}["exact match"]
    bare = [flat(r.arm, r.seed, {"exact match": r.readings["exact match"].value}) for r in runs]
    without = differences(bare, ("nll", "dft"), range(5))[0][0]
    assert (with_items.basis, with_items.items, without.basis) == ("seeds and items", 200, "seeds")
    assert with_items.high is not None
    assert with_items.low is not None
    assert without.high is not None
    assert without.low is not None
    assert with_items.high - with_items.low >= without.high - without.low
    odd = [flat(a, s, {"x": 0.5}, items={"x": [0.0, 1.0] * (1 + (a == "b"))}) for a in "ab" for s in range(3)]
    assert "number of items differs" in one(odd, 3).notes[0]
    not_mean = [flat(a, s, {"x": 0.9 + 0.01 * s}, items={"x": [0.0, 1.0]}) for a in "ab" for s in range(3)]
    assert "not the mean of its items" in one(not_mean, 3).notes[0]


def test_all_pairs_and_the_family_they_are_corrected_for():
    runs = [flat(a, s, {"x": s + 0.0, "y": 1.0}) for a in "abc" for s in range(3)]
    found, family = differences(runs, "abc", range(3), Design(pairs="all"))
    assert [(d.baseline, d.arm) for d in found[:3]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert family == 6
    with pytest.raises(ConfigError, match="alpha requires"):
        Design(alpha=0.0)


def test_readings_named_first_have_half_of_the_chance_of_error_to_themselves():
    names = [f"x{i}" for i in range(40)]
    runs = [flat(a, s, dict.fromkeys(names, s + (a == "b") * (0.3 + 0.05 * s) + 0.0)) for a in "ab" for s in range(5)]
    plain, first = (
        {d.reading.name: d for d in differences(runs, "ab", range(5), Design(first=f))[0]} for f in ((), ("x3",))
    )
    raw = plain["x3"].p
    assert raw is not None
    assert plain["x3"].p_corrected == pytest.approx(min(1.0, 40 * raw))
    assert first["x3"].p_corrected == pytest.approx(min(1.0, 2 * raw))
    assert first["x4"].p_corrected == pytest.approx(min(1.0, 2 * 39 * raw))
    assert all(d.p_corrected is not None and (d.verdict == "better") == (d.p_corrected <= 0.05) for d in first.values())
    with pytest.raises(Refused, match="one that was taken: x0"):
        differences(runs, "ab", range(5), Design(first=("y",)))


@pytest.mark.parametrize("first", [("r0",), ("r0", "r1", "r2")])
def test_a_half_for_the_first_keeps_the_chance_of_any_false_verdict(first):
    wrong, draws, g = 0, 300, np.random.default_rng(5)
    for _ in range(draws):
        values = g.normal(size=(2, 5, 8))
        runs = [flat(a, s, {f"r{i}": values[k, s, i] for i in range(8)}) for k, a in enumerate("ab") for s in range(5)]
        wrong += any(
            d.verdict in ("better", "worse") for d in differences(runs, "ab", range(5), Design(first=first))[0]
        )
    assert wrong <= stats.binom.ppf(1 - 1e-4, draws, 0.05)


def test_runs_that_disagree_on_a_reading_are_refused():
    with pytest.raises(Refused, match="one axis, unit and direction"):
        differences([flat("a", 0, {"x": 1.0}, better=1), flat("b", 0, {"x": 1.0}, better=-1)], ("a", "b"), (0,))


def test_a_a_through_the_whole_path_is_undecided_at_the_stated_rate():
    """The same recipe under three names, items and all: 300 comparisons of 12 tested readings each."""
    wrong, draws = 0, 300
    for k in range(draws):
        runs = [run_of(a, 1000 * k + s, {}, items=24, recipe={}) for s in range(4) for a in ("x", "y", "z")]
        found, family = differences(runs, ("x", "y", "z"), range(1000 * k, 1000 * k + 4))
        assert family == 12
        wrong += any(d.verdict in ("better", "worse") for d in found)
    assert wrong <= stats.binom.ppf(1 - 1e-4, draws, 0.05)


def test_summary_holds_everything_and_names_what_is_missing():
    runs = [r for r in runs_of() if (r.arm, r.seed) not in {("dft", 4), ("nll", 3)}]
    c = compare(
        runs,
        ("nll", "dft", "nll + neftune"),
        range(5),
        failures=[Failure(arm="dft", seed=4, why="out of memory")],
        command="luthier compare",
    )
    assert isinstance(c, Comparison)
    assert c.absent == (("nll", 3),)
    assert [f.why for f in c.failures] == ["out of memory"]
    assert c.of("exact match", "dft").verdict == "undecided"  # type: ignore[union-attr]
    assert next(iter(c.axes())) == "quality"
    assert set(c.recipes) == set(c.arms)
    assert len(c.cost["nll"]["seconds"]) == 4
    assert c.samples[2].outputs["dft"][0].startswith("<script>")
    assert c.notes[0].startswith("With 4 seeds")
    with pytest.raises(ConfigError, match="two or more different arms"):
        compare(runs, ("nll",), range(5))
    with pytest.raises(ConfigError, match="different seeds"):
        compare(runs, ("nll", "dft"), (0, 0))


def test_summary_warns_of_few_seeds_and_mixed_versions():
    runs = runs_of(("nll", "dft"), range(3))
    other = RunResult(arm="dft", seed=3, versions={"torch": "2.6.0"})
    assert "3.1%" in compare(runs, ("nll", "dft"), range(3)).notes[0]
    assert any("different torch" in n for n in compare([*runs, other], ("nll", "dft"), range(4)).notes)
    assert "three seeds at least" in compare(runs, ("nll", "dft"), (0,)).notes[0]
    assert "three seeds at least" in compare(runs, ("nll", "dft"), (0, 1)).notes[0]
