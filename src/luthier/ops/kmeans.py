"""Spherical k-means: clusters of directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import sentence
from luthier.ops.distances import BLOCK, blocks, check_matrix, unit


@dataclass(frozen=True)
class Clusters:
    """label (n,) of each row, its cosine (n,) to its centre, and the unit centres (k, d)."""

    label: Tensor
    cosine: Tensor
    centres: Tensor

    @property
    def sizes(self) -> Tensor:
        """Rows of each cluster, (k,)."""
        return self.label.bincount(minlength=len(self.centres))


def assign(x: Tensor, centres: Tensor, limit: int = BLOCK) -> Clusters:
    """Rows of x (n, d) to the centres (k, d) of the largest cosine; the first of equals."""
    label = torch.empty(x.shape[0], dtype=torch.long, device=x.device)
    cosine = x.new_empty(x.shape[0])
    for cut, close in blocks(x, centres, "cosine_similarity", limit):
        cosine[cut], label[cut] = close.max(1)
    return Clusters(label, cosine, unit(centres))


def spherical_kmeans(x: Tensor, start: Tensor, iterations: int = 20, limit: int = BLOCK) -> Clusters:
    """Clusters of the directions of rows x (n, d), one for each row number in `start` (k,), where the centres begin.

    An emptied cluster keeps its centre. The sum of cosines never falls from one iteration to the next. Raises ValueError
    for a start without rows or outside of x.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> spherical_kmeans(x, torch.tensor([0, 2])).sizes.tolist()
    [2, 1]
    """
    check_matrix(x, "k-means")
    if start.numel() == 0 or int(start.min()) < 0 or int(start.max()) >= x.shape[0]:
        came = f"{start.tolist()} for {x.shape[0]} rows"
        raise ValueError(sentence("k-means", "numbers of rows to start from", came, "Give one row for each cluster"))
    rows = unit(x)
    found = assign(rows, rows[start], limit)
    for _ in range(iterations):
        sums = torch.zeros_like(found.centres).index_add_(0, found.label, rows)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, unit(sums), found.centres)
        before, found = found.label, assign(rows, centres, limit)
        if torch.equal(before, found.label):
            break
    return found
