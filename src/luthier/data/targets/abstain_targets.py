"""Abstention targets: turn a question on which a model's own answers scatter into a refusal, and keep its answer elsewhere.

Paper: arXiv 2410.17234.
Formula: target = refusal if SE > threshold, else the model's own answer; SE = -sum_C p(C) log p(C) over clusters of meaning
among its sampled answers.
Takes: rows with `responses`, several samples of the model itself; no labels.   Gives: rows with response and
semantic_entropy.
Choose it when: a model makes things up and its knowledge has no labels.   Rather not when: it is surely wrong; samples agree
then.
Relatives: semantic_entropy (the same figure as a measure), vote_pairs (pairs from agreement), nll (what trains on it).

>>> rows = [{"prompt": "a", "responses": ["x", "X", "x"]}, {"prompt": "b", "responses": ["x", "y", "z"]}]
>>> [row["response"] for row in AbstainTargets(threshold=1.0)(rows, DataContext()).rows]
['x', "I don't know"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt, Le, MinLen

from luthier.core import Build, Built, Card, DataContext, Needs, Row, component
from luthier.core.errors import DataError, sentence
from luthier.ops.meanings import clusters, semantic_entropy

CARD = Card(
    name="semantic-entropy abstention targets",
    source="arXiv 2410.17234",
    papers=(38,),
    needs=Needs(batch=("scored", "prompts")),
    cost="none beside the samples",
    limits=(
        "threshold at or above the log of the number of samples: every target is the model's own answer (self-distillation)",
        "threshold < 0: every target is the refusal",
        "no row is lost and their order stays",
    ),
    differs=(
        "the own answer is the column `own` where rows have it (their greedy answer), else the first sample of the largest "
        "cluster; the paper's choice is not verified",
        "answers mean the same if their plain forms are equal, or with `similar` if an embedder's cosine reaches it; the "
        "paper asks an entailment model",
        "long answers are scored as a whole, not claim by claim",
        "threshold 0.7 (just above two equal clusters) is a choice of ours; the paper tunes it",
    ),
    use_when="short answers, samples of the model at hand, no labels, and refusals are wanted where it guesses",
    avoid_when="every answer is worded anew; give an embedder and `similar`",
    relatives=("measure.calibration.semantic_entropy", "measure.calibration.abstention", "data.pairs.vote_pairs"),
    mechanism="data builder",
)


def target(responses: Sequence[str], cluster: Sequence[int], threshold: float, refusal: str, own: str | None) -> str:
    """The refusal where the clusters' entropy is above the threshold, else `own`, or a sample of the largest cluster."""
    if semantic_entropy(cluster) > threshold:
        return refusal
    return responses[cluster.index(Counter(cluster).most_common(1)[0][0])] if own is None else own


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class AbstainTargets(Build):
    """threshold: semantic entropy in nats above which the target is the refusal; similar: cosine of the embedder from which
    two answers mean the same (None: equal plain forms)."""

    makes: ClassVar[str] = "text"
    threshold: float = 0.7
    refusal: Annotated[str, MinLen(1)] = "I don't know"
    similar: Annotated[float, Gt(0), Le(1)] | None = None

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Built:
        """Raises DataError for a row with fewer than two samples, and for `similar` without an embedder."""
        if self.similar is not None and ctx.embed is None:
            raise DataError(
                sentence("abstain_targets with similar", "an embedder", "none", "Name one, or leave similar out")
            )
        made: list[Row] = [self._row(row, i + 1, ctx) for i, row in enumerate(rows)]
        refused = sum(row["response"] == self.refusal for row in made)
        return Built(made, list(range(len(made))), (f"abstain_targets made {refused} of {len(made)} targets refusals",))

    def _row(self, row: Row, number: int, ctx: DataContext) -> dict[str, Any]:
        given = row.get("responses")
        if not isinstance(given, list | tuple) or len(given) < 2:
            came = f"{given!r} in row {number}"
            raise DataError(
                sentence("abstain_targets", "`responses` with two samples or more", came, "Sample the model")
            )
        texts = [str(r) for r in given]
        cluster = self._clusters(texts, ctx)
        own = None if row.get("own") is None else str(row["own"])
        kept = {k: v for k, v in row.items() if k not in ("responses", "scores", "own", "messages")}
        chosen = target(texts, cluster, self.threshold, self.refusal, own)
        return {**kept, "response": chosen, "semantic_entropy": semantic_entropy(cluster)}

    def _clusters(self, texts: Sequence[str], ctx: DataContext) -> list[int]:
        if self.similar is None or ctx.embed is None:
            plain = [" ".join(t.split()).casefold().removesuffix(".") for t in texts]
            return clusters(len(plain), lambda i, j: plain[i] == plain[j])
        vectors = ctx.embed(texts).double()
        vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        close = (vectors @ vectors.T >= self.similar - 1e-9).tolist()
        return clusters(len(texts), lambda i, j: close[i][j])
