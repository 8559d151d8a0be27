from __future__ import annotations

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.select.prismatic import Prismatic, prismatic, smaller
from luthier.data.select.random import Random, draws
from luthier.ops.kmeans import assign, spherical_kmeans
from tests.data_select.contract import pool

F64 = torch.float64
N = 120


def bundles(sizes=(80, 30, 10)):
    """Gradients in tight bundles around axes, in random order, and the bundle of each."""
    g = torch.Generator().manual_seed(0)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[torch.randperm(N, generator=g)]
    return torch.eye(5, dtype=F64)[label] + 0.02 * torch.randn(N, 5, generator=g, dtype=F64), label


ROWS = [{"prompt": "p", "response": str(i), "at": i} for i in range(N)]


def context(gradients):
    return DataContext(gradients=lambda rows: gradients[[r["at"] for r in rows]])


def loop(x, order, k, rounds, share, sparse):
    """Slow reference of the rounds, row by row."""
    chosen, per = order[: -(-k // (rounds + 1))].tolist(), k / (rounds + 1)
    for turn in range(1, rounds + 1):
        parts = max(1, int(share * len(chosen)))
        found = spherical_kmeans(x[chosen], torch.arange(parts))
        sizes = [found.label.tolist().count(c) for c in range(parts)]
        threshold = sorted(sizes)[min(parts - 1, int(parts * sparse))]
        allowed = [c for c in range(parts) if sizes[c] < threshold] or list(range(parts))
        for i in order.tolist():
            if i not in chosen and len(chosen) < per * (turn + 1) - 1e-9:
                cosines = [float(x[i] @ c / x[i].norm()) for c in found.centres]
                if max(range(parts), key=lambda c: cosines[c]) in allowed:
                    chosen.append(i)
    return (chosen + [i for i in order.tolist() if i not in chosen])[:k]


@pytest.mark.parametrize(("k", "rounds", "share", "sparse"), [(40, 3, 0.1, 0.5), (33, 2, 0.3, 0.4), (118, 5, 0.1, 0.9)])
def test_equals_the_loop(k, rounds, share, sparse):
    x, _ = bundles()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    assert prismatic(x, order, k, rounds, share, sparse).tolist() == loop(x, order, k, rounds, share, sparse)


def test_a_round_adds_rows_of_smaller_clusters_only():
    x, label = bundles()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    got = prismatic(x, order, 40, rounds=1, clusters=0.2)
    found = spherical_kmeans(x[order[:20]], torch.arange(4))
    wanted = smaller(found.label, 4, 0.5)
    added = got[20:]
    inside = wanted[assign(x[added], found.centres).label]
    left = wanted[assign(x[order[~torch.isin(order, got)]], found.centres).label]
    assert inside.all() or not left.any()
    by_lot, grown = (label[rows].bincount(minlength=3) for rows in (order[:40], got))
    assert grown[2] >= by_lot[2]


def test_smaller_clusters_are_told_as_in_the_released_code():
    label = torch.tensor([0] * 5 + [1] * 3 + [2] * 3 + [3])
    assert smaller(label, 4, 0.5).tolist() == [False, False, False, True]  # sizes 1 3 3 5: below the third
    assert smaller(label, 4, 0.75).tolist() == [False, True, True, True]
    assert smaller(torch.tensor([0, 1]), 2, 0.5).tolist() == [True, True]
    assert smaller(torch.tensor([0, 0, 1]), 2, 1.0).tolist() == [False, True]


def test_no_rounds_are_rows_by_lot_and_lengths_do_not_matter():
    x, _ = bundles()
    want = Random(keep=30)(ROWS, DataContext()).index
    assert torch.equal(Prismatic(keep=30, rounds=0)(ROWS, context(x)).index, want)
    order = draws(ROWS, 0).argsort(descending=True)
    long = x * torch.linspace(0.01, 30, N, dtype=F64)[:, None]
    assert torch.equal(prismatic(long, order, 50), prismatic(x, order, 50))


def test_scores_tell_the_order_of_choice():
    x, _ = bundles()
    got = Prismatic(keep=30)(ROWS, context(x))
    index = prismatic(x, draws(ROWS, 0).argsort(descending=True), 30)
    assert got.score.argsort(descending=True)[:30].tolist() == index.tolist()
    assert (got.score == 0).sum() == 90


def test_faults_are_named():
    with pytest.raises(DataError, match="prismatic requires gradients of rows by a model; got none"):
        Prismatic(keep=2)(pool(), DataContext())
    for bad in (torch.ones(3, 2), torch.full((12, 2), torch.nan)):
        with pytest.raises(DataError, match="one finite gradient for each of 12 rows"):
            Prismatic(keep=2)(pool(), DataContext(gradients=lambda rows, bad=bad: bad))
