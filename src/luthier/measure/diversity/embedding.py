"""Mean pairwise cosine distance of embedded outputs: how far apart in meaning.

Paper: arXiv 2310.06452.   Formula: mean over pairs i < j of 1 - cos(e_i, e_j).
Takes: rows with prompt; an embedder, else hashed character n-grams (the unit says which).   Gives: in [0, 2].
Choose it when: meaning should count and not wording.
Rather not when: the embedder does not know the language or field.
Relatives: ngram (wording), vendi (effective number from the same similarities).

>>> from luthier.measure._embed import hashed
>>> distance(hashed(["a", "b", "c"])).item()  # nothing in common
1.0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._embed import embedded, embedder
from luthier.measure.diversity._texts import SetMeasure
from luthier.ops.distances import mean_pairwise

CARD = Card(
    name="embedding distance",
    source="arXiv 2310.06452 (one minus the similarity of sentence embeddings)",
    needs=Needs(batch=("prompts", "text"), handles=("embed",)),
    cost="`samples` generations per row, shared with the other diversity measures, and their embeddings",
    limits=("identical texts: 0", "orthogonal embeddings: 1", "any order of the texts"),
    differs=(
        "without an embedder: hashed counts of character n-grams (orders 2 to 4, 1024 places): spelling, not meaning",
    ),
    use_when="outputs should differ in what they say",
    avoid_when="no embedder fits and wording is the question; then ngram",
    relatives=("measure.diversity.ngram", "measure.diversity.vendi"),
    mechanism="diversity",
)


def distance(x: Tensor) -> Tensor:
    """Mean of 1 - cosine over all pairs of vectors (n, d), n >= 2; a scalar in [0, 2]."""
    return mean_pairwise(x, "cosine")


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Embedding(SetMeasure):
    """scope: among samples of one prompt, or across prompts; samples: per prompt. Reading: embedding_<scope>."""

    scope: Literal["per_input", "across_inputs"] = "per_input"
    samples: Annotated[int, Ge(1)] = 8
    temperature: Annotated[float, Gt(0)] = 1.0
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        yield self.reading("embedding", lambda texts: distance(embedded(texts, ctx, self.name)).item(),
                           self.drawn(subject, rows, ctx), f"mean cosine distance, {embedder(ctx)}")  # fmt: skip
