"""Intruder dimensions: how many strong directions of the tuned weights did the base weights not have?

Paper: arXiv 2410.21228.
Formula: a left singular vector u_j of a tuned matrix, j <= k, is an intruder if max_i |<u_j, v_i>| < epsilon over all left
singular vectors v_i of the base matrix.
Takes: a run whose changed matrices can be read (merged); no rows.   Gives: their number, and the share of the k strongest.
Choose it when: asking whether an adapter moved the weights as full tuning would; the paper ties intruders to forgetting.
Rather not when: only vectors, prompts or activations train; matrices are huge (two singular value decompositions each).
Relatives: shrink_intruders (takes them back), token_shift (what tuning did to the answers).

>>> import torch
>>> W = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])); even = torch.full((4, 1), 0.5)
>>> intruders(W, W).sum().item(), intruders(W, W + 40 * even @ even.T, threshold=0.6).sum().item()
(0, 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, cast

from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure._subject import changed_weights
from luthier.ops.spectra import directions

CARD = Card(
    name="intruder dimensions",
    source="arXiv 2410.21228",
    papers=(39,),
    needs=Needs(handles=("weights",)),
    cost="two singular value decompositions of every changed matrix",
    limits=(
        "a matrix against itself or any positive multiple (distinct singular values): none",
        "a strong c u v^T with u spread evenly over all base directions (1 / sqrt(d) < epsilon): exactly one",
        "the same with u any left singular vector of the base, the weakest included: none",
        "signs of singular vectors do not matter",
    ),
    differs=(
        "counting, k = 10 and epsilon = 0.5 as in the authors' find_intruder_dimensions.py, read and compared in a test",
        "matrices that training left alone are not decomposed: they have none",
        "directions of singular value 0 count on neither side; the script takes whatever vectors the decomposition gives "
        "there",
        "the share divides by the directions looked at; the script gives the sum alone",
    ),
    use_when="you compare adapters and full tuning, ranks or scales, or look for the cause of forgetting",
    avoid_when="the adaptation changes no matrix",
    relatives=("merge.scale.shrink_intruders", "measure.diagnose.token_shift"),
    mechanism="singular directions",
)


def intruders(base: Tensor, tuned: Tensor, top: int = 10, threshold: float = 0.5) -> Tensor:
    """Which of the `top` strongest directions of `tuned` are intruders: (out, in) twice -> (k,) bool, strongest first."""
    return directions(base, tuned, top).familiar < threshold


class Intruded(NamedTuple):
    """Findings in one matrix: intruders among the directions looked at, and the ranks (from 1) that they hold."""

    name: str
    intruders: int
    looked_at: int
    ranks: tuple[int, ...]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class IntruderDimensions(Measure):
    """top: strongest directions of each matrix that are looked at (k); threshold: epsilon, below which one is new."""

    top: Annotated[int, Ge(1)] = 10
    threshold: Annotated[float, Gt(0), Le(1)] = 0.5

    def report(self, subject: Subject) -> list[Intruded]:
        """Findings for each matrix that training changed, in model order. Raises DataError where none can be read."""
        found = []
        for name, base, tuned in changed_weights(subject, self.name):
            new = intruders(base, tuned, self.top, self.threshold)
            ranks = cast(list[int], (new.nonzero()[:, 0] + 1).tolist())
            found.append(Intruded(name, len(ranks), len(new), tuple(ranks)))
        return found

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        found = self.report(subject)
        count, looked_at = sum(f.intruders for f in found), sum(f.looked_at for f in found)
        yield Reading("intruder_dimensions", float(count), (), -1, "directions", "drift")
        yield Reading(
            "intruder_share", count / max(looked_at, 1), (), -1, f"share of the {self.top} strongest", "drift"
        )
