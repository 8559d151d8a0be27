"""Facility location over large pools: the value from witnesses, the candidates of a step by lot, nothing of size n x n.

F(A) = sum over v of max(0, max over a in A of cos(v, a)) is estimated by n / m times the sum over m witnesses, rows drawn
without replacement; for one set its error is at most n sqrt(ln(2 / p) / 2m) except with chance p (Hoeffding). Each step
looks at ceil(n / k ln(1 / miss)) random rows instead of all: in expectation at least 1 - 1/e - miss of the best value of
what is maximised (Mirzasoleiman et al., arXiv 1409.7938). Time n ln(1 / miss) m d whatever k is; memory beside the vectors:
m d for the witnesses, one number per row, and one block.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from luthier.core.errors import sentence
from luthier.ops.distances import BLOCK, check_matrix, unit
from luthier.ops.submodular import Picks

WITNESSES = 4096


def witness_rows(x: Tensor, witnesses: int, g: Generator) -> Tensor:
    """Unit vectors (m, d) of `witnesses` rows of x (n, d) drawn without replacement; all rows in order if n is not larger."""
    n = x.shape[0]
    return unit(x if n <= witnesses else x[torch.randperm(n, generator=g)[:witnesses].sort().values])


def values_alone(x: Tensor, seen: Tensor, limit: int = BLOCK) -> Tensor:
    """F({a}) for each row of x (n, d) as the witnesses (m, d) tell it, (n,) float64."""
    width = max(1, limit // max(1, seen.shape[0]))
    parts = [(seen @ unit(part).T).clamp_min_(0).sum(0, dtype=torch.float64) for part in x.split(width)]
    return torch.cat(parts) * (x.shape[0] / max(1, seen.shape[0]))


def facility_location_sampled(
    x: Tensor,
    k: int,
    g: Generator,
    *,
    witnesses: int = WITNESSES,
    miss: float = 0.1,
    modular: Tensor | None = None,
    weight: float = 1.0,
    limit: int = BLOCK,
) -> Picks:
    """Choose min(k, n) rows of x (n, d) by weight * F + sum of modular, F by witnesses and steps by lot; g on the CPU.

    modular (n,): value of each row by itself. miss in [0, 1): 0 looks at every row in every step. With miss = 0 and at
    least n witnesses it chooses what the exact greedy does. Equal values go to the lowest index. gain is in units of F
    over the whole pool.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> facility_location_sampled(x, 2, Generator(), miss=0.0).index.tolist()
    [1, 2]
    """
    check_matrix(x, "facility location")
    n = x.shape[0]
    if k < 0 or weight < 0 or witnesses < 1 or not 0 <= miss < 1:
        came = f"k = {k}, weight = {weight}, witnesses = {witnesses}, miss = {miss}"
        required = "k and weight >= 0, witnesses >= 1, miss in [0, 1)"
        raise ValueError(sentence("facility location", required, came, "Check the call"))
    k, seen = min(k, n), witness_rows(x, witnesses, g)
    own = torch.zeros(n, dtype=torch.float64) if modular is None else modular.double()
    best, taken = seen.new_zeros(seen.shape[0]), torch.zeros(n, dtype=torch.bool)
    share, width = weight * n / max(1, seen.shape[0]), max(1, limit // max(1, seen.shape[0]))
    lot = n if miss == 0 else math.ceil(n / max(1, k) * math.log(1 / miss))
    index, gain = [], []
    for _ in range(k):
        looked = _candidates(taken, lot, g)
        parts = [_gain(x[part], seen, best, share) + own[part] for part in looked.split(width)]
        at = torch.cat(parts)
        slack = 4 * torch.finfo(x.dtype).eps * n**0.5 * max(1.0, float(at.max().abs()))
        chosen = int(looked[(at >= at.max() - slack).nonzero()[0, 0]])
        index.append(chosen)
        gain.append(float(at.max()))
        taken[chosen] = True
        best = torch.maximum(best, seen @ unit(x[chosen : chosen + 1])[0])
    return Picks(torch.tensor(index, dtype=torch.long), torch.tensor(gain, dtype=torch.float64))


def _gain(rows: Tensor, seen: Tensor, best: Tensor, share: float) -> Tensor:
    if not share:
        return torch.zeros(rows.shape[0], dtype=torch.float64)
    return (seen @ unit(rows).T).sub_(best[:, None]).clamp_min_(0).sum(0, dtype=torch.float64) * share


def _candidates(taken: Tensor, lot: int, g: Generator) -> Tensor:
    """About `lot` different rows that are not taken, ascending; all of them where that is not fewer."""
    if 2 * lot >= taken.shape[0]:
        free = (~taken).nonzero()[:, 0]
        return free if lot >= len(free) else free[torch.randperm(len(free), generator=g)[:lot]].sort().values
    found = torch.randint(taken.shape[0], (lot,), generator=g).unique()
    found = found[~taken[found]]
    return found if len(found) else (~taken).nonzero()[:, 0]
