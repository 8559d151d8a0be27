"""Principal components of rows that come in batches, without keeping the rows."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_UP_TO = 1024


class Principal:
    """The `size` leading principal components of all rows seen, exact while nothing had to be cut off.

    Ross, Lim, Lin and Yang, Incremental learning for robust visual tracking, 2008: the components so far, weighted by their
    singular values, stand for the rows so far; a further row accounts for the shift of the mean. components (k, d) has
    orthonormal rows; singular (k,); ratio (k,): share of the whole variance. None before the first rows.
    """

    def __init__(self, size: int) -> None:
        """size: components to keep."""
        self.size, self.count, self.total = size, 0, torch.zeros(())
        self.mean = torch.zeros(())
        self.components: Tensor | None = None
        self.singular = self.ratio = torch.zeros(0)

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, d), at least `size` of them."""
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        n, mean = len(x), x.mean(0)
        centred = x - mean
        if self.components is None:
            stack, self.total, self.mean = centred, centred.square().sum(), mean
        else:
            weight = self.count * n / (self.count + n)
            shift = weight**0.5 * (self.mean - mean)
            stack = torch.cat([self.singular[:, None] * self.components, centred, shift[None]])
            self.total = self.total + centred.square().sum() + shift.square().sum()
            self.mean = self.mean + (mean - self.mean) * (n / (self.count + n))
        self.count += n
        self.singular, self.components = leading(stack, self.size)
        self.ratio = self.singular.square() / self.total.clamp_min(torch.finfo(x.dtype).tiny)


def leading(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest singular values of x (n, d) and their right singular vectors (size, d).

    Exact up to a side of 1024; beyond that by four power iterations on twice as many random directions, seeded.
    """
    if min(x.shape) <= max(EXACT_UP_TO, 2 * size):
        _, s, v = torch.linalg.svd(x, full_matrices=False)
        return s[:size], v[:size]
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        _, s, v = torch.svd_lowrank(x, q=2 * size, niter=4)
    return s[:size], v.T[:size]
