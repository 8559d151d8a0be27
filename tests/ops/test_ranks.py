"""Rank agreement: loops, scipy, ties."""

from __future__ import annotations

import pytest
import torch

from luthier.ops.ranks import kendall, ranks, same_ends, spearman

F64 = torch.float64


def drawn(n, seed):
    return torch.randn(2, 4, n, dtype=F64, generator=torch.Generator().manual_seed(seed)).unbind(0)


def test_kendall_equals_the_loop_and_ties_count_neither_way():
    a, b = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=F64), torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=F64)
    total = 0
    for i in range(4):
        for j in range(i):
            total += int(((a[i] - a[j]) * (b[i] - b[j])).sign())
    assert kendall(a, b).item() == pytest.approx(total / 6)


@pytest.mark.parity
@pytest.mark.parametrize("n", [2, 3, 8])
def test_equal_scipy_where_nothing_is_tied(n):
    stats = pytest.importorskip("scipy.stats")
    a, b = drawn(n, n)
    for i in range(4):
        assert kendall(a, b)[i].item() == pytest.approx(stats.kendalltau(a[i], b[i])[0])
        assert spearman(a, b)[i].item() == pytest.approx(stats.spearmanr(a[i], b[i])[0])


@pytest.mark.parity
def test_ties_share_a_rank_as_in_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = torch.tensor([3.0, 1.0, 3.0, 3.0, 0.0], dtype=F64)
    y = torch.tensor([1.0, 1.0, 2.0, 5.0, 0.0], dtype=F64)
    assert ranks(x).tolist() == stats.rankdata(x).tolist()
    assert spearman(x, y).item() == pytest.approx(stats.spearmanr(x, y)[0])
    assert spearman(torch.zeros(3), torch.arange(3.0)).item() == 0


def test_equal_and_opposite_rankings():
    a, _ = drawn(6, 0)
    for of in (kendall, spearman):
        torch.testing.assert_close(of(a, 3 * a + 1), torch.ones(4, dtype=F64))
        torch.testing.assert_close(of(a, -a), -torch.ones(4, dtype=F64))
    assert same_ends(a, a.exp()).tolist() == [1] * 4
    assert same_ends(a, -a).tolist() == [0] * 4
    assert same_ends(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([5.0, 1.0, 9.0])).item() == 0
