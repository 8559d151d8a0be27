"""Edit success: does an edited model give the new answers, also to reworded questions, and nothing else anew?

Formula: efficacy = share of edits with the new answer to their own prompt; generalisation = the same for the reworded
prompt; locality = share of unrelated prompts that are answered as before the edit.
Takes: rows with prompt, answer (the new one), paraphrase and locality (an unrelated prompt).   Gives: one item per row each.
Choose it when: facts were edited or unlearned.   Rather not when: answers are long; greedy texts are compared as a whole.
Relatives: exact_match (efficacy alone), old_data (locality by likelihood).

>>> harmonic([1.0, 0.5, 0.5])
0.6
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._answers import accepted, normalise
from luthier.measure._rows import mean_reading, need, prompts
from luthier.measure._subject import greedy

CARD = Card(
    name="edit success",
    source="standard",
    needs=Needs(batch=("prompts", "text")),
    cost="three greedy generations per row, and one by the model before",
    limits=(
        "a model against itself: locality 1",
        "a model that gives the new answer to everything: efficacy and generalisation 1, locality 0",
        "the score is 0 where one of the three is 0",
    ),
    differs=(
        "answers are whole greedy texts in plain form; much of the editing literature compares single tokens under the true "
        "prefix, which the benchmark code of LocFT (read) gives up too",
        "locality compares with the model before the edit, not with a list of true answers",
    ),
    use_when="an edit or unlearning method is judged",
    avoid_when="rows have no unrelated prompt beside them",
    relatives=("measure.quality.exact_match", "measure.forgetting.old_data", "edit.locate.locft"),
    mechanism="accuracy",
)


def harmonic(values: Sequence[float]) -> float:
    """Harmonic mean of numbers in [0, 1]; 0 where one is 0."""
    return 0.0 if min(values) == 0 else round(len(values) / sum(1 / v for v in values), 15)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class EditSuccess(Measure):
    """max_new: longest answer in tokens. Readings: edit_efficacy, edit_generalisation, edit_locality, edit_score (their
    harmonic mean)."""

    max_new: Annotated[int, Ge(1)] = 16

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt", "answer", "paraphrase", "locality"), self.name)
        right = []
        for asked in (prompts(rows), [r["paraphrase"] for r in rows]):
            said = greedy(subject, asked, self.max_new)
            right.append([float(normalise(t) in accepted(r)) for t, r in zip(said, rows, strict=True)])
        beside = [r["locality"] for r in rows]
        now, before = (greedy(s, beside, self.max_new) for s in (subject, subject.base()))
        right.append([float(normalise(a) == normalise(b)) for a, b in zip(now, before, strict=True)])
        made = []
        for name, items in zip(("efficacy", "generalisation", "locality"), right, strict=True):
            made.append(mean_reading(f"edit_{name}", items, better=1, unit="share of edits", axis="quality"))
        yield from made
        yield Reading("edit_score", harmonic([r.value for r in made]), (), 1, "harmonic mean of the three", "quality")
