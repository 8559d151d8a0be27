"""cream_pairs: consistency by hand and against scipy, best against worst, means."""

from __future__ import annotations

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.pairs.cream_pairs import CreamPairs, consistency

CTX = DataContext()


def row(now, before):
    return {"prompt": "p", "responses": [f"w{i}" for i in range(len(now))], "scores": now, "scores_before": before}


def test_ends_of_the_scale():
    a = torch.tensor([0.3, 2.0, -1.0, 0.5], dtype=torch.float64)
    for by in ("kendall", "spearman", "ends"):
        assert consistency(a, a.exp(), by).item() == pytest.approx(1)
        assert consistency(a, -a, by).item() == pytest.approx(0)


@pytest.mark.parity
def test_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind(0)
    assert consistency(a, b).item() == pytest.approx((stats.kendalltau(a, b)[0] + 1) / 2)
    assert consistency(a, b, "spearman").item() == pytest.approx((stats.spearmanr(a, b)[0] + 1) / 2)


def test_pairs_are_best_against_worst_and_share_the_mean():
    rows = [row([1.0, 3.0, 2.0], [1.0, 3.0, 2.0]), row([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), row([1.0, 1.0], [0.0, 1.0])]
    each = CreamPairs(over="row")(rows, CTX)
    assert [(r["chosen"], r["rejected"]) for r in each.rows] == [("w1", "w0"), ("w2", "w0")]
    assert [r["consistency"] for r in each.rows] == pytest.approx([1.0, 2 / 3])
    assert "scores_before" not in each.rows[0]
    shared = CreamPairs()(rows, CTX)
    assert [r["consistency"] for r in shared.rows] == pytest.approx([5 / 6, 5 / 6])
    assert shared.notes[-1] == "data.pairs.cream_pairs found a mean consistency of 0.833 (kendall)"
    assert "all scores are equal (first: row 3)" in shared.notes[1]


def test_rows_without_the_earlier_scores_are_named():
    with pytest.raises(
        DataError, match=r"`responses` and as many `scores_before`; got row 1 with prompt, responses, scores"
    ):
        CreamPairs()([{"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 2.0]}], CTX)
