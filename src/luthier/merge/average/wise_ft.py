"""WiSE-FT: interpolate between the base and the tuned model.

Paper: arXiv 2109.01903.   Formula: theta = (1 - alpha) theta_0 + alpha theta_1.
Takes: a base and one model tuned from it.   Gives: one model.
Choose it when: tuning cost accuracy under shift.   Rather not when: forgetting sits in the shallow layers; see lines.
Relatives: lines (alpha by depth), half_reset (a half back to the base), task_arithmetic (alpha above 1).

>>> wise_ft(torch.tensor([0.0]), torch.tensor([4.0]), 0.25)
tensor([1.])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from luthier.core import Card, Site, component
from luthier.merge._rule import MergeView, Rule, need_models, weights_of

CARD = Card(
    name="WiSE-FT",
    source="arXiv 2109.01903",
    papers=(317,),
    cost="one pass over both models' weights; a sweep evaluates each alpha",
    limits=(
        "alpha = 0 gives the base and alpha = 1 the tuned model, bit for bit",
        "for a linear model it equals interpolating outputs",
        "for an adapter it equals scaling its merged delta by alpha",
    ),
    differs=("the Fisher-weighted variant of the official code is not part of this component",),
    use_when="you want the base's robustness back at little cost on the tuned task; 0.5 is a good start",
    relatives=("merge.scale.lines", "merge.scale.half_reset"),
    mechanism="merge",
)
S = TypeVar("S")
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def wise_ft(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) base + alpha tuned for tensors of one shape and dtype; ends, and weights that agree, stay exact."""
    if alpha == 0:
        return base
    return tuned if alpha == 1 else torch.lerp(base, tuned, alpha)


def sweep(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    score: Callable[[Mapping[str, Tensor]], S],
    alphas: Sequence[float] = ALPHAS,
) -> tuple[tuple[float, S], ...]:
    """(alpha, score of the interpolated weights) for each alpha, in the given order; one interpolation in memory at a
    time.

    score may return several figures (in distribution, under shift): they are handed back as they come.
    """
    from luthier.merge.executor import merge_tensors

    return tuple((alpha, score(merge_tensors(WiseFT(alpha=alpha), base, [tuned]))) for alpha in alphas)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class WiseFT(Rule):
    """alpha: 0 is the base, 1 the tuned model."""

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5

    def prepare(self, view: MergeView) -> WiseFT:
        need_models("wise_ft", 1, view.models, "Average several models first, or use soup")
        return self

    def by_entries(self) -> bool:
        return True

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        need_models("wise_ft", 1, len(deltas), "Average several models first, or use soup")
        return wise_ft(base, next(weights_of(base, deltas)), self.alpha)
