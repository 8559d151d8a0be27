"""Shrink intruders: make the new strong singular directions of tuned weights weaker, and leave all else tuned.

Paper: arXiv 2410.21228.
Formula: W' = W + (scale - 1) sum_j sigma_j u_j v_j^T over the intruders j among the k strongest directions of the tuned W
(largest absolute cosine of u_j with any left singular vector of the base below epsilon).
Takes: a base and one model tuned from it.   Gives: one model.
Choose it when: low-rank tuning cost old skills and cannot be run again.   Rather not when: tuning made no intruders;
wise_ft goes back evenly.
Relatives: intruder_dimensions (counts them), wise_ft (scales the whole change), half_reset (resets whole matrices).

>>> W = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])); even = torch.full((4, 1), 0.5)
>>> torch.linalg.matrix_norm(shrink_intruders(W, W + 40 * even @ even.T, scale=0, threshold=0.6), 2).round().item()
4.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.core import Card, Site, component
from luthier.merge._rule import MergeView, Rule, need_models, weights_of
from luthier.ops.spectra import directions

CARD = Card(
    name="shrink intruders",
    source="arXiv 2410.21228",
    papers=(39,),
    cost="two singular value decompositions of every matrix that tuning changed",
    limits=(
        "scale = 1, or no intruder: the tuned model bit for bit",
        "scale = 0 takes the intruders out: the rest of the tuned spectrum stays",
        "scale = s multiplies exactly the intruders' singular values by s",
        "vectors, embeddings and the head stay tuned",
    ),
    differs=(
        "all intruders among the k strongest directions are scaled; the released code counts them only and has no such "
        "edit, so whether the paper scales one or all is not verified",
        "scale 0.5 is a choice of ours",
        "a matrix that is stored transposed (GPT-2) is judged by the directions of its input side",
    ),
    use_when="a merged low-rank tuning forgot, and the new skill must stay as far as possible",
    avoid_when="you can tune again at a higher rank with the rank-stabilised scale",
    relatives=("measure.diagnose.intruder_dimensions", "merge.average.wise_ft", "merge.scale.half_reset"),
    mechanism="merge",
)


def shrink_intruders(base: Tensor, tuned: Tensor, scale: float = 0.5, top: int = 10, threshold: float = 0.5) -> Tensor:
    """The tuned matrix (out, in) with the singular values of its intruders multiplied by `scale`."""
    if scale == 1 or torch.equal(base, tuned):
        return tuned
    found = directions(base, tuned, top)
    new = found.familiar < threshold
    if not bool(new.any()):
        return tuned
    excess = (found.left[:, new] * found.value[new]) @ found.right[new]
    return (tuned.double() + (scale - 1) * excess).to(tuned.dtype)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ShrinkIntruders(Rule):
    """scale: factor of an intruder's singular value (1 changes nothing); top, threshold: as in intruder_dimensions."""

    scale: Annotated[float, Ge(0), Le(1)] = 0.5
    top: Annotated[int, Ge(1)] = 10
    threshold: Annotated[float, Gt(0), Le(1)] = 0.5

    def prepare(self, view: MergeView) -> ShrinkIntruders:
        need_models("shrink_intruders", 1, view.models, "Merge several models first")
        return self

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        need_models("shrink_intruders", 1, len(deltas), "Merge several models first")
        tuned = next(weights_of(base, deltas))
        if at.kind != "linear" or at.head or tuned.ndim != 2:
            return tuned
        return shrink_intruders(base, tuned, self.scale, self.top, self.threshold)
