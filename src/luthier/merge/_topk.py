"""The largest entries of a whole model by magnitude, found in passes over its tensors with constant memory.

Magnitudes are compared as float32, whose bits grow with the number: a histogram of their upper half finds the bin of the
k-th largest, one of the lower half inside that bin finds it exactly. Equal magnitudes are taken in the order of tensors
and entries, so that exactly k are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Pass = Callable[[], Iterable[tuple[str, Tensor]]]


@dataclass(frozen=True)
class Cut:
    """Entries whose key is above `key`, and of those at it the first ties[name] of each tensor; deviation of all."""

    key: int
    ties: Mapping[str, int] = field(repr=False)
    deviation: float
    entries: int

    def mask(self, name: str, tensor: Tensor) -> Tensor:
        """Which entries of a tensor are among the largest, in its shape."""
        keys = _keys(tensor)
        chosen = keys > self.key
        chosen[(keys == self.key).nonzero()[: self.ties.get(name, 0), 0]] = True
        return chosen.view(tensor.shape)


def _keys(tensor: Tensor) -> Tensor:
    """Bits of the magnitudes in float32, flat; they are ordered as the magnitudes are."""
    return tensor.detach().abs().to(torch.float32).flatten().contiguous().view(torch.int32)


def _moments(tensors: Pass) -> tuple[int, float]:
    """(number of entries, their deviation with n - 1 in the denominator); two passes."""
    n, total = 0, 0.0
    for _, t in tensors():
        n, total = n + t.numel(), total + float(t.sum(dtype=torch.float64))
    mean = total / max(1, n)
    squares = sum(float((t.double() - mean).square().sum()) for _, t in tensors())
    return n, (squares / (n - 1)) ** 0.5 if n > 1 else 0.0


def _bin(counts: Tensor, k: int) -> tuple[int, int]:
    """(bin of the k-th largest, how many of its entries belong to the k largest)."""
    above = counts.flip(0).cumsum(0)
    at = int((above >= k).nonzero()[0])
    return len(counts) - 1 - at, k - int(above[at] - counts.flip(0)[at])


def largest(tensors: Pass, density: float) -> Cut:
    """The round(density * n) entries of largest magnitude among all n. tensors: gives (name, tensor) anew each time."""
    n, deviation = _moments(tensors)
    k = min(n, round(density * n))
    if k == 0:
        return Cut(0x7FFFFFFF, {}, deviation, n)
    counts = sum((torch.bincount(_keys(t) >> 16, minlength=1 << 15) for _, t in tensors()), torch.zeros(1 << 15).long())
    upper, inside = _bin(counts, k)
    counts = torch.zeros(1 << 16, dtype=torch.long)
    for _, t in tensors():
        keys = _keys(t)
        counts += torch.bincount(keys[keys >> 16 == upper] & 0xFFFF, minlength=1 << 16)
    lower, left = _bin(counts, inside)
    key, ties = (upper << 16) | lower, {}
    for name, t in tensors():
        ties[name] = min(left, int((_keys(t) == key).sum()))
        left -= ties[name]
    return Cut(key, ties, deviation, n)
