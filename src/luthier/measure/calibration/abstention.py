"""Abstention: how often does the model answer, how often is it right then, and how far is that from always and always?

Paper: arXiv 2410.17234 names the two figures and a distance made of them.
Formula: engagement e = answered / n; accuracy a = right / answered; distance = sqrt((1 - a)^2 + (1 - e)^2).
Takes: rows with prompt and a verifier or answer; greedy answers that begin with the refusal count as abstentions.
Gives: abstention_engagement (one item per row), abstention_accuracy, abstention_distance (the smaller the better).
Choose it when: the model was taught to say that it does not know.   Rather not when: it never refuses; then exact_match.
Relatives: semantic_entropy, exact_match.

>>> figures([True, True, False], [1.0, 0.0, 0.0])
(0.6666666666666666, 0.5, 0.6009252125773316)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, MinLen

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._answers import correctness, need_judge, normalise
from luthier.measure._rows import mean_reading, need, prompts
from luthier.measure._subject import greedy

CARD = Card(
    name="abstention",
    source="accuracy and engagement after arXiv 2410.17234; the distance is ours",
    needs=Needs(batch=("prompts", "text")),
    cost="one greedy generation per row",
    limits=(
        "always answered and always right: engagement 1, accuracy 1, distance 0",
        "never answered: engagement 0, accuracy 0, distance sqrt(2)",
        "an answer that was right and becomes a refusal raises the distance",
    ),
    differs=(
        "the paper's accuracy-engagement distance could not be read; this one is the Euclidean distance to the point (1, 1)",
        "without any answer the accuracy counts as 0",
    ),
    use_when="refusals are part of the task",
    avoid_when="refusals have no fixed beginning",
    relatives=("measure.calibration.semantic_entropy", "data.targets.abstain_targets"),
    mechanism="accuracy",
)


def figures(answered: Sequence[bool], correct: Sequence[float]) -> tuple[float, float, float]:
    """(engagement, accuracy among the answered, distance) from whether each row was answered and how right it was."""
    engagement = sum(answered) / len(answered)
    right = math.fsum(c for a, c in zip(answered, correct, strict=True) if a)
    accuracy = right / sum(answered) if any(answered) else 0.0
    return engagement, accuracy, math.hypot(1 - accuracy, 1 - engagement)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Abstention(Measure):
    """refusal: how an abstention begins (letter case and white space aside); max_new: longest answer in tokens."""

    refusal: Annotated[str, MinLen(1)] = "I don't know"
    max_new: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt",), self.name)
        need_judge(rows, ctx, self.name)
        said = greedy(subject, prompts(rows), self.max_new)
        answered = [not normalise(text).startswith(normalise(self.refusal)) for text in said]
        correct = [correctness(r, a, ctx) if on else 0.0 for r, a, on in zip(rows, said, answered, strict=True)]
        _, accuracy, distance = figures(answered, correct)
        items = [float(a) for a in answered]
        yield mean_reading("abstention_engagement", items, better=0, unit="share of rows", axis="calibration")
        yield Reading("abstention_accuracy", accuracy, (), 1, "share of answered rows", "calibration")
        yield Reading("abstention_distance", distance, (), -1, "distance to always right", "calibration")
