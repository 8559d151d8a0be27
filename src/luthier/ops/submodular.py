"""Greedy choice of representative subsets: facility location, k-centre, coverage.

Facility location: F(A) = sum over v of max(0, max over a in A of sim(v, a)). It is monotone and submodular, so greedy
choice reaches at least (1 - 1/e) of the best value (Nemhauser, Wolsey and Fisher 1978). Gains never grow: an old one is
an upper bound, which lazy greedy uses (Minoux 1978). Similarities are made in columns when they are needed; nothing
here holds an (n, n) matrix unless the caller does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.errors import sentence
from luthier.ops.distances import BLOCK, Kind, blocks, check_matrix, nearest, unit

Columns = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Picks:
    """What greedy chose: index (k,) in the order of choice, the objective's gain at each choice (k,), float64."""

    index: Tensor
    gain: Tensor


def cosine_columns(x: Tensor) -> Columns:
    """Columns of the cosine similarities of vectors (n, d): index (b,) -> (n, b)."""
    check_matrix(x, "facility location")
    rows = unit(x)
    return lambda index: rows @ rows[index].T


def matrix_columns(similarity: Tensor) -> Columns:
    """Columns of given similarities (n, n), row v and column a holding sim(v, a)."""
    return lambda index: similarity[:, index]


def facility_location(columns: Columns, chosen: Tensor) -> Tensor:
    """F(A) for the chosen index (k,): how well the chosen represent all points, float64; 0 for no choice.

    >>> facility_location(matrix_columns(torch.eye(3)), torch.tensor([0, 2])).item()
    2.0
    """
    if chosen.numel() == 0:
        return torch.zeros((), dtype=torch.float64)
    return columns(chosen).amax(1).clamp_min(0).double().sum()


