from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtr

from luthier.compare.statistics import (
    Paired,
    exact_share_interval,
    grid_step,
    holm,
    item_standard_error,
    mcnemar,
    paired,
    seed_standard_error,
    two_valued,
)


def binomial_ceiling(level: float, draws: int) -> float:
    """A rate that a procedure of true level `level` exceeds in `draws` draws once in ten thousand times."""
    return float(stats.binom.ppf(1 - 1e-4, draws, level)) / draws


# ------------------------------------------------------------------ against references
def test_continuous_values_give_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 12):
        a, b = rng.normal(size=(2, n))
        got, want = paired(a, b), stats.ttest_rel(b, a)
        interval = want.confidence_interval(0.95)
        assert got.p_value() == pytest.approx(want.pvalue, rel=1e-6)
        assert (got.mean - got.half_width(), got.mean + got.half_width()) == pytest.approx(
            (interval.low, interval.high), rel=1e-6
        )


def test_one_seed_gives_the_paired_t_test_over_items():
    d = np.random.default_rng(1).normal(0.1, 1, (1, 60))
    got = paired(np.array([0.0]), d.mean(1), d)
    assert got.p_value() == pytest.approx(stats.ttest_1samp(d[0], 0).pvalue, rel=1e-6)
    assert got.se == pytest.approx(stats.sem(d[0]))


