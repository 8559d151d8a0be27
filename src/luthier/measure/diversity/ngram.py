"""Expectation-adjusted distinct n-grams: how many different n-grams, against what chance would give at this length.

Paper: arXiv 2202.13587.   Formula: EAD_n = N / (V (1 - ((V - 1) / V)^C)), averaged over n = 1 .. orders.
N: different n-grams, C: all n-grams, V: size of the vocabulary.
Takes: rows with prompt.   Gives: ead_per_input (one item per row) or ead_across_inputs.
Choose it when: outputs have different lengths, where plain distinct-n punishes the longer.
Rather not when: wording may vary freely.
Relatives: embedding (meaning instead of wording), vendi (effective number).

>>> round(ead([["a", "b"], ["a", "c"]], n=1, vocabulary=10**9), 6)  # many words: plain distinct-n
0.75
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from luthier.core import Card, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure.diversity._texts import SetMeasure, ngrams, words

CARD = Card(
    name="EAD",
    source="arXiv 2202.13587",
    needs=Needs(batch=("prompts", "text")),
    cost="`samples` generations per row, shared with the other diversity measures",
    limits=(
        "one n-gram: 1",
        "V to infinity: N / C, plain distinct-n",
        "uniform draws from V words: 1 in expectation, at any length",
    ),
    differs=(
        "mean over n = 1 .. 5, per input and across inputs, after arXiv 2310.06452; an order without n-grams counts 0",
        "tokens are words and punctuation signs, so that no tokenizer matters; V is a stated number (50257)",
    ),
    use_when="the variety of wording is the question",
    avoid_when="different words for one thing should not count as diversity; then embedding",
    relatives=("measure.diversity.embedding", "measure.diversity.vendi"),
    mechanism="diversity",
)


def ead(texts: Sequence[Sequence[str]], n: int, vocabulary: int) -> float:
    """N / (V (1 - (1 - 1/V)^C)) of the n-grams of all texts (lists of tokens) together; 0 where there is no n-gram.

    Stable for any V: the expected number of different n-grams is -V expm1(C log1p(-1/V)).
    """
    found = [gram for tokens in texts for gram in ngrams(tokens, n)]
    if not found:
        return 0.0
    expected = (
        float(vocabulary) if vocabulary == 1 else -vocabulary * math.expm1(len(found) * math.log1p(-1 / vocabulary))
    )
    return len(set(found)) / expected


def mean_ead(texts: Sequence[str], orders: int, vocabulary: int) -> float:
    """Mean of EAD over n = 1 .. orders of plain texts."""
    tokens = [words(t) for t in texts]
    return sum(ead(tokens, n, vocabulary) for n in range(1, orders + 1)) / orders


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class NGram(SetMeasure):
    """orders: n-grams of length 1 .. orders; vocabulary: V, to be the same in all arms that are compared."""

    scope: Literal["per_input", "across_inputs"] = "per_input"
    orders: Annotated[int, Ge(1)] = 5
    vocabulary: Annotated[int, Ge(1)] = 50257
    samples: Annotated[int, Ge(1)] = 8
    temperature: Annotated[float, Gt(0)] = 1.0
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        unit = f"n = 1..{self.orders}, V = {self.vocabulary}"
        yield self.reading("ead", lambda texts: mean_ead(texts, self.orders, self.vocabulary),
                           self.drawn(subject, rows, ctx), unit)  # fmt: skip
