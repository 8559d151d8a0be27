"""NovelSelect: keep rows one by one, each the most novel to those kept, where dense regions count as wider.

Paper: arXiv 2502.17184, the selection that maximises NovelSum.   Formula: add argmax over x of sum over kept p of
(sigma(x) + sigma(p)) (1 - cos(x, p)) / rank(p)^power, the nearest p at rank 1; sigma = 1 / (mean squared distance of
the nearest neighbours)^density.
Takes: rows, an embedder of texts.   Gives: k of them.
Choose it when: a small subset must be diverse where the pool has much to say, not at its edges.   Rather not when: rows
are so many that n times k numbers do not fit into memory.
Relatives: kcenter (distance to the nearest only), qdit (coverage), measure.diversity.novelsum (its measure).

>>> from luthier.ops.novelty import novelselect
>>> novelselect(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 2, start=0)[0].tolist()
[0, 2]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt

from luthier.core import Card, Choice, DataContext, Needs, Row, Select, component
from luthier.data.select._keep import count
from luthier.data.select._vectors import vectors_of
from luthier.ops.novelty import local_density, novelselect, novelty

CARD = Card(
    name="NovelSelect",
    source="arXiv 2502.17184",
    papers=(312,),
    needs=Needs(handles=("embed",)),
    cost="one embedding per row, n^2 distances once for the density (made in blocks), n k numbers of memory",
    limits=(
        "equals the greedy loop that sorts all distances anew at every step",
        "no row is chosen twice; k >= n keeps all",
        "the order of rows decides between ties only",
    ),
    differs=(
        "distances to neighbours are squared in the density, as in the authors' code, whose index returns squares; the "
        "paper writes the distance",
        "copies in the pool count once for the density, and a row is no neighbour of its copy; the code drops the "
        "nearest hit of every row",
        "begins with the row nearest to the mean direction instead of a random one, so that no seed decides",
    ),
    use_when="rows should be diverse and dense regions of the pool deserve more rows than empty ones",
    avoid_when="the embedding's distances mean little for the task",
    relatives=("data.select.kcenter", "data.select.qdit", "measure.diversity.novelsum"),
    mechanism="diversity layer",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class NovelSelect(Select):
    """keep: number of rows (int) or share of them (float up to 1.0); power: how fast the weight of farther kept rows
    falls (0: all alike); density: how much dense regions widen (0: not); neighbours: that measure the density;
    text: what of a row is embedded."""

    keep: Annotated[int | float, Gt(0)]
    power: Annotated[float, Ge(0)] = 1.0
    density: Annotated[float, Ge(0)] = 0.5
    neighbours: Annotated[int, Ge(1)] = 10
    text: Literal["both", "prompt", "response"] = "both"

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Choice:
        k = count(self.keep, len(rows), "novelselect")
        vectors = vectors_of(rows, ctx, "novelselect", self.text)
        sigma = local_density(vectors, None, self.neighbours, self.density)
        index, _ = novelselect(vectors, k, sigma, self.power)
        score = novelty(vectors, sigma, self.power).to(torch.float64)
        reason = f"{k} of {len(rows)} rows by novelty; mean novelty in the pool {float(score.mean()):.4g}, of the kept "
        return Choice(index.sort().values, score, f"{reason}{float(score[index].mean()):.4g}")
