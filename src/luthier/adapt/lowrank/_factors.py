"""What low-rank deltas share: the scale before the factors, and how factors are drawn."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def scale(rank: int, alpha: float, stabilised: bool) -> float:
    """alpha / r, or alpha / sqrt(r): the factor before B A."""
    return alpha / (math.sqrt(rank) if stabilised else rank)


def uniform(rows: int, columns: int, g: Generator) -> Tensor:
    """(rows, columns) drawn from U(-1/sqrt(columns), 1/sqrt(columns)): Kaiming's bound at negative slope sqrt(5)."""
    return (2 * torch.rand(rows, columns, generator=g) - 1) / math.sqrt(columns)


def orthonormal(rows: int, columns: int, g: Generator) -> Tensor:
    """(rows, columns) with orthonormal rows, uniform over all such matrices (Haar). Needs rows <= columns."""
    q, r = torch.linalg.qr(torch.randn(columns, rows, generator=g, dtype=torch.float64))
    return (q * r.diagonal().sign()).T.contiguous()
