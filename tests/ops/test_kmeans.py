from __future__ import annotations

import itertools

import pytest
import torch

from luthier.ops.kmeans import assign, spherical_kmeans
from tests.tolerance import same

F64 = torch.float64


def bundles(seed=0, sizes=(12, 5, 3)):
    """Directions in tight bundles around axes, in random order, and the bundle of each."""
    g = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.eye(6, dtype=F64)[label] + 0.05 * torch.randn(len(label), 6, generator=g, dtype=F64)
    order = torch.randperm(len(label), generator=g)
    return x[order], label[order]


def one_of_each(label):
    return torch.tensor([int((label == c).nonzero()[0]) for c in range(3)])


def test_it_finds_bundles_whatever_their_length():
    x, truth = bundles()
    got = spherical_kmeans(x * torch.linspace(0.1, 9, 20, dtype=F64)[:, None], one_of_each(truth))
    assert got.sizes.sort().values.tolist() == [3, 5, 12]
    for c in range(3):
        assert truth[got.label == c].unique().numel() == 1
    same(got.centres.norm(dim=1), torch.ones(3, dtype=F64))


def test_assignment_equals_the_loop():
    x, _ = bundles(1)
    centres = x[[0, 4, 9]]
    got = assign(x, centres, limit=7)
    for i, row in enumerate(x):
        values = [float(row @ c / (row.norm() * c.norm())) for c in centres]
        assert int(got.label[i]) == max(range(3), key=lambda c: values[c])
        assert float(got.cosine[i]) == pytest.approx(max(values), rel=1e-9)


def test_the_sum_of_cosines_never_falls():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    values = [float(spherical_kmeans(x, torch.arange(7), iterations=i).cosine.sum()) for i in range(8)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


def test_permuted_rows_give_permuted_clusters():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3), dtype=F64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    start = torch.tensor([3, 17, 30, 8, 22])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(40))
    one, other = spherical_kmeans(x, start), spherical_kmeans(x[order], place[start])
    assert torch.equal(one.label[order], other.label)


def test_every_row_a_cluster_copies_and_faults():
    x, _ = bundles()
    assert spherical_kmeans(x, torch.arange(20)).sizes.tolist() == [1] * 20
    copies = spherical_kmeans(x[:1].repeat(5, 1), torch.tensor([0, 3]))
    assert copies.sizes.tolist() == [5, 0]
    assert copies.cosine.tolist() == pytest.approx([1.0] * 5)
    for start in ([], [20], [-1]):
        with pytest.raises(ValueError, match="numbers of rows to start from"):
            spherical_kmeans(x, torch.tensor(start, dtype=torch.long))
