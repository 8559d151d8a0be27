from __future__ import annotations

import itertools
import math

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.select.kcenter import KCenter, farthest_first
from tests.data_select.contract import context, pool
from tests.tolerance import same

F64 = torch.float64


def points(n=12, seed=0, d=2):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loop(x, k, start):
    """Slow reference: every distance anew at every step."""
    chosen = list(start)

    def far(i):
        return min(math.dist(x[i].tolist(), x[c].tolist()) for c in chosen)

    while len(chosen) < k:
        chosen.append(max((i for i in range(len(x)) if i not in chosen), key=lambda i: (far(i), -i)))
    return chosen, [far(i) for i in range(len(x))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", [[3], [5, 0, 9]])
def test_equals_the_loop(seed, start):
    x = points(seed=seed)
    got = farthest_first(x, 7, start)
    chosen, distance = loop(x, 7, start)
    assert got.index.tolist() == chosen
    same(got.distance, torch.tensor(distance, dtype=F64))


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_at_most_twice_the_best(seed):
    x = points(9, seed)
    best = min(float(torch.cdist(x, x[list(c)]).amin(1).max()) for c in itertools.combinations(range(9), 3))
    assert best <= float(farthest_first(x, 3).distance.max()) <= 2 * best + 1e-12


def test_exact_copies_of_kept_rows_come_last():
    x = points(6)
    x = torch.cat([x, x[:3]])
    order = farthest_first(x, 9).index.tolist()
    assert {i % 6 for i in order[:6]} == set(range(6))
    assert sorted(order) == list(range(9))
    assert float(farthest_first(x, 6).distance.max()) == 0.0


def test_the_first_row_is_the_nearest_to_the_mean_and_given_ones_stay():
    x = torch.tensor([[0.0], [4.0], [6.0], [10.0]], dtype=F64)
    assert farthest_first(x, 1).index.tolist() == [1]
    assert farthest_first(x, 1, [2, 3]).index.tolist() == [2, 3]


def test_rows_by_lot_come_first_and_do_not_depend_on_the_order_of_rows():
    rows = pool()
    few, all_drawn = KCenter(keep=4, drawn=3)(rows, context(7)), KCenter(keep=3, drawn=3)(rows, context(7))
    assert set(all_drawn.index.tolist()) < set(few.index.tolist())
    assert KCenter(keep=3, drawn=9)(rows, context(7)).index.tolist() == all_drawn.index.tolist()
    other = KCenter(keep=4, drawn=3)(rows[::-1], context(7))
    assert {11 - i for i in other.index.tolist()} == set(few.index.tolist())
    assert few.reason.startswith("4 of 12 rows farthest apart, 3 of them by lot")


def test_what_is_embedded_can_be_told():
    rows = [{"prompt": "a", "response": "x"}, {"prompt": "b", "response": "x"}, {"prompt": "a", "response": "y"}]

    def seen(text):
        asked: list[str] = []
        KCenter(keep=1, text=text)(rows, DataContext(embed=lambda t: asked.extend(t) or torch.rand(len(t), 2)))
        return asked

    assert seen("both") == ["a\nx", "b\nx", "a\ny"]
    assert seen("prompt") == ["a", "b", "a"]
    assert seen("response") == ["x", "x", "y"]
    plain = [{"text": "t"}]
    KCenter(keep=1)(plain, DataContext(embed=lambda t: asked_once(t)))


def asked_once(texts):
    assert texts == ["t"]
    return torch.ones(1, 2)


def test_faults_are_named():
    rows = pool()
    with pytest.raises(DataError, match="kcenter requires an embedder of texts; got none"):
        KCenter(keep=2)(rows, DataContext())
    with pytest.raises(DataError, match=r"one finite vector for each of 12 rows; got \(3, 2\)"):
        KCenter(keep=2)(rows, DataContext(embed=lambda t: torch.ones(3, 2)))
    with pytest.raises(DataError, match="one finite vector"):
        KCenter(keep=2)(rows, DataContext(embed=lambda t: torch.full((12, 2), math.nan)))
    with pytest.raises(DataError, match="row 1 with prompt"):
        KCenter(keep=1)([{"prompt": "p"}], context())
    with pytest.raises(ValueError, match=r"different first centres from 0 to 11; got \[1, 1\]"):
        farthest_first(points(), 4, [1, 1])
