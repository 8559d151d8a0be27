"""How well each query finds its positive among those of all test rows, by the cosine of their vectors.

Formula: recall@1 is [the nearest candidate is right]; nDCG@k (Järvelin and Kekäläinen 2002) is DCG / ideal DCG with
DCG = sum over the right candidates among the first k of 1 / log2(rank + 1).
Takes: rows with query and positive; candidates of the same label, or with the same text as the positive, are right as well.
Gives: recall_at_1, ndcg_at_10, an item for each row; smaller models of a nested encoder by layer and dim.
Choose it when: vectors are for search.   Rather not when: there are fewer than a hundred test rows: nearly all are found.
Relatives: likelihood (of language models).

>>> ndcg(torch.eye(2), torch.eye(2, dtype=torch.bool), 10).tolist()
[1.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure._rows import mean_reading, need

CARD = Card(
    name="retrieval",
    source="standard",
    needs=Needs(batch=("pairs",)),
    cost="one forward pass over each query and positive; an n by n matrix of similarities",
    limits=("each query nearest to its own positive: both are 1", "no right candidate among the first k: nDCG is 0"),
    use_when="an encoder is trained on pairs of texts",
    avoid_when="there are too few test rows to tell models apart",
    relatives=("objectives.contrastive.info_nce",),
    mechanism="ranking",
)


class EmbeddingSubject(Subject, Protocol):
    """A subject that turns texts into vectors."""

    def embed(self, texts: Sequence[str], layer: int = 0) -> Tensor:
        """Texts -> (n, d); layer counts from 1, 0 is the whole model."""
        ...


def right_answers(rows: Sequence[Row]) -> Tensor:
    """Which candidate is right for which query, (n, n): the row's own, its text again, or its label again."""
    label, text = (_numbers([r.get(k, ("row", i)) for i, r in enumerate(rows)]) for k in ("label", "positive"))
    return (label[:, None] == label[None]) | (text[:, None] == text[None])


def _numbers(values: Sequence[Any]) -> Tensor:
    known: dict[Any, int] = {}
    return torch.tensor([known.setdefault(v, len(known)) for v in values])


def ndcg(scores: Tensor, right: Tensor, k: int) -> Tensor:
    """nDCG@k of candidates by score; scores and right (n, m) -> (n,) in float64."""
    k = min(k, scores.shape[1])
    worth = 1 / torch.log2(torch.arange(k, dtype=torch.float64) + 2)
    found = right.gather(1, scores.topk(k, 1).indices).double() @ worth
    ideal = right.double().sort(1, descending=True).values[:, :k] @ worth
    return found / ideal


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Retrieval(Measure):
    """layer: which layer's vectors (from 1; 0: the whole model); dim: their first coordinates only (0: all)."""

    layer: Annotated[int, Ge(0)] = 0
    dim: Annotated[int, Ge(0)] = 0

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("query", "positive"), self.name, 2)
        if not hasattr(subject, "embed"):
            raise DataError(
                sentence(self.name, "a text encoder", f"{type(subject).__name__} without vectors", "Leave it out")
            )
        model = cast(EmbeddingSubject, subject)
        sides = [
            model.embed([r[k] for r in rows], self.layer)[:, : self.dim or None].double() for k in ("query", "positive")
        ]
        query, positive = (torch.nn.functional.normalize(v, dim=-1) for v in sides)
        scores, right = query @ positive.T, right_answers(rows)
        at = "".join(f"/{n}{v}" for n, v in (("layer", self.layer), ("dim", self.dim)) if v)
        first = right.gather(1, scores.argmax(1, keepdim=True))[:, 0].double()
        yield mean_reading(f"recall_at_1{at}", first.tolist(), better=1, unit="share of queries", axis="quality")
        yield mean_reading(f"ndcg_at_10{at}", ndcg(scores, right, 10).tolist(), better=1, unit="", axis="quality")
