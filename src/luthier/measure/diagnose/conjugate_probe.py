"""Conjugate probe: did tuning erase a skill, or does it only no longer recognise when to use it?

Paper: arXiv 2309.10105.
Formula: answer through conjugation = s^-1(M(s(prompt))) with an invertible s that takes the prompt away from the tuning data
(another language, scaled labels). Of what the base could do and the tuned model cannot, the part that comes back this way was
suppressed, the rest erased.
Takes: rows with prompt and answer, and the same as `conjugate` = s(prompt) and `conjugate_answer` = s(answer).
Gives: shares of rows: lost, suppressed, erased; and what conjugation does for the base, which it should not help.
Choose it when: a skill is worse after tuning.   Rather not when: no transform leaves the question the same.
Relatives: old_data (how much was lost), tuco (how much tuning acts).

>>> doubled = conjugated(lambda x: x + 1, s=lambda x: 2 * x, inverse=lambda y: y / 2); doubled(3)
3.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._answers import accepted, normalise
from luthier.measure._rows import mean_reading, need, prompts
from luthier.measure._subject import greedy

CARD = Card(
    name="conjugate prompting probe",
    source="arXiv 2309.10105",
    papers=(150,),
    needs=Needs(batch=("prompts", "text")),
    cost="two greedy generations per row, for the model and for its base",
    limits=(
        "s = identity: conjugation is plain evaluation, nothing is suppressed",
        "lost rows are suppressed or erased, never both",
        "a model against itself loses nothing",
    ),
    differs=(
        "rows carry both prompts and both answers: comparing the answer with s(answer) is comparing s^-1 of it with the answer",
        "what counts as suppressed (right before, wrong after, right through conjugation) is decided row by row, in our words",
        "the synthetic regression of the paper is `lab.micro.in_context`; the authors' repository holds language tasks only",
    ),
    use_when="tuning made a skill worse and you must decide between prompting and training again",
    avoid_when="the transformed prompts are as close to the tuning data as the plain ones",
    relatives=("measure.forgetting.old_data", "measure.diagnose.tuco"),
    mechanism="accuracy before and after",
)


def conjugated(
    model: Callable[[Any], Any], s: Callable[[Any], Any], inverse: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """prompt -> inverse(model(s(prompt)))."""
    return lambda prompt: inverse(model(s(prompt)))


class Fate(NamedTuple):
    """What became of a skill on one row; 1 or 0 each."""

    lost: float
    suppressed: float
    erased: float


def fate(before: bool, after: bool, through: bool) -> Fate:
    """From right or wrong before tuning, after it, and after it through conjugation."""
    lost = before and not after
    return Fate(float(lost), float(lost and through), float(lost and not through))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ConjugateProbe(Measure):
    """max_new: longest answer in tokens."""

    max_new: Annotated[int, Ge(1)] = 64

    def _right(self, subject: Subject, asked: Sequence[Any], answers: Sequence[Row]) -> list[bool]:
        said = greedy(subject, asked, self.max_new)
        return [normalise(text) in accepted(row) for text, row in zip(said, answers, strict=True)]

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt", "answer", "conjugate", "conjugate_answer"), self.name)
        sides = (
            (prompts(rows), rows),
            ([r["conjugate"] for r in rows], [{"answer": r["conjugate_answer"]} for r in rows]),
        )
        (before, before_through), (after, through) = (
            [self._right(one, asked, answers) for asked, answers in sides] for one in (subject.base(), subject)
        )
        fates = [fate(*known) for known in zip(before, after, through, strict=True)]
        for name, items in zip(Fate._fields, zip(*fates, strict=True), strict=True):
            yield mean_reading(f"skill_{name}", items, better=-1, unit="share of rows", axis="drift")
        gain = [float(a) - float(b) for a, b in zip(before_through, before, strict=True)]
        yield mean_reading("conjugation_gain_of_base", gain, better=0, unit="share of rows", axis="drift")
