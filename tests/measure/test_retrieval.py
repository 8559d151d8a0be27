from __future__ import annotations

import math

import pytest
import torch

from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.measure.embed.retrieval import Retrieval, ndcg, right_answers
from tests.tolerance import same

F64 = torch.float64


class Vectors:
    """Texts are names of vectors; a layer halves nothing but turns the sign."""

    def __init__(self, table):
        self.table = table

    def embed(self, texts, layer=0):
        return torch.stack([self.table[t] for t in texts]) * (-1 if layer else 1)


def read(table, rows, **settings):
    return {r.name: r for r in Retrieval(**settings)(Vectors(table), rows, MeasureContext())}


def test_ndcg_equals_the_loop():
    g = torch.Generator().manual_seed(0)
    scores, right = torch.randn(6, 9, generator=g), torch.rand(6, 9, generator=g) < 0.3
    right[:, 0] = True
    for k in (1, 4, 20):
        want = []
        for i in range(6):
            order = sorted(range(9), key=lambda j: -scores[i, j])
            gain = sum(1 / math.log2(r + 2) for r, j in enumerate(order[:k]) if right[i, j])
            want.append(gain / sum(1 / math.log2(r + 2) for r in range(min(k, int(right[i].sum())))))
        same(ndcg(scores, right, k), torch.tensor(want, dtype=F64))


def test_nearest_pairs_score_one_and_swapped_ones_less():
    table = {f"{k}{i}": torch.eye(3)[i] for i in range(3) for k in "qp"}
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(3)]
    got = read(table, rows)
    assert (got["recall_at_1"].value, got["ndcg_at_10"].value) == (1.0, 1.0)
    swapped = [{"query": f"q{i}", "positive": f"p{(i + 1) % 3}"} for i in range(3)]
    assert read(table, swapped)["recall_at_1"].items == (0.0, 0.0, 0.0)
    assert read(table, rows, dim=1)["recall_at_1/dim1"].items[0] == 1.0
    assert "ndcg_at_10/layer2/dim1" in read(table, rows, layer=2, dim=1)


def test_same_labels_and_same_texts_are_right_too():
    rows = [{"query": "a", "positive": "x", "label": 1}, {"query": "b", "positive": "y", "label": 1},
            {"query": "c", "positive": "x", "label": 2}]  # fmt: skip
    assert right_answers(rows).tolist() == [[True, True, True], [True, True, False], [True, False, True]]
    plain = [{k: r[k] for k in ("query", "positive")} for r in rows]
    assert right_answers(plain).tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_rows_and_subjects_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="at least 2 rows"):
        read({}, [])
    with pytest.raises(DataError, match="'positive'"):
        read({}, [{"query": "a"}] * 2)
    with pytest.raises(DataError, match="text encoder"):
        list(Retrieval()(object(), [{"query": "a", "positive": "b"}] * 2, MeasureContext()))
