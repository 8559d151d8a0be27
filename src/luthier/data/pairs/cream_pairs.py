"""Best against worst by the model's own scores, with the measured agreement between this ranking and an earlier one.

Paper: arXiv 2410.12735 (CREAM).   Formula: C = (tau + 1) / 2 with Kendall's tau of `scores` and `scores_before`, as a mean over
all rows or for each row; the pair is the best and the worst answer by `scores`.
Takes: scored rows whose column `scores_before` holds the scores that an earlier model gave.   Gives: preference rows with the
columns consistency and gap.
Choose it when: a model ranks its own answers.   Rather not when: scores are trusted; then best against worst needs no C.
Relatives: the objective cream (what reads the consistency), divpo, vote_pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.core import Build, Built, Card, DataContext, Needs, Row, component
from luthier.data.pairs._build import answers_of, gather, paired
from luthier.ops.ranks import kendall, same_ends, spearman

CARD = Card(
    name="CREAM pairs",
    source="arXiv 2410.12735",
    papers=(236,),
    needs=Needs(batch=("scored",)),
    cost="none beside the scores of two models",
    limits=(
        "equal rankings: consistency 1; opposite rankings: 0",
        "kendall and spearman equal scipy's where nothing is tied",
        "over all rows the consistency is the mean of each row's",
    ),
    differs=(
        "a pair of answers that a ranking ties counts neither for nor against; the released code breaks ties by position",
        "`ends` asks whether best and worst agree, as the paper says; the released code compares the ranks of the first and last "
        "answer",
        "the mean is over rows that give a pair",
    ),
    use_when="a model judges its own answers and an earlier version of it can judge them too",
    avoid_when="there is one ranking only",
    relatives=("objectives.preference.cream", "data.pairs.divpo", "data.pairs.vote_pairs"),
)


def consistency(now: Tensor, before: Tensor, by: Literal["kendall", "spearman", "ends"] = "kendall") -> Tensor:
    """Agreement in [0, 1] of two lists of scores (..., n): (tau + 1) / 2, (rho + 1) / 2, or 1 where both ends agree."""
    if by == "ends":
        return same_ends(now, before)
    return ((kendall if by == "kendall" else spearman)(now, before) + 1) / 2


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class CreamPairs(Build):
    """by: how agreement is measured; over: one consistency for all rows, or each row's own."""

    by: Literal["kendall", "spearman", "ends"] = "kendall"
    over: Literal["all", "row"] = "all"

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Built:
        built = gather(rows, self._pair, self.id)
        each = [float(r["consistency"]) for r in built.rows]
        mean = sum(each) / len(each)
        note = f"{self.id} found a mean consistency of {mean:.3f} ({self.by})"
        shown = [{**r, "consistency": mean} for r in built.rows] if self.over == "all" else built.rows
        return Built(list(shown), built.source, (*built.notes, note))

    def _pair(self, row: Row, number: int) -> dict[str, Any] | str:
        now, before = answers_of(row, number, self.id), answers_of(row, number, self.id, "scores_before")
        if len(set(now.scores)) < 2:
            return "all scores are equal"
        a, b = (torch.tensor(x.scores, dtype=torch.float64) for x in (now, before))
        agreed = float(consistency(a, b, self.by))
        return paired(row, now, int(a.argmax()), int(a.argmin()), consistency=agreed)
