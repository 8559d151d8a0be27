"""In-batch contrast: draw each query to its own positive and away from those of the other rows.

Paper: arXiv 1807.03748, eq. 4.   Formula: -log exp(c(q_i, p_i) / t) / sum_j exp(c(q_i, p_j) / t), with the cosine c; j runs
over the positives of the batch and, where rows bring one, over all their hard negatives, but for texts that the row holds itself.
Takes: query, positive and perhaps negative vectors.   Gives: (B,) values.
Choose it when: there are pairs of texts that belong together.   Rather not when: many rows of a batch mean the same: they
are pushed apart; then gist.   Relatives: gist, matryoshka.

>>> import torch
>>> round(info_nce(torch.eye(2), torch.eye(2), temperature=1.0).mean().item(), 4)
0.3133
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.objectives.contrastive._pairs import copies, cosine, missed, text_numbers, vectors

CARD = Card(
    name="InfoNCE",
    source="arXiv 1807.03748",
    equations=("4",),
    needs=Needs(batch=("pairs",), signals=("embedding",)),
    cost="one forward and backward over both texts of each row; a B by B matrix of similarities",
    limits=(
        "all vectors equal: every value is the logarithm of the number of candidates",
        "symmetric: swapping queries and positives changes nothing",
        "a batch of one row many times: every value is 0 with zero gradient, since no candidate is another text",
    ),
    differs=(
        "scores are cosines over a fixed temperature, as sentence encoders are trained; the paper's are bilinear",
        "candidates with the tokens of the row's own query or positive are left out, which the paper does not speak of",
    ),
    use_when="you have pairs of texts that belong together and want vectors that find one by the other",
    avoid_when="batches hold many texts that mean the same",
    relatives=("objectives.contrastive.gist",),
    mechanism="contrastive loss",
)


def info_nce(
    query: Tensor, positive: Tensor, negative: Tensor | None = None, temperature: float = 0.05, symmetric: bool = False,
    texts: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Minus the log share of each row's own positive among all candidates; all (B, d) -> (B,).

    symmetric: the mean with the same loss of each positive among the queries (hard negatives are no candidates there).
    texts: numbers of the texts, (parts * B,), equal for equal texts, which are no negatives of one another.
    """
    there = positive if negative is None else torch.cat([positive, negative])
    forth, back = cosine(query, there) / temperature, cosine(positive, query) / temperature
    if texts is not None:
        number = texts.reshape(-1, len(query))
        own = torch.eye(len(query), there.shape[0], dtype=torch.bool, device=texts.device)
        forth = forth.masked_fill(copies(number[:2], number[1:]) & ~own, -torch.inf)
        back = back.masked_fill(copies(number[:2], number[:1]) & ~own[:, : len(query)], -torch.inf)
    out = missed(forth)
    return (out + missed(back)) / 2 if symmetric else out


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class InfoNCE(Objective):
    """temperature: cosines are divided by it; symmetric: positives look for their queries too."""

    temperature: Annotated[float, Gt(0)] = 0.05
    symmetric: bool = False

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        return Terms("info_nce", info_nce(*vectors(s, "info_nce"), self.temperature, self.symmetric,
                                          text_numbers(batch)))  # fmt: skip
