"""Generator-validator consistency: does the model stand by its own answers when asked whether they are right?

Paper: arXiv 2310.01846 (consistency measure).
Formula: mean over rows of ([own answer accepted] + [foil rejected]) / 2.
An answer is accepted when log p(yes) > log p(no) after the validator's question.
Takes: rows with prompt.   Gives: gv_consistency, its two halves, and, where answers can be judged, validator_accuracy.
Choose it when: the model should know what it knows; no labels are needed.
Rather not when: questions have many right answers.
Relatives: paraphrase (two wordings of one question).

>>> fill("{prompt} | {answer}?", "2 + 2", "4")
'2 + 2 | 4?'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure._answers import correctness, judged, normalise
from luthier.measure._rows import Prompt, asking, has, mean_reading, need, prompts, question
from luthier.measure._subject import greedy, scored

CARD = Card(
    name="GV-consistency",
    source="arXiv 2310.01846",
    papers=(9,),
    needs=Needs(batch=("prompts", "text")),
    cost="one greedy generation per row, and four forward passes over short texts",
    limits=(
        "a validator that accepts just its own answers: 1",
        "one that always contradicts: 0",
        "one that always says yes: 0.5 with foils",
    ),
    differs=(
        "the paper reads the validator's generated verdict; here the verdicts' log-probs decide, so every row has one",
        "foils are answers to other rows that differ from the row's own: a validator that always agrees scores 0.5; "
        "foils = false gives the plain share of accepted own answers",
        "the question to the validator is one general template; the paper has one per task",
    ),
    use_when="self-checks, self-training or best-of-n by the model itself are planned",
    avoid_when="the model cannot follow a yes/no question at all; the reading is then near 0.5",
    relatives=("measure.consistency.paraphrase",),
    mechanism="consistency of answers",
)

TEMPLATE = "{prompt}\nProposed answer: {answer}\nIs the proposed answer correct? Answer yes or no."


def fill(template: str, prompt: str, answer: str) -> str:
    """The template with its two places filled; braces elsewhere, also in the texts, stay as they are."""
    head, _, tail = template.partition("{answer}")
    return head.replace("{prompt}", prompt) + answer + tail.replace("{prompt}", prompt)


def foils(own: Sequence[str], references: Sequence[str]) -> list[str]:
    """For every row an answer that differs from its own: the next row's that does, going round, else a reference.

    Empty answers are no foils. Raises DataError when a row has none.
    """
    pool = [(a, normalise(a)) for a in own], [(r, normalise(r)) for r in references]
    out: list[str] = []
    for i, (answer, key) in enumerate(pool[0]):
        order = [(i + step) % len(own) for step in range(1, len(own) + 1)]
        found = next((text for texts in pool for text, k in (texts[j] for j in order) if k not in ("", key)), None)
        if found is None:
            came = f"{answer!r} everywhere"
            who = f"generator_validator, row {i}"
            raise DataError(sentence(who, "another answer than its own", came, "Give more rows, or set foils: false"))
        out.append(found)
    return out


def verdicts(subject: Subject, asked: Sequence[Prompt], yes: str, no: str, who: str) -> Tensor:
    """log p(yes) - log p(no) after each validator's question, (n,) in nats."""
    sums, _ = scored(subject, [*asked, *asked], [yes] * len(asked) + [no] * len(asked), who)
    return sums[: len(asked)] - sums[len(asked) :]


def _reference(row: Row) -> str:
    given = row["answer"] if has(row, "answer") else row.get("response") or ""
    return str(given[0] if isinstance(given, list | tuple) else given)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class GeneratorValidator(Measure):
    """template: the question with {prompt} and {answer}; a row's `validator` replaces it. yes, no: the verdicts."""

    template: str = TEMPLATE
    yes: str = "yes"
    no: str = "no"
    foils: bool = True
    max_new: Annotated[int, Ge(1)] = 64

    def __post_init__(self) -> None:
        if "{answer}" not in self.template or not self.yes or not self.no or self.yes == self.no:
            raise ValueError("template requires the place {answer}, and yes and no two different words. Correct them.")

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        need(rows, ("prompt",), self.name, least=2 if self.foils else 1)
        own = greedy(subject, prompts(rows), self.max_new)
        other = foils(own, [_reference(r) for r in rows]) if self.foils else []
        shown = [*zip(rows, own, strict=True), *zip(rows, other, strict=False)]
        margin = verdicts(subject, [self._ask(r, a) for r, a in shown], self.yes, self.no, self.name)
        said_yes = [m > 0 for m in margin.tolist()]
        accepts = [float(y) for y in said_yes[: len(rows)]]
        rejects = [float(not y) for y in said_yes[len(rows) :]]
        both = [(a + r) / 2 for a, r in zip(accepts, rejects, strict=True)] if self.foils else accepts
        unit = "share" if self.foils else "share of own answers accepted"
        yield mean_reading("gv_consistency", both, better=1, unit=unit, axis="consistency")
        if self.foils:
            yield mean_reading("gv_accepts_own", accepts, better=0, unit="share of own answers", axis="consistency")
            yield mean_reading("gv_rejects_foil", rejects, better=0, unit="share of foils", axis="consistency")
        if all(judged(r, ctx) for r in rows):
            right = [float(y == (correctness(r, a, ctx) >= 0.5)) for y, (r, a) in zip(said_yes, shown, strict=True)]
            items = [sum(right[i :: len(rows)]) / len(right[i :: len(rows)]) for i in range(len(rows))]
            yield mean_reading(
                "validator_accuracy", items, better=1, unit="share of right verdicts", axis="consistency"
            )

    def _ask(self, row: Row, answer: str) -> Prompt:
        template = str(row["validator"]) if has(row, "validator") else self.template
        return asking(row["prompt"], fill(template, question(row["prompt"]), answer))
