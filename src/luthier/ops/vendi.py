"""Vendi score: the effective number of different items in a set.

The exponential of the entropy (of order q) of the eigenvalues of K / n, where K holds similarities with ones on the
diagonal: n copies of one item score 1, n items with nothing in common score n. Source: arXiv 2210.02410 (q = 1),
2310.12952 (order q).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luthier.core.errors import sentence
from luthier.ops.distances import BLOCK, check_matrix, unit


def _checked(eigenvalues: Tensor, who: str) -> Tensor:
    """Eigenvalues (m,) with rounding errors around zero removed. Raises ValueError for one that is clearly negative."""
    slack = eigenvalues.shape[0] * torch.finfo(eigenvalues.dtype).eps * 100
    least = float(eigenvalues.detach().min())
    if least < -max(slack, 1e-6):
        low = f"an eigenvalue of {least:.3g}"
        raise ValueError(
            sentence(who, "a positive semidefinite kernel", low, "Use a kernel such as the cosine similarity")
        )
    return eigenvalues.where(eigenvalues > slack, torch.zeros_like(eigenvalues))


def effective_number(p: Tensor, q: float = 1.0) -> Tensor:
    """Hill number of order q of shares p (m,) that sum to one: exp of their entropy of order q, a scalar.

    q = 0 counts the positive shares, 1 is exp(Shannon), 2 is 1 / sum p^2, infinity is 1 / max p; never rises with q.

    >>> [round(effective_number(torch.tensor([0.5, 0.5, 0.0]), q).item(), 4) for q in (0, 1, 2, math.inf)]
    [2.0, 2.0, 2.0, 2.0]
    """
    if q < 0 or math.isnan(q):
        raise ValueError(sentence("a Hill number", "an order q >= 0", f"q = {q}", "Use 1 for the usual Vendi score"))
    if math.isinf(q):
        return 1 / p.max()
    kept = p[p > 0]
    if q == 1:
        return (-(kept * kept.log()).sum()).exp()
    return kept.pow(q).sum().pow(1 / (1 - q))


def vendi_from_kernel(kernel: Tensor, q: float = 1.0) -> Tensor:
    """Vendi score of order q of a symmetric, positive semidefinite kernel (n, n) with ones on its diagonal; a scalar.

    >>> vendi_from_kernel(torch.ones(4, 4, dtype=torch.float64)).item()
    1.0
    """
    n = kernel.shape[0]
    if kernel.ndim != 2 or kernel.shape[1] != n or n == 0:
        raise ValueError(
            sentence("the Vendi score", "a square kernel of at least one item", str(tuple(kernel.shape)), "Give (n, n)")
        )
    own = kernel.detach().diagonal()
    if float((own - 1).abs().max()) > 1e-4:
        off = f"a diagonal from {float(own.min()):.4g} to {float(own.max()):.4g}"
        raise ValueError(
            sentence("the Vendi score", "ones on the kernel's diagonal", off, "Divide K by sqrt(K_ii K_jj)")
        )
    p = _checked(torch.linalg.eigvalsh(kernel / n), "the Vendi score")
    return effective_number(p / p.sum(), q)


def vendi_of_distances(squared: Tensor, length: float) -> Tensor:
    """Vendi score under exp(-d^2 / (2 length^2)), from squared distances (n, n); a scalar.

    >>> vendi_of_distances(torch.zeros(3, 3, dtype=torch.float64), 1.0).item()
    1.0
    """
    return vendi_from_kernel(torch.exp(-squared / (2 * length**2)))


def _second_moment(x: Tensor, normalise: bool) -> Tensor:
    """X^T X (d, d) in float64 of x (n, d), rows scaled to length 1 if asked; float64 copies of one block at a time."""
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in x.split(max(1, BLOCK // x.shape[1])):
        wide = (unit(part) if normalise else part).double()
        gram = gram + wide.T @ wide
    return gram


def vendi(x: Tensor, q: float = 1.0, normalise: bool = True) -> Tensor:
    """Vendi score of order q of vectors (n, d) under the cosine of normalised rows, or their dot product; a scalar.

    X X^T / n and X^T X / n share their positive eigenvalues, so the smaller of the two is decomposed: exact at any n and d,
    in time n d min(n, d) and, beside x, memory for one block of rows and that matrix. Rows must have length one where
    `normalise` is False. Raises ValueError for rows of zeros.
    """
    check_matrix(x, "the Vendi score")
    n, d = x.shape
    length = x.detach().norm(dim=1)
    if n == 0 or bool((length == 0).any()):
        came = "no rows" if n == 0 else f"row {int((length == 0).nonzero()[0])} of zeros"
        raise ValueError(sentence("the Vendi score", "at least one row, none of zeros", came, "Leave such rows out"))
    if not normalise and float((length - 1).abs().max()) > 1e-4:
        raise ValueError(
            sentence("the Vendi score", "rows of length one", f"a length of {float(length.max()):.4g}", "Set normalise")
        )
    if n <= d:
        wide = (unit(x) if normalise else x).double()
        gram = wide @ wide.T
    else:
        gram = _second_moment(x, normalise)
    p = _checked(torch.linalg.eigvalsh(gram / n), "the Vendi score")
    return effective_number(p / p.sum(), q)