def _gains(columns: Columns, best: Tensor, index: Tensor, limit: int) -> Tensor:
    """F(A + a) - F(A) for each a in `index` (b,), float64; best (n,) is how well A represents each point."""
    width = max(1, limit // max(1, best.shape[0]))
    parts = [(columns(part) - best[:, None]).clamp_min_(0).sum(0, dtype=torch.float64) for part in index.split(width)]
    return torch.cat(parts) if parts else best.new_zeros(0, dtype=torch.float64)


def _start(columns: Columns, n: int) -> Tensor:
    """How well the empty set represents each point: zeros (n,) in the dtype of the similarities."""
    return columns(torch.arange(min(1, n))).new_zeros(n)


def facility_location_greedy(
    columns: Columns,
    n: int,
    k: int,
    *,
    modular: Tensor | None = None,
    weight: float = 1.0,
    lazy: bool = True,
    limit: int = BLOCK,
) -> Picks:
    """Greedily maximise weight * F(A) + sum over A of modular, |A| = min(k, n).

    columns: index -> similarities (n, b). modular (n,): value of each item by itself. lazy evaluates again only items
    whose old gain could still win, in growing groups; it chooses what the plain greedy chooses. limit: numbers held at
    a time. Gains that are equal up to rounding go to the lowest index.
    """
    if k < 0 or n < 0 or weight < 0:
        raise ValueError(
            sentence("facility location", "k, n and weight >= 0", f"k={k}, n={n}, weight={weight}", "Check the call")
        )
    everyone, best = torch.arange(n), _start(columns, n)
    own = torch.zeros(n, dtype=torch.float64) if modular is None else modular.double()
    rounding = 4 * torch.finfo(best.dtype).eps * max(1, n) ** 0.5

    def gains(index: Tensor) -> Tensor:
        return weight * _gains(columns, best, index, limit) + own[index] if weight else own[index]

    bound = gains(everyone)
    fresh = torch.ones(n, dtype=torch.bool)
    index, gain = [], []
    for _ in range(min(k, n)):
        group = 16 if lazy else n
        while True:
            top = bound[fresh].max() if bool(fresh.any()) else torch.tensor(-torch.inf, dtype=torch.float64)
            slack = rounding * max(1.0, float(bound.max().abs()))
            rivals = (~fresh & (bound >= top - slack) & (bound > -torch.inf)).nonzero()[:, 0]
            if len(rivals) == 0:
                break
            again = rivals[bound[rivals].topk(min(group, len(rivals))).indices]
            bound[again], fresh[again] = gains(again), True
            group *= 2
        chosen = int((bound >= bound.max() - slack).nonzero()[0])
        index.append(chosen)
        gain.append(float(bound[chosen]))
        if weight:
            best = torch.maximum(best, columns(everyone[chosen : chosen + 1])[:, 0])
            fresh[:] = False
        bound[chosen], fresh[chosen] = -torch.inf, False
    return Picks(torch.tensor(index, dtype=torch.long), torch.tensor(gain, dtype=torch.float64))


def k_centre(
    x: Tensor, k: int, start: int | Sequence[int] | None = None, kind: Kind = "euclidean"
) -> tuple[Tensor, Tensor]:
    """Farthest-first choice of centres (Gonzalez 1985): (index (k,), radius that covers every row).

    x (n, d). The radius is at most twice the best possible for k centres of the same metric ("euclidean"; "cosine" is
    no metric and has no such bound). start: first centre, or several that are taken before the greedy choice and count
    among the k (all of them stay if they are more); None takes the row closest to the mean. Ties go to the lowest
    index, and copies of chosen rows come last. Memory beside x: numbers for one block of `nearest` and a few per row.

    >>> k_centre(torch.tensor([[0.0], [1.0], [10.0]]), 2, start=0)
    (tensor([0, 2]), tensor(1.))
    """
    index, far = centres_and_distances(x, k, start, kind)
    return index, far.max()


def centres_and_distances(
    x: Tensor, k: int, start: int | Sequence[int] | None = None, kind: Kind = "euclidean"
) -> tuple[Tensor, Tensor]:
    """As `k_centre`, with every row's distance to its nearest centre (n,) instead of the radius; time n k d.

    >>> centres_and_distances(torch.tensor([[0.0], [1.0], [10.0]]), 2, start=0)[1].tolist()
    [0.0, 1.0, 0.0]
    """
    check_matrix(x, "k-centre")
    n = x.shape[0]
    if k < 1 or n == 0:
        raise ValueError(
            sentence("k-centre", "k >= 1 and at least one row", f"k = {k}, {n} rows", "Ask for one centre or more")
        )
    first = int(nearest(x.mean(0, keepdim=True), x, kind)[1]) if start is None else start
    chosen = [first] if isinstance(first, int) else [int(i) for i in first]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < n for i in chosen):
        do = "Give one or more different row numbers"
        raise ValueError(sentence("k-centre", f"different first centres from 0 to {n - 1}", str(chosen), do))
    far = nearest(x, x[chosen], kind)[0]
    taken = torch.zeros(n, dtype=torch.bool, device=x.device)
    taken[chosen] = True
    far[taken] = 0
    while len(chosen) < min(k, n):
        new = int(far.masked_fill(taken, -torch.inf).argmax())
        chosen.append(new)
        taken[new] = True
        far = torch.minimum(far, nearest(x, x[new : new + 1], kind)[0])
        far[new] = 0
    return torch.tensor(chosen, dtype=torch.long), far


def covering_radius(x: Tensor, chosen: Tensor, kind: Kind = "euclidean") -> Tensor:
    """Largest distance from a row of x (n, d) to its closest chosen row; the quantity that k-centre makes small."""
    return nearest(x, x[chosen], kind)[0].max()


def coverage(x: Tensor, chosen: Tensor, radius: float, kind: Kind = "euclidean", limit: int = BLOCK) -> Tensor:
    """Share of the rows of x (n, d) within `radius` of a chosen row, a scalar in [0, 1].

    >>> round(coverage(torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0]), 1.5).item(), 4)
    0.6667
    """
    if chosen.numel() == 0:
        return x.new_zeros(())
    hits = [(block.amin(1) <= radius) for _, block in blocks(x, x[chosen], kind, limit)]
    return torch.cat(hits).to(x.dtype).mean()
