"""Show a few of many samples: cluster representatives, the farthest points, or draws that even out the density.

Paper: arXiv 2310.16047, section 4.
Formula: kmeans: the sample nearest to each of k means. farthest: each next sample is the one farthest from those taken. uniform:
drawn without replacement with probability ~ (distance to the m-th neighbour)^d, one over the density.
Takes: finished samples.   Gives: the indices of the ones to keep.
Choose it when: many samples are affordable and a person looks at few.   Rather not when: sampling is dear; nn_repulsion works while it
samples.   Relatives: nn_repulsion, contrastive_noise.

>>> import torch
>>> SubsetSelect(keep=2).choose(torch.tensor([[0.0], [0.1], [0.2], [9.0]]))
tensor([2, 3])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Guidance, component, stream
from luthier.core.errors import Refused, sentence
from luthier.diffusion.guidance._groups import grouped
from luthier.ops.distances import nearest, pairwise
from luthier.ops.submodular import k_centre

CARD = Card(
    name="subset of samples",
    source="arXiv 2310.16047",
    papers=(333,),
    cost="more samples than are shown, and their distances",
    limits=(
        "keep = the number of samples keeps all",
        "farthest: the greatest distance to a kept sample is at most twice the best possible",
        "kmeans: clusters far apart get one representative each",
        "uniform on the line: equal weight for equal length, whatever the density",
    ),
    differs=(
        "farthest begins at the sample closest to the mean; the authors' code begins at a random one",
        "kmeans and the weights of uniform (with their m) were checked against the authors' code",
        "distances are between samples as they are; pass features to the functions for others",
    ),
    use_when="a person looks at few samples of many",
    avoid_when="sampling is dear",
    relatives=("diffusion.guidance.nn_repulsion", "diffusion.guidance.contrastive_noise"),
    mechanism="diversity layer",
)


def k_means(x: Tensor, k: int, generator: torch.Generator, rounds: int = 100, starts: int = 10) -> Tensor:
    """Means (k, d) of the lowest squared error over `starts` runs of Lloyd's algorithm from k-means++ centres; x (n, d)."""
    best, least = x[:k], math.inf
    for _ in range(starts):
        centre = x[torch.randint(len(x), (1,), generator=generator)]
        while len(centre) < k:
            far = nearest(x, centre)[0].square()
            far = far if float(far.sum()) > 0 else torch.ones_like(far)
            centre = torch.cat((centre, x[torch.multinomial(far, 1, generator=generator)]))
        for _ in range(rounds):
            label = nearest(x, centre)[1]
            moved = torch.stack([x[label == j].mean(0) if bool((label == j).any()) else centre[j] for j in range(k)])
            if torch.equal(moved, centre):
                break
            centre = moved
        error = float(nearest(x, centre)[0].square().sum())
        if error < least:
            best, least = centre, error
    return best


def log_sparsity(x: Tensor) -> Tensor:
    """Log of one over the density of each row of x (n, d) up to a constant: d log(distance to the m-th neighbour), (n,).

    m = n^(2 / (d + 2)) log(n)^(d / (d + 2)), rounded.
    """
    n, d = x.shape
    m = min(n - 1, max(1, round(n ** (2 / (d + 2)) * math.log(n) ** (d / (d + 2)))))
    return d * pairwise(x).sort(1).values[:, m].clamp_min(torch.finfo(x.dtype).tiny).log()


def representatives(x: Tensor, k: int, by: str, generator: torch.Generator) -> Tensor:
    """Indices (k,), ascending, of rows of x (n, d) by "kmeans", "farthest" or "uniform"."""
    match by:
        case "farthest":
            index = k_centre(x, k)[0]
        case "kmeans":
            index, means = torch.empty(0, dtype=torch.long), k_means(x, k, generator)
            for mean in means:
                far = pairwise(mean[None], x)[0].index_fill(0, index, torch.inf)
                index = torch.cat((index, far.argmin()[None]))
        case "uniform":
            chance = torch.rand(len(x), generator=generator, dtype=torch.float64).clamp_min(1e-300)
            index = (log_sparsity(x) - (-chance.log()).log()).topk(k).indices  # Gumbel's: weighted, no replacement
        case other:
            raise ValueError(f"representatives are chosen by kmeans, farthest or uniform; got {other!r}")
    return index.sort().values


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SubsetSelect(Guidance):
    """keep: samples of each group; by: how; group: samples that belong together, in order (None: the whole batch)."""

    keep: Annotated[int, Ge(1)] = 5
    by: Literal["farthest", "kmeans", "uniform"] = "farthest"
    group: Annotated[int, Gt(0)] | None = None
    seed: int = 0

    def choose(self, x: Tensor) -> Tensor:
        groups = grouped(x, self.group, "subset_select").cpu()
        n = groups.shape[1]
        if self.keep > n:
            raise Refused(
                sentence("subset_select", f"at least {self.keep} samples of a group", str(n), "Draw more at once")
            )
        wide = groups.double()
        index = [representatives(rows, self.keep, self.by, stream(self.seed, "diffusion.subset", i)) + i * n
                 for i, rows in enumerate(wide)]  # fmt: skip
        return torch.cat(index).to(x.device)
