"""Semantic entropy: how far do a model's own answers to one question scatter over different meanings?

Paper: arXiv 2410.17234, with the entropy over clusters of 2302.09664.
Formula: SE = -sum_C p(C) log p(C), p(C) the share of n sampled answers in the cluster C of one meaning.
Takes: rows with prompt.   Gives: nats per row; with answers or a verifier also the AUROC of SE against wrong greedy answers.
Choose it when: asking what a model does not know, without labels.   Rather not when: a question has many right answers.
Relatives: abstain_targets (trains on it), ece and brier (confidence in one answer), vendi (diversity of texts).

>>> meanings(["Rome.", "rome", "Paris"])
[0, 0, 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._answers import correctness, judged, normalise
from luthier.measure._embed import embedded
from luthier.measure._rows import mean_reading, need, prompts
from luthier.measure._subject import greedy, sampled
from luthier.ops.meanings import clusters, semantic_entropy
from luthier.ops.ranks import auroc

CARD = Card(
    name="semantic entropy",
    source="arXiv 2410.17234 (clusters as in 2302.09664)",
    papers=(38,),
    needs=Needs(batch=("prompts", "text")),
    cost="n samples per row, and one greedy answer where it can be judged",
    limits=(
        "all samples of one meaning: 0",
        "n samples of n meanings: log n",
        "the order of samples does not matter where sameness is an equivalence",
    ),
    differs=(
        "clusters and the entropy over counts as in get_semantic_ids and cluster_assignment_entropy of "
        "jlko/semantic_uncertainty, read; weighting by likelihood is not offered",
        "two answers mean the same if their plain forms are equal, or with `similar` if an embedder's cosine reaches it; an "
        "entailment model is a function for `meanings`, not part of a recipe",
        "the AUROC counts ties as one half; it is 0.5 where all greedy answers are right or all are wrong",
    ),
    use_when="questions have short answers, and you want to know which ones the model makes up",
    avoid_when="answers are long: their plain forms always differ",
    relatives=("data.targets.abstain_targets", "measure.calibration.ece", "measure.calibration.abstention"),
    mechanism="entropy over meanings",
)


def meanings(texts: Sequence[str]) -> list[int]:
    """Cluster of each text: equal plain forms (letter case, white space and a final full stop aside)."""
    plain = [normalise(t) for t in texts]
    return clusters(len(plain), lambda i, j: plain[i] == plain[j])


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SemanticEntropy(Measure):
    """samples: n per row; similar: cosine of the embedder from which two answers mean the same (None: equal plain forms)."""

    samples: Annotated[int, Ge(2)] = 8
    temperature: Annotated[float, Gt(0)] = 1.0
    max_new: Annotated[int, Ge(1)] = 64
    similar: Annotated[float, Gt(0), Le(1)] | None = None

    def entropies(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> list[float]:
        """Semantic entropy of each row, in nats."""
        need(rows, ("prompt",), self.name)
        drawn = sampled(subject, prompts(rows), self.samples, self.temperature, self.max_new, ctx.seed)
        return [semantic_entropy(self._clusters(texts, ctx)) for texts in drawn]

    def _clusters(self, texts: Sequence[str], ctx: MeasureContext) -> list[int]:
        if self.similar is None:
            return meanings(texts)
        vectors, least = embedded(texts, ctx, self.name), self.similar
        close = (vectors @ vectors.T >= least - 1e-9).tolist()
        return clusters(len(texts), lambda i, j: close[i][j])

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        found = self.entropies(subject, rows, ctx)
        yield mean_reading("semantic_entropy", found, better=0, unit="nats per row", axis="calibration")
        if all(judged(r, ctx) for r in rows):
            said = greedy(subject, prompts(rows), self.max_new)
            wrong = [correctness(r, a, ctx) < 0.5 for r, a in zip(rows, said, strict=True)]
            value = float(auroc(torch.tensor(found), torch.tensor(wrong)))
            yield Reading("semantic_entropy_auroc", value, (), 1, "AUROC against wrong answers", "calibration")
