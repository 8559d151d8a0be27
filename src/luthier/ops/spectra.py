"""Singular directions of two versions of a matrix: which of the new one's strong directions did the old one not have?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Directions(NamedTuple):
    """The strongest singular directions of a matrix (out, in): left (out, k), value (k,), right (k, in), largest first.

    familiar (k,): the largest absolute cosine of each left direction with any left direction of the older matrix.
    """

    left: Tensor
    value: Tensor
    right: Tensor
    familiar: Tensor


def directions(old: Tensor, new: Tensor, top: int) -> Directions:
    """The `top` strongest directions of `new` beside those of `old`, both (out, in), computed in float64.

    Directions of singular value 0 (to rounding) belong to neither matrix: `new` gives none of them, so k may be below
    `top`, and `old` is not compared by them.
    """
    known, strength, _ = torch.linalg.svd(old.double(), full_matrices=False)
    left, value, right = torch.linalg.svd(new.double(), full_matrices=False)
    k = min(top, int((value > _floor(value, new)).sum()))
    known = known[:, strength > _floor(strength, old)]
    cosine = (left[:, :k].T @ known).abs()
    familiar = cosine.amax(1) if cosine.numel() else value.new_zeros(k)
    return Directions(left[:, :k], value[:k], right[:k], familiar)


def _floor(value: Tensor, matrix: Tensor) -> Tensor:
    """Below this a singular value is rounding of the entries: a few eps of the largest one (of float32 at most)."""
    exact = matrix.dtype == torch.float64
    return 8 * torch.finfo(torch.float64 if exact else torch.float32).eps * value.amax()
