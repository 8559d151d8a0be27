"""shrink_intruders: singular values before and after, and where it must leave the tuned weights alone."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import Refused
from luthier.merge.executor import merge_tensors
from luthier.merge.scale.shrink_intruders import ShrinkIntruders, shrink_intruders
from tests.merge.tiny import equal, near, state
from tests.tolerance import same

F64 = torch.float64


def intruded(seed: int = 0, d: int = 32):
    """(base with values d, ..., 1, tuned with one more direction of strength 500 that is spread over all others)."""
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(d, d, generator=g, dtype=F64)).Q for _ in "ab")
    base = (left * torch.arange(d, 0, -1, dtype=F64)) @ right.T
    return base, base + 500 * torch.outer(left.sum(1), right.sum(1)) / d


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.9])
def test_only_the_intruders_value_is_scaled(scale):
    base, tuned = intruded()
    before = torch.linalg.svd(tuned)
    got = shrink_intruders(base, tuned, scale)
    value = before.S.clone()
    value[0] *= scale
    same(torch.linalg.svdvals(got), value.sort(descending=True).values)
    want = torch.zeros_like(tuned)
    for j in range(len(value)):
        want += value[j] * torch.outer(before.U[:, j], before.Vh[j])
    same(got, want)


def test_scale_one_or_no_intruder_is_the_tuned_matrix_itself():
    base, tuned = intruded()
    assert torch.equal(shrink_intruders(base, tuned, 1.0), tuned)
    assert torch.equal(shrink_intruders(base, 3 * base, 0.0), 3 * base)
    assert torch.equal(shrink_intruders(base, base, 0.0, threshold=1.0), base)


def test_in_a_merge_only_matrices_change():
    base = state(0)
    tuned = near(base, 1, size=1.0)
    assert equal(merge_tensors(ShrinkIntruders(scale=1.0), base, [tuned]), tuned)
    got = merge_tensors(ShrinkIntruders(scale=0.0, threshold=1.0), base, [tuned])
    for name in tuned:
        matrix = "_proj.weight" in name
        assert torch.equal(got[name], tuned[name]) != matrix, name
        if matrix:  # all directions count as new and go
            assert got[name].abs().max() < 1e-5


def test_faults():
    base = state(0)
    with pytest.raises(Refused, match="1 model beside the base; got 2"):
        merge_tensors(ShrinkIntruders(), base, [base, base])
