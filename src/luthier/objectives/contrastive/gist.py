"""In-batch contrast that leaves out what a guide model takes for a second positive.

Paper: arXiv 2402.16829.   Formula: as InfoNCE with queries and positives of the other rows both as candidates;
candidate j of row i, from the blocks query-positive, query-query and positive-positive, is dropped where the guide's
similarity of it exceeds the guide's similarity of the true pair, g_ij > g(q_i, p_i) - margin.
Takes: query, positive and perhaps negative vectors, and those of the guide for the same rows.   Gives: (B,) values.
Choose it when: rows of a batch often mean the same.   Rather not when: no good embedder of the language is there to guide.
Relatives: info_nce (no guide, one block).

>>> import torch
>>> q = torch.eye(3); round(gist(q, q, q, q, temperature=1.0)[0].item(), 4)
1.1654
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import Refused, sentence
from luthier.objectives.contrastive._pairs import copies, cosine, missed, text_numbers, vectors

CARD = Card(
    name="GIST",
    source="arXiv 2402.16829",
    papers=(119,),
    needs=Needs(batch=("pairs",), signals=("embedding", "guide_query", "guide_positive"), handles=("embed",)),
    cost="as info_nce with three blocks of similarities; the guide reads every text once before training",
    limits=(
        "a guide that puts every candidate below the true pair: InfoNCE over the same three blocks",
        "a margin above 0: an exact copy of a row's positive gives exactly no gradient as its negative",
        "a copy of a row's own query or positive, token by token, is never its negative, whatever the margin",
        "every candidate dropped: the value is 0",
    ),
    differs=(
        "a text is never its own negative; the authors' code drops it by the guide alone, which keeps it where the guide takes "
        "query and positive for the same text",
        "the guide's vectors are computed once before training; the same numbers as in every step",
    ),
    use_when="batches hold texts that mean the same, and an embedder is at hand that sees it",
    avoid_when="no embedder of the language or field is there to guide",
    relatives=("objectives.contrastive.info_nce",),
    mechanism="contrastive loss",
)

Strategy = Literal["absolute", "relative"]


def threshold(truth: Tensor, margin: float, strategy: Strategy) -> Tensor:
    """Guide similarities (B,) of the true pairs -> (B, 1), above which a candidate is dropped."""
    lower = margin if strategy == "absolute" else truth.abs() * margin
    return (truth - lower)[:, None]


def blocks(query: Tensor, positive: Tensor, negative: Tensor | None) -> list[Tensor]:
    """Similarities of each row's candidates, (B, B) each: query-positive, query-query, positive-positive, query-negative."""
    out = [cosine(query, positive), cosine(query, query), cosine(positive, positive)]
    return out if negative is None else [*out, cosine(query, negative)]


def kept(guide: list[Tensor], margin: float = 0.0, strategy: Strategy = "absolute") -> list[Tensor]:
    """Which candidates stay, for each of the guide's blocks: the true pair always, a text beside itself never."""
    edge = threshold(guide[0].diagonal(), margin, strategy)
    same = torch.eye(len(edge), dtype=torch.bool, device=edge.device)
    out = [block <= edge for block in guide]
    return [out[0] | same, out[1] & ~same, out[2] & ~same, *out[3:]]


def gist(
    query: Tensor,
    positive: Tensor,
    guide_query: Tensor,
    guide_positive: Tensor,
    negative: Tensor | None = None,
    guide_negative: Tensor | None = None,
    temperature: float = 0.01,
    margin: float = 0.0,
    strategy: Strategy = "absolute",
    texts: Tensor | None = None,
) -> Tensor:
    """Vectors (B, d) of the model and (B, d') of the guide -> (B,). texts: numbers of the texts, (parts * B,), equal for equal ones."""
    guide = blocks(guide_query, guide_positive, guide_negative)
    own = blocks(query, positive, negative)
    stay = kept(guide, margin, strategy)
    if texts is not None:
        number = texts.reshape(-1, len(query))
        truth = torch.eye(len(query), dtype=torch.bool, device=texts.device)
        other = [number[i : i + 1] for i in (1, 0, 1, 2)[: len(stay)]]
        stay = [
            k & (~copies(number[:2], o) | (truth if i == 0 else False))
            for i, (k, o) in enumerate(zip(stay, other, strict=True))
        ]
    return missed(torch.cat([x.masked_fill(~k, -torch.inf) for x, k in zip(own, stay, strict=True)], 1) / temperature)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class GIST(Objective):
    """temperature: cosines are divided by it; margin: how far below the true pair a candidate is dropped already.

    strategy: whether the margin is a difference of similarities, or a share of the true pair's.
    """

    temperature: Annotated[float, Gt(0)] = 0.01
    margin: Annotated[float, Ge(0)] = 0.0
    strategy: Literal["absolute", "relative"] = "absolute"

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        query, positive, negative = vectors(s, "gist")
        wanted = ["guide_query", "guide_positive", *(["guide_negative"] if negative is not None else [])]
        if missing := [n for n in wanted if n not in s]:
            raise Refused(
                sentence("gist", "a guide model's vector of every text", f"no {missing[0]}", "Add `embedder: minilm`")
            )
        guide_query, guide_positive, *more = (s[n].to(query) for n in wanted)
        values = gist(query, positive, guide_query, guide_positive, negative, more[0] if more else None,
                      self.temperature, self.margin, self.strategy, text_numbers(batch))  # fmt: skip
        return Terms("gist", values)
