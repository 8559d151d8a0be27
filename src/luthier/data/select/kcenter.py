"""k-centre: keep rows one by one, each the farthest from all that were kept before.

Paper: arXiv 2311.08182, the selection of one round.   Formula: add argmax over x of min over kept p of |e(x) - e(p)|.
Takes: rows, an embedder of texts.   Gives: k of them that cover the pool.
Choose it when: the pool repeats itself and rare kinds of rows must be kept.   Rather not when: outliers are noise; they
are kept first.
Relatives: qdit (coverage of the average row), novelselect (outliers count less), random.

>>> x = torch.tensor([[0.0], [0.1], [10.0], [5.0]])
>>> farthest_first(x, 3, start=[0]).index.tolist()
[0, 2, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Choice, DataContext, Needs, Row, Select, component
from luthier.data.select._keep import best, count
from luthier.data.select._vectors import vectors_of
from luthier.data.select.random import draws
from luthier.ops.submodular import centres_and_distances

CARD = Card(
    name="k-centre",
    source="arXiv 2311.08182",
    papers=(308,),
    needs=Needs(handles=("embed",)),
    cost="one embedding per row, then n distances per kept row; memory for the vectors and one number per row",
    limits=(
        "the covering radius is at most twice the best possible for as many rows",
        "exact copies of kept rows are kept last",
        "k >= n keeps all",
    ),
    differs=(
        "one round with a fixed embedder; the paper's several rounds embed with the model just trained, by its mean "
        "last hidden state over prompt and answer",
        "begins with the row nearest to the mean; `drawn` rows by lot come first in the paper (100, then 100 a round)",
        "distances and greedy rule as in the authors' code, which holds all n^2 distances; here they are made by column",
    ),
    use_when="a small subset should contain something of everything",
    avoid_when="the pool holds garbage far from everything else, or nearness in the embedding means little",
    relatives=("loops.diverse_evol", "data.select.qdit", "data.select.novelselect", "data.select.random"),
    mechanism="diversity layer",
)


@dataclass(frozen=True)
class Covered:
    """Rows in the order of choice (k,), and every row's distance to its nearest chosen one (n,)."""

    index: Tensor
    distance: Tensor


def farthest_first(vectors: Tensor, k: int, start: Sequence[int] | None = None) -> Covered:
    """Choose k of n rows by vectors (n, d), Euclidean; start: rows that are chosen before (None: nearest to the mean).

    The chosen ones among `start` count, and stay if they are more than k. Equal distances go to the earlier row.
    """
    return Covered(*centres_and_distances(vectors, k, start))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class KCenter(Select):
    """keep: number of rows (int) or share of them (float up to 1.0); drawn: how many of them are drawn by lot first;
    text: what of a row is embedded."""

    keep: Annotated[int | float, Gt(0)]
    drawn: Annotated[int, Ge(0)] = 0
    text: Literal["both", "prompt", "response"] = "both"

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Choice:
        k = count(self.keep, len(rows), "kcenter")
        start = best(draws(rows, ctx.seed), min(self.drawn, k)).tolist() if self.drawn else None
        got = farthest_first(vectors_of(rows, ctx, "kcenter", self.text), k, start)
        by_lot = f", {len(start)} of them by lot" if start else ""
        reason = (
            f"{k} of {len(rows)} rows farthest apart{by_lot}; all others lie within {float(got.distance.max()):.4g}"
        )
        return Choice(got.index.sort().values, got.distance.to(torch.float64), reason)