def test_item_component_equals_the_loop_over_the_crossed_layout():
    d = np.random.default_rng(2).normal(size=(3, 4)) + 3 * np.arange(4)
    n, m = d.shape
    grand = sum(d[s, i] for s in range(n) for i in range(m)) / (n * m)
    rows = [sum(d[s]) / m for s in range(n)]
    columns = [sum(d[:, i]) / n for i in range(m)]
    items = n * sum((c - grand) ** 2 for c in columns) / (m - 1)
    noise = sum((d[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(n) for i in range(m)) / ((n - 1) * (m - 1))
    assert item_standard_error(d) == pytest.approx(math.sqrt((items - noise) / (n * m)), rel=1e-12)


def test_two_level_p_value_is_the_level_at_which_the_interval_touches_zero():
    r = Paired(0.1, 4, 0.03, 40, 0.02)
    assert r.half_width(1 - r.p_value()) == pytest.approx(0.1, rel=1e-9)
    assert r.half_width(0.95) ** 2 == pytest.approx(
        (stats.t.ppf(0.975, 3) * 0.03) ** 2 + (stats.t.ppf(0.975, 39) * 0.02) ** 2
    )


def test_holm_equals_the_definition_and_its_levels_agree_with_it():
    rng = np.random.default_rng(3)
    for m in (0, 1, 2, 7):
        p = rng.random(m) ** 4
        corrected, tested = holm(p, 0.05)
        for k in range(m):
            want = max([min(1.0, (m - rank) * p[j]) for rank, j in enumerate(np.argsort(p)) if p[j] <= p[k]])
            assert corrected[k] == pytest.approx(want)
            assert (corrected[k] <= 0.05) == (p[k] <= tested[k])


def test_mcnemar_is_the_binomial_test_and_its_interval_agrees():
    for wins, losses, ties in ((6, 0, 10), (5, 0, 3), (9, 3, 0), (3, 3, 4), (0, 8, 1), (0, 0, 5), (40, 22, 100)):
        d = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
        want = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
        low, high = exact_share_interval(d)
        assert mcnemar(d) == pytest.approx(want)
        assert (low > 0 or high < 0) == (want < 0.05)
        assert low <= (wins - losses) / len(d) <= high


def test_mcnemar_gives_the_known_worked_example_of_paired_against_unpaired():
    """Two models right on 80 and 70 of 100 items: unpaired nothing, paired (14 against 4 unequal items) clear."""
    d = np.repeat([1.0, -1.0, 0.0], [14, 4, 82])
    unpaired = stats.ttest_ind(np.repeat([1.0, 0.0], [80, 20]), np.repeat([1.0, 0.0], [70, 30])).pvalue
    assert mcnemar(d) < 0.05 < unpaired
    assert two_valued(d)
    assert not two_valued([0.5, 1.0])


# ------------------------------------------------------------------------------- grid
def test_grid_step_finds_the_step_of_an_accuracy_and_none_in_continuous_values():
    rng = np.random.default_rng(4)
    for n in (10, 73, 200, 1000):
        values = np.append(rng.integers(0, n, 12), [0, 1]) / n
        assert float(grid_step(values)) == pytest.approx(1 / n, rel=1e-3)
        assert float(grid_step(values.astype(np.float32))) == pytest.approx(1 / n, rel=1e-3)
    assert (grid_step(rng.normal(size=(500, 6))) < 1e-2).mean() > 0.99
    assert float(grid_step([0.4, 0.4])) == 0


def test_equal_differences_never_give_an_interval_of_zero_width():
    r = paired([0.70, 0.70, 0.70], [0.71, 0.71, 0.71])
    assert r.half_width() > 0.009
    assert r.p_value() > 2 * 0.25**3


# ---------------------------------------------------------- false verdicts under A/A draws
def _draws(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    seeds = rng.normal(size=(shape[0], 1, *shape[2:]))
    match name:
        case "normal":
            return seeds + rng.normal(size=shape)
        case "skewed":
            return np.exp(1.2 * rng.normal(size=shape)) + seeds
        case "heavy tails":
            return rng.standard_t(2, size=shape)
        case "accuracy of 20":
            return rng.binomial(20, 0.9, shape) / 20
        case "accuracy of 200, seed matters":
            return rng.binomial(200, 1 / (1 + np.exp(-seeds)), shape) / 200
        case "one or the other":
            return rng.binomial(1, 0.5, shape).astype(float)
        case _:
            raise AssertionError(name)


NAMES = ("normal", "skewed", "heavy tails", "accuracy of 20", "accuracy of 200, seed matters", "one or the other")


@pytest.mark.parametrize("seeds", [3, 4, 5, 7, 10])
def test_same_recipe_under_several_names_gets_false_verdicts_at_most_at_the_level(seeds: int):
    """3 arms x 4 readings, equal in truth: any verdict is false. 3,000 draws each, the whole family counted."""
    rng, draws = np.random.default_rng(seeds), 3000
    for name in NAMES:
        v = _draws(name, (draws, 3, 4, seeds), rng)
        base, others = np.broadcast_to(v[:, :1], v[:, 1:].shape), v[:, 1:]
        se, mean = seed_standard_error(base, others), (others - base).mean(-1)
        p = np.where(mean == 0, 1.0, 2 * stdtr(seeds - 1, -np.abs(mean) / np.where(mean == 0, 1.0, se))).reshape(
            draws, -1
        )
        false = float(np.mean([(holm(row)[0] <= 0.05).any() for row in p]))
        assert false <= binomial_ceiling(0.05, draws), f"{name}: {false}"


@pytest.mark.parametrize(("seeds", "items", "share"), [(3, 20, 0.5), (5, 32, 0.98), (5, 200, 0.7), (8, 16, 0.2)])
def test_same_recipe_on_right_or_wrong_items_gets_false_verdicts_at_most_at_the_level(
    seeds: int, items: int, share: float
):
    rng, draws = np.random.default_rng(items), 2000
    easy = rng.beta(8 * share, 8 * (1 - share), (draws, 1, 1, items))
    right = (rng.random((draws, 2, seeds, items)) < easy).astype(float)
    p = [paired(a.mean(1), b.mean(1), b - a).p_value() for a, b in right]
    assert float((np.array(p) <= 0.05).mean()) <= binomial_ceiling(0.05, draws)


def test_the_grid_of_right_or_wrong_items_is_one_item_wide():
    """All right at every seed against all wrong: the values alone, 0 and 1, would give a grid of 1."""
    none, every = np.zeros(5), np.ones(5)
    got = paired(none, every, np.ones((5, 32)))
    assert got.seed_se == pytest.approx(1 / 32 / math.sqrt(6 * 5))
    assert got.p_value() < 1e-6
    assert paired(none, every).p_value() > 0.004
    assert paired(none, every / 2, np.ones((5, 32))).seed_se == paired(none, every / 2).seed_se  # not the items' mean


def test_vectorised_standard_error_is_that_of_paired():
    rng = np.random.default_rng(5)
    a, b = rng.binomial(20, 0.8, (2, 50, 5)) / 20
    assert seed_standard_error(a, b) == pytest.approx([paired(x, y).seed_se for x, y in zip(a, b)])


def test_limit_of_few_seeds_a_reading_of_two_tight_levels_exceeds_the_level():
    """What no method can tell apart: all runs of one arm fell on one level, all of the other on the other one.

    The chance, 2 / 4^n at most, is stated by the report at 3 and 4 seeds; at 5 it is harmless.
    """
    rng, draws = np.random.default_rng(6), 20000
    for n in (3, 5):
        a, b = rng.binomial(1, 0.5, (2, draws, n)) + 1e-4 * rng.normal(size=(2, draws, n))
        p = 2 * stdtr(n - 1, -np.abs((b - a).mean(-1)) / seed_standard_error(a, b))
        tight = float((p < 1e-5).mean())
        assert 0.7 * 2 * 0.25**n < tight <= binomial_ceiling(2 * 0.25**n, draws)


# ------------------------------------------------------------------------ coverage, power
@pytest.mark.parametrize(("seeds", "items"), [(3, 30), (5, 60), (8, 100)])
@pytest.mark.parametrize("sizes", [(0.3, 0.0, 1.0), (0.1, 1.0, 1.0), (0.0, 0.5, 2.0), (1.0, 0.3, 0.5)])
def test_two_level_interval_covers_the_truth(seeds: int, items: int, sizes: tuple[float, float, float]):
    """New seeds and new items each time: the interval of 95 % holds the true difference as often, or more."""
    rng, draws, covered = np.random.default_rng(items), 1200, 0
    by_seed, by_item, rest = sizes
    for _ in range(draws):
        d = (
            0.2
            + by_seed * rng.normal(size=(seeds, 1))
            + by_item * rng.normal(size=items)
            + rest * rng.normal(size=(seeds, items))
        )
        r = paired(np.zeros(seeds), d.mean(1), d)
        covered += abs(r.mean - 0.2) <= r.half_width()
    assert covered / draws >= 1 - binomial_ceiling(0.05, draws)


def test_seeds_alone_would_not_cover_new_items():
    """Why items count: with items that differ and seeds that do not, the interval over seeds misses the truth often."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(400):
        d = rng.normal(size=30) + 0.2 * rng.normal(size=(5, 30))
        r = paired(np.zeros(5), d.mean(1))
        hits += abs(r.mean) <= r.half_width()
    assert hits / 400 < 0.5


def test_power_rises_with_the_effect_and_is_as_stated_at_the_detectable_one():
    rng, draws, n = np.random.default_rng(8), 4000, 5
    truth = Paired(0.0, n, 1 / math.sqrt(n))
    effects = [0.0, 0.5 * truth.detectable(), truth.detectable(), 1.5 * truth.detectable()]
    found = []
    for effect in effects:
        d = effect + rng.normal(size=(draws, n))
        p = 2 * stdtr(n - 1, -np.abs(d.mean(-1)) / seed_standard_error(np.zeros_like(d), d))
        found.append(float((p <= 0.05).mean()))
    assert found == sorted(found)
    assert found[2] == pytest.approx(0.8, abs=0.03)


def test_detectable_effect_shrinks_with_seeds_and_grows_with_the_level():
    sizes = [Paired(0.0, n, 1 / math.sqrt(n)).detectable() for n in (3, 5, 10, 30)]
    assert sizes == sorted(sizes, reverse=True)
    assert Paired(0.0, 5, 0.1).detectable(0.99) > Paired(0.0, 5, 0.1).detectable(0.95)


# ------------------------------------------------------------------------------ edges
def test_edges():
    assert paired([1.0], [2.0]).p_value() == 1.0
    assert paired([1.0], [2.0]).half_width() == math.inf
    assert paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).p_value() == 1.0
    assert Paired(50.0, 3, 1e-9, 30, 1e-9).p_value() < 1e-15
    with pytest.raises(ValueError, match="equally long"):
        paired([1.0], [1.0, 2.0])
