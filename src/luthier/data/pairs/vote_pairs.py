"""Pairs by vote: the answer that most samples agree on against the one that fewest do, weighted by the difference.

Paper: arXiv 2411.04109 (ScPO).   Formula: V(y) = number of samples with y's final answer; chosen has the most votes, rejected
the fewest; w = (V(chosen) - V(rejected)) / k for k samples.
Takes: rows with `responses`; scores are not needed.   Gives: preference rows with the columns weight and gap.
Choose it when: questions have one final answer and no label.   Rather not when: answers are free texts that never agree.
Relatives: the objective scpo (what reads the weight), divpo, cream_pairs.

>>> votes(["7", "7", "8"])
[2, 2, 1]
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

from luthier.core import Build, Built, Card, DataContext, Needs, Row, component
from luthier.core.errors import ConfigError, sentence
from luthier.data.pairs._build import Answers, gather, paired

CARD = Card(
    name="ScPO pairs",
    source="arXiv 2411.04109",
    papers=(105,),
    needs=Needs(batch=("scored",)),
    cost="none beside the samples",
    limits=(
        "all samples agree, or all answers have equally many votes: no pair",
        "the weight is in (0, 1), votes of chosen minus votes of rejected over the samples",
        "the chosen answer has `least` of the votes or more",
    ),
    differs=(
        "samples without a final answer have no vote, are never chosen, and may be rejected, with no votes",
        "of samples with equally many votes the first one is taken",
        "a row with the column `answer` can be given as a pair of weight 1 (gold: true): the first right against the first wrong "
        "sample, which is the paper's semi-supervised form",
        "the score of a sample is its share of the votes, so `gap` is the weight; the row's own scores are not read",
    ),
    use_when="questions with one final answer, samples of a model, no labels",
    avoid_when="answers cannot be compared by their final form",
    relatives=("objectives.preference.scpo", "data.pairs.divpo", "data.pairs.cream_pairs"),
)


def final_answer(text: str, pattern: str | None = None) -> str | None:
    """What is voted on: the last match of a pattern (its first group, if it has one), or the whole text; in plain form."""
    if pattern is None:
        return " ".join(text.split()).casefold() or None
    found = list(re.finditer(pattern, text, re.DOTALL))
    if not found:
        return None
    last = found[-1].group(1) if found[-1].re.groups else found[-1].group()
    return " ".join((last or "").split()).casefold() or None


def votes(answers: Sequence[str | None]) -> list[int]:
    """Number of answers equal to each one, itself counted; none for a missing answer."""
    count = Counter(a for a in answers if a is not None)
    return [0 if a is None else count[a] for a in answers]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class VotePairs(Build):
    """pattern: where the final answer stands in a text, as a regular expression (None: the text is the answer).

    least: smallest share of votes of the chosen answer; gold: rows that hold the right `answer` give right against wrong.
    """

    pattern: str | None = None
    least: Annotated[float, Ge(0), Le(1)] = 0.5
    gold: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern or "")
        except re.error as fault:
            raise ConfigError(sentence("vote_pairs", "a regular expression as pattern", f"{self.pattern!r} ({fault})",
                                       "Correct it")) from fault  # fmt: skip

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Built:
        return gather(rows, self._pair, self.id)

    def _pair(self, row: Row, number: int) -> dict[str, Any] | str:
        responses = [str(r) for r in row.get("responses") or ()]
        if len(responses) < 2:
            return "fewer than two answers"
        found = [final_answer(r, self.pattern) for r in responses]
        if self.gold and row.get("answer") is not None:
            return self._known(row, responses, found)
        count = votes(found)
        best, worst = count.index(max(count)), count.index(min(count))
        if count[best] < max(1, self.least * len(responses)):
            return f"no answer has {self.least:.0%} of the votes"
        if count[best] == count[worst]:
            return "all answers have equally many votes"
        shares = Answers(responses, [c / len(responses) for c in count])
        return paired(row, shares, best, worst, weight=shares.scores[best] - shares.scores[worst])

    def _known(self, row: Row, responses: list[str], found: list[str | None]) -> dict[str, Any] | str:
        right = [a is not None and a == final_answer(str(row["answer"])) for a in found]
        if all(right) or not any(right):
            return "all answers are right" if all(right) else "no answer is right"
        known = Answers(responses, [float(r) for r in right])
        return paired(row, known, right.index(True), right.index(False), weight=1.0)
