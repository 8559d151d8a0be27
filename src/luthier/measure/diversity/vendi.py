"""Vendi score: the effective number of different outputs.

Paper: arXiv 2210.02410.   Formula: exp(-sum_i l_i log l_i), l the eigenvalues of K / n, K_ij = cos(e_i, e_j).
Takes: rows with prompt; an embedder, else hashed character n-grams (the unit says which).   Gives: between 1 and n.
Choose it when: one number of "how many different answers" is wanted.
Rather not when: sets of different size are compared.
Relatives: embedding (mean distance), ngram (wording).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from luthier.core import Card, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._embed import embedded, embedder
from luthier.measure.diversity._texts import SetMeasure
from luthier.ops.vendi import vendi

CARD = Card(
    name="Vendi score",
    source="arXiv 2210.02410",
    needs=Needs(batch=("prompts", "text"), handles=("embed",)),
    cost="`samples` generations per row, shared with the other diversity measures; eigenvalues of n by n",
    limits=("n identical texts: 1", "n orthogonal embeddings: n", "any order of the texts"),
    differs=(
        "q other than 1 is the entropy of that order (2310.12952): small q hears rare outputs, large q common ones",
        "without an embedder: hashed counts of character n-grams (orders 2 to 4, 1024 places): spelling, not meaning",
    ),
    use_when="a count of different outputs is easier to read than a distance",
    avoid_when="the number of samples differs between arms",
    relatives=("measure.diversity.embedding", "measure.diversity.ngram"),
    mechanism="diversity",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Vendi(SetMeasure):
    """q: order of the entropy, 1 is Shannon's; samples: per prompt. Reading: vendi_<scope>."""

    scope: Literal["per_input", "across_inputs"] = "per_input"
    q: Annotated[float, Gt(0)] = 1.0
    samples: Annotated[int, Ge(1)] = 8
    temperature: Annotated[float, Gt(0)] = 1.0
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        unit = f"effective number, q = {self.q:g}, {embedder(ctx)}"
        yield self.reading("vendi", lambda texts: float(vendi(embedded(texts, ctx, self.name), q=self.q)),
                           self.drawn(subject, rows, ctx), unit)  # fmt: skip
