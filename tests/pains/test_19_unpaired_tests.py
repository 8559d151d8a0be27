"""lm-evaluation-harness #3831, #3868, #4017: an unpaired test on paired items; intervals and correction asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from luthier.compare.results import RunResult
from luthier.compare.summary import compare
from luthier.core.protocols import Reading


def arm(name: str, seed: int, right: np.ndarray) -> RunResult:
    items = tuple(right.astype(float).tolist())
    return RunResult(arm=name, seed=seed, readings={"exact": Reading("exact", float(right.mean()), items, 1, "", "quality")},
                     curves={}, samples=[], cost={}, versions={}, recipe={"name": name})  # fmt: skip


def test_a_gain_in_every_seed_is_seen_although_the_unpaired_test_sees_nothing():
    """The luck of a seed moves both arms by twenty answers; the second arm always gives about twenty more, and loses none."""
    luck, gain = (100, 120, 140, 160, 180), (18, 20, 21, 19, 22)
    first, second = ([np.arange(400) < n + more for n, more in zip(luck, g, strict=True)] for g in ((0,) * 5, gain))
    runs = [arm(name, s, right[s]) for name, right in (("a", first), ("b", second)) for s in range(5)]
    found = compare(runs, ["a", "b"], range(5)).of("exact", "b")
    assert found is not None and found.p is not None and found.low is not None
    assert ttest_ind([r.mean() for r in first], [r.mean() for r in second]).pvalue > 0.3
    assert found.p < 1e-3
    assert found.difference == pytest.approx(np.mean(gain) / 400)
    assert found.low > 0 and found.verdict == "better"


def test_of_many_readings_that_all_differ_by_luck_none_is_called_decided():
    rng = np.random.default_rng(0)

    def many(name: str, seed: int) -> RunResult:
        values = {f"r{i}": Reading(f"r{i}", float(rng.normal()), (), 1, "", "quality") for i in range(40)}
        return RunResult(
            arm=name, seed=seed, readings=values, curves={}, samples=[], cost={}, versions={}, recipe={"n": name}
        )

    made = compare([many(n, s) for s in range(4) for n in "ab"], ["a", "b"], range(4))
    raw = [d.p for d in made.differences if d.p is not None]
    assert min(raw) < 0.05
    assert not [d for d in made.differences if d.verdict in ("better", "worse")]
