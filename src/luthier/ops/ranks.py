"""How far two rankings of the same things agree."""

from __future__ import annotations

import torch
from torch import Tensor


def kendall(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau of two lists of scores (..., n), n > 1: pairs in the same order minus pairs in the other, over all pairs.

    In [-1, 1]; a pair that either list ties counts as neither (tau-a).

    >>> kendall(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])).item()
    0.3333333432674408
    """
    n = a.shape[-1]
    order = [(x[..., :, None] - x[..., None, :]).sign() for x in (a, b)]
    return (order[0] * order[1]).sum((-1, -2)) / (n * (n - 1))


def ranks(x: Tensor) -> Tensor:
    """Rank of each value (..., n), from 1; equal values share the mean of their ranks.

    >>> ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    below = (x[..., None, :] < x[..., :, None]).sum(-1)
    same = (x[..., None, :] == x[..., :, None]).sum(-1)
    return (below + (same + 1) / 2).to(x.dtype)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the ranks of two lists of scores (..., n); 0 where one list is all ties.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])).item()
    0.5
    """
    x, y = (r - r.mean(-1, keepdim=True) for r in (ranks(a), ranks(b)))
    scale = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (x * y).sum(-1) / scale.clamp_min(torch.finfo(a.dtype).tiny), torch.zeros_like(scale))


def same_ends(a: Tensor, b: Tensor) -> Tensor:
    """1 where both lists (..., n) have the same best and the same worst item, the first of equals, else 0."""
    top, bottom = a.argmax(-1) == b.argmax(-1), a.argmin(-1) == b.argmin(-1)
    return (top & bottom).to(a.dtype)


def auroc(score: Tensor, positive: Tensor) -> Tensor:
    """Probability that a positive item has a higher score than another one, ties as one half; both (n,) -> a scalar.

    0.5 where all items are of one kind.

    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, False, True, True])).item()
    0.875
    """
    yes = positive.bool()
    pairs = int(yes.sum()) * int((~yes).sum())
    if pairs == 0:
        return torch.tensor(0.5, dtype=torch.float64)
    n = int(yes.sum())
    return (ranks(score.double())[yes].sum() - n * (n + 1) / 2) / pairs
