"""Prismatic selection: grow a set by rows whose gradients fall where the set has few so far.

Paper: arXiv 2505.20161, Prismatic Synthesis.   Formula: in rounds, cluster the unit gradients of the chosen rows by
k-means, give each further row to the cluster of the largest cosine, and add rows of the smaller clusters only.
Takes: rows, projected gradients by the model to be tuned.   Gives: k of them.
Choose it when: skills are unevenly spread in a pool, as in generated data.   Rather not when: rare rows are broken ones.
Relatives: kcenter, novelselect (distances of texts instead of gradients), measure.diversity.g_vendi (its measure).

>>> smaller(torch.tensor([0, 0, 0, 1, 1, 2]), clusters=3, share=0.5).tolist()
[False, False, True]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Card, Choice, DataContext, Needs, Row, Select, component
from luthier.core.errors import DataError, sentence
from luthier.data.select._keep import count
from luthier.data.select.random import draws
from luthier.ops.distances import unit
from luthier.ops.kmeans import assign, spherical_kmeans

CARD = Card(
    name="Prismatic selection",
    source="arXiv 2505.20161",
    papers=(371,),
    needs=Needs(batch=("text",), handles=("gradients",)),
    cost="one forward and backward of the model for each row, then k-means in 1024 dimensions in every round",
    limits=(
        "rounds = 0: rows drawn by lot",
        "while any are left, a round adds rows only of clusters that are smaller than the `sparse` quantile of sizes",
        "the lengths of gradients do not matter",
        "k >= n keeps all; the order of rows decides between ties only",
    ),
    differs=(
        "the pool's further rows, in an order drawn by lot, stand for what the paper's generator writes; its check of "
        "quality and its choice of examples for the prompt are left out",
        "clusters number a tenth of the chosen rows, k-means begins at chosen rows and runs 20 times, and the smaller half "
        "is told as in the released code: sizes strictly below the one at that quantile, all clusters if there are none",
        "gradients are those of the model to be tuned, in all weights; the paper uses a small frozen model",
        "the projection is a count sketch, the released code's a dense matrix of signs; both keep inner products",
    ),
    use_when="the pool repeats a few skills and the others must not drown",
    avoid_when="the model is too large for a backward pass over every row",
    relatives=("data.select.kcenter", "data.select.novelselect", "measure.diversity.g_vendi"),
    mechanism="diversity layer",
)


def smaller(label: Tensor, clusters: int, share: float) -> Tensor:
    """Which clusters have fewer rows than the one at this quantile of sizes, (clusters,); all where none has."""
    sizes = label.bincount(minlength=clusters)
    fewer = sizes < sizes.sort().values[min(clusters - 1, int(clusters * share))]
    return fewer if bool(fewer.any()) else torch.ones_like(fewer)


def prismatic(
    gradients: Tensor, order: Tensor, k: int, rounds: int = 4, clusters: float = 0.1, sparse: float = 0.5
) -> Tensor:
    """Rows (k,) in the order of choice; gradients (n, d); order (n,): rows as they are looked at, all of them.

    Begins with the first of `order` and adds as many in each round, k / (rounds + 1); where a round finds too few rows of
    smaller clusters, the next make up for it, and after the last one rows follow in order.
    """
    x, k = unit(gradients.double()), min(k, len(order))
    chosen = order[: -(-k // (rounds + 1))]
    for turn in range(1, rounds + 1):
        rest = order[~torch.isin(order, chosen)]
        if len(rest) == 0 or len(chosen) >= k:
            break
        parts = max(1, int(clusters * len(chosen)))
        found = spherical_kmeans(x[chosen], torch.arange(parts))
        wanted = smaller(found.label, parts, sparse)[assign(x[rest], found.centres).label]
        upto = -(-k * (turn + 1) // (rounds + 1))
        chosen = torch.cat([chosen, rest[wanted][: upto - len(chosen)]])
    rest = order[~torch.isin(order, chosen)]
    return torch.cat([chosen, rest])[:k]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Prismatic(Select):
    """keep: number of rows (int) or share of them (float up to 1.0); rounds: after rows by lot; clusters: their number as
    a share of the chosen rows; sparse: quantile of sizes below which a cluster takes more."""

    keep: Annotated[int | float, Gt(0)]
    rounds: Annotated[int, Ge(0)] = 4
    clusters: Annotated[float, Gt(0), Le(1)] = 0.1
    sparse: Annotated[float, Gt(0), Le(1)] = 0.5

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Choice:
        k = count(self.keep, len(rows), "prismatic")
        if ctx.gradients is None:
            do = "Run it in a recipe, whose model gives them"
            raise DataError(sentence("prismatic", "gradients of rows by a model", "none", do))
        gradients = ctx.gradients(rows)
        if gradients.ndim != 2 or len(gradients) != len(rows) or not bool(torch.isfinite(gradients).all()):
            required, came = f"one finite gradient for each of {len(rows)} rows", str(tuple(gradients.shape))
            raise DataError(sentence("prismatic", required, came, "Check what makes the gradients"))
        order = draws(rows, ctx.seed).argsort(descending=True)
        index = prismatic(gradients, order, k, self.rounds, self.clusters, self.sparse)
        score = torch.zeros(len(rows), dtype=torch.float64)
        score[index] = torch.arange(k, 0, -1, dtype=torch.float64) / k
        reason = f"{k} of {len(rows)} rows in {self.rounds + 1} parts, by lot and then of sparse gradient clusters"
        return Choice(index.sort().values, score, reason)
