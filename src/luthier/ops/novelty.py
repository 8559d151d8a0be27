"""Novelty of items in a set: near items count most, and distances are longer where a reference corpus is dense.

An item's novelty is the mean of its distances to all items of the set, each times the density at the item, sorted
ascending and weighted by 1 / rank^power. Source: arXiv 2502.17184. Distances are cosine, computed as half the squared
difference of unit vectors, so that copies are exactly 0 apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.core.errors import sentence
from luthier.ops.distances import BLOCK, block_of, blocks, check_matrix, unit

FLOOR = 1e-9


def local_density(
    x: Tensor, reference: Tensor | None = None, neighbours: int = 10, power: float = 0.5, limit: int = BLOCK
) -> Tensor:
    """sigma (n,) in float64: 1 / (mean squared distance to the nearest different reference rows + 1e-9)^power.

    x (n, d); reference (m, d), x itself if not given. Copies in the reference count once and a row is no neighbour of
    its own copy; where the reference has fewer rows than `neighbours`, all of them count, and where it has none that
    differs, the density is 1. power 0 gives ones.

    >>> local_density(torch.tensor([[0.0], [2.0]]), power=0.5)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    check_matrix(x, "local density")
    if neighbours < 1 or power < 0:
        came = f"neighbours = {neighbours}, power = {power}"
        raise ValueError(sentence("local density", "neighbours >= 1 and power >= 0", came, "Check the call"))
    others = (x if reference is None else reference).double().unique(dim=0)
    out = torch.ones(x.shape[0], dtype=torch.float64, device=x.device)
    for cut, far in blocks(x.double(), others, "sqeuclidean", limit):
        near = far.masked_fill(far == 0, torch.inf).topk(min(neighbours, others.shape[0]), largest=False).values
        count = near.isfinite().sum(1)
        mean = near.masked_fill(near.isinf(), 0).sum(1) / count.clamp_min(1)
        out[cut] = torch.where(count > 0, (mean + FLOOR) ** -power, 1.0)
    return out


def rank_weights(n: int, power: float) -> Tensor:
    """1 / rank^power for ranks 1 .. n, (n,) float64."""
    return torch.arange(1, n + 1, dtype=torch.float64) ** -power


def novelty(x: Tensor, density: Tensor | None = None, power: float = 1.0, limit: int = BLOCK) -> Tensor:
    """Novelty of each row of x (n, d) among all rows, (n,) float64.

    density (n,): factor of each row (ones if not given). The row itself takes part, with distance 0 at rank 1.
    """
    check_matrix(x, "novelty")
    if power < 0 or (density is not None and density.shape != x.shape[:1]):
        came = f"power = {power}" if power < 0 else f"{tuple(density.shape)} densities"  # type: ignore[union-attr]
        raise ValueError(sentence("novelty", f"power >= 0 and {x.shape[0]} densities", came, "Check the call"))
    rows = unit(x.double())
    weights = rank_weights(x.shape[0], power).to(x.device)
    weights /= weights.sum()
    out = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    for cut, far in blocks(rows, rows, "sqeuclidean", limit):
        out[cut] = (far / 2).sort(1).values @ weights
    return out if density is None else out * density.double()


def novelsum(x: Tensor, density: Tensor | None = None, power: float = 1.0, limit: int = BLOCK) -> Tensor:
    """Diversity of a set of vectors (n, d): the mean novelty of its rows, a scalar in float64.

    >>> round(novelsum(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), power=0.0).item(), 6)  # the mean cosine distance
    0.5
    """
    if x.shape[0] == 0:
        raise ValueError(sentence("novelsum", "at least one row", "none", "Give a non-empty set"))
    return novelty(x, density, power, limit).mean()


def novelselect(
    x: Tensor, k: int, density: Tensor | None = None, power: float = 1.0, start: int | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy choice for novelty: (index (k,) in the order of choice, each row's gain when it was chosen (k,)).

    Adds the row with the largest sum over chosen rows of (density of the row + density of the chosen) times their
    distance, sorted ascending and weighted by 1 / rank^power. start: first row (None: the nearest to the mean of the
    unit vectors); its gain is 0. Equal gains go to the earlier row. Memory: n k numbers.
    """
    check_matrix(x, "novelselect")
    n = x.shape[0]
    if k < 1 or n == 0:
        raise ValueError(sentence("novelselect", "k >= 1 and at least one row", f"k = {k}, {n} rows", "Ask for more"))
    rows = unit(x.double())
    sigma = torch.ones(n, dtype=torch.float64, device=x.device) if density is None else density.double()
    first = int(block_of(rows, rows.mean(0, keepdim=True), "sqeuclidean").argmin()) if start is None else start
    k, weights = min(k, n), rank_weights(k, power).to(x.device)
    chosen, gains, near = [first], [0.0], torch.full((n, k), torch.inf, dtype=torch.float64, device=x.device)
    taken = torch.zeros(n, dtype=torch.bool, device=x.device)
    taken[first] = True
    while (t := len(chosen)) < k:
        last = chosen[-1]
        far = block_of(rows, rows[last : last + 1], "sqeuclidean")[:, 0] / 2 * (sigma + sigma[last])
        before = near[:, : t - 1].clone()
        near[:, 0] = torch.minimum(near[:, 0], far)
        near[:, 1:t] = torch.maximum(before, torch.minimum(near[:, 1:t], far[:, None]))
        gain = (near[:, :t] @ weights[:t]).masked_fill(taken, -torch.inf)
        new = int(gain.argmax())
        chosen.append(new)
        gains.append(float(gain[new]))
        taken[new] = True
    return torch.tensor(chosen, dtype=torch.long), torch.tensor(gains, dtype=torch.float64)
