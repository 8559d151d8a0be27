"""Sets of texts whose diversity is measured, and what texts are made of.

Scope (arXiv 2310.06452): "per_input" looks at the samples of one prompt, "across_inputs" at one sample of every prompt.
A model can lose one and keep the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from luthier.core import Measure, MeasureContext, Reading, Row, Subject
from luthier.measure._rows import mean_reading, need, prompts
from luthier.measure._subject import sampled

Scope = Literal["per_input", "across_inputs"]
T = TypeVar("T")
WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and single punctuation signs, letter case kept.

    >>> words("It's red, Red.")
    ['It', "'", 's', 'red', ',', 'Red', '.']
    """
    return WORD.findall(text)


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none if there are fewer tokens.

    >>> ngrams("abc", 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


class SetMeasure(Measure):
    """A figure of a set of outputs, read among the samples of one prompt or across prompts.

    Its components have the parameters scope, samples (per prompt), temperature and max_new.
    """

    scope: Scope
    samples: int
    temperature: float
    max_new: int

    def __post_init__(self) -> None:
        if self.scope == "per_input" and self.samples < 2:
            raise ValueError(f"samples requires at least 2 for the scope per_input; got {self.samples}. Raise samples or "
                             "use across_inputs.")  # fmt: skip

    def drawn(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> list[list[str]]:
        """Outputs by row and sample. Raises DataError without prompts, or with one row where rows are to be compared."""
        need(rows, ("prompt",), self.name, least=1 if self.scope == "per_input" else 2)
        return sampled(subject, prompts(rows), self.samples, self.temperature, self.max_new, ctx.seed)

    def reading(self, what: str, of: Callable[[Sequence[T]], float], sets: Sequence[Sequence[T]], unit: str) -> Reading:
        """The reading `<what>_<scope>` of `of` (a set -> figure) over outputs by row and sample.

        per_input: mean over rows of the figure of the row's samples, one item per row. across_inputs: mean over k of the
        figure of the k-th samples of all rows; it has no items, since sets of all rows are no independent parts.
        """
        name = f"{what}_{self.scope}"
        if self.scope == "per_input":
            return mean_reading(name, [of(one) for one in sets], better=1, unit=unit, axis="diversity")
        figures = [of(one) for one in zip(*sets, strict=True)]
        return Reading(name, sum(figures) / len(figures), (), 1, unit, "diversity")
