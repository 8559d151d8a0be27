"""Does the model answer a question and its paraphrase alike?

Paper: arXiv 2102.01017.
Formula: mean over rows of the share of paraphrases whose greedy answer equals that of the prompt.
Takes: rows with prompt and paraphrase (one, or a list of texts).   Gives: items in [0, 1].
Choose it when: one fact can be asked in several ways.
Rather not when: open texts are right in many wordings; then similarity.
Relatives: generator_validator (answering against judging).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._answers import normalise
from luthier.measure._embed import embedded, embedder
from luthier.measure._rows import Prompt, mean_reading, need, prompts
from luthier.measure._subject import greedy

CARD = Card(
    name="paraphrase consistency",
    source="arXiv 2102.01017",
    needs=Needs(batch=("prompts", "text")),
    cost="one greedy generation per prompt and per paraphrase",
    limits=("a subject that ignores the wording: 1", "one whose answers to paraphrases all differ: 0"),
    differs=(
        "the paper compares all pairs of patterns of one fact; here each paraphrase is compared with the prompt itself",
        "agree = similarity: cosine similarity of the answers' embeddings instead of equality, for open texts",
    ),
    use_when="rows carry a second wording of the question",
    avoid_when="a constant answer would pass: read it beside exact_match",
    relatives=("measure.consistency.generator_validator", "measure.quality.exact_match"),
    mechanism="consistency of answers",
)


def wordings(row: Row) -> list[Prompt]:
    """The paraphrases of a row: a text or a list of chat messages is one, a list of texts several."""
    given = row["paraphrase"]
    return list(given) if isinstance(given, list | tuple) and isinstance(given[0], str) else [given]


def agreement(answer: str, others: Sequence[str]) -> float:
    """Share of the other answers that equal the first up to normalisation."""
    return sum(normalise(o) == normalise(answer) for o in others) / len(others)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Paraphrase(Measure):
    """agree: equal answers, or cosine similarity of their embeddings. Reading: paraphrase_agreement."""

    agree: Literal["exact", "similarity"] = "exact"
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt", "paraphrase"), self.name)
        asked = [wordings(row) for row in rows]
        said = iter(greedy(subject, [*prompts(rows), *(w for ws in asked for w in ws)], self.max_new))
        answers = [next(said) for _ in rows]
        others = [[next(said) for _ in ws] for ws in asked]
        if self.agree == "exact":
            items, unit = [agreement(a, o) for a, o in zip(answers, others, strict=True)], "share of equal answers"
        else:
            items = [self._similarity(a, o, ctx) for a, o in zip(answers, others, strict=True)]
            unit = f"cosine similarity, {embedder(ctx)}"
        yield mean_reading("paraphrase_agreement", items, better=1, unit=unit, axis="consistency")

    def _similarity(self, answer: str, others: Sequence[str], ctx: MeasureContext) -> float:
        x = embedded([answer, *others], ctx, self.name)
        return (x[1:] @ x[0]).mean().item()
