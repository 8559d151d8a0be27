"""Task arithmetic: add what each tuning changed to the base.

Paper: arXiv 2212.04089.   Formula: theta = theta_0 + scale * sum_i w_i (theta_i - theta_0).
Takes: a base and models tuned from it on different tasks.   Gives: one model that does all of them, or unlearns one.
Choose it when: several skills should be in one model.   Rather not when: the tasks clash; one scale shrinks them all.
Relatives: lines (scale by depth), linear (average instead of sum).

>>> task_arithmetic(torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([3.0])], scale=0.5)
tensor([3.5000])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Card, Site, component
from luthier.merge._rule import MergeView, Rule, shares

CARD = Card(
    name="task arithmetic",
    source="arXiv 2212.04089",
    cost="one pass over each model's weights",
    limits=(
        "scale = 0 gives the base",
        "one model at scale = 1 gives that model",
        "scale = 1 / k gives the uniform soup of k models",
        "permuting models with their weights changes nothing but rounding",
    ),
    use_when="you want several tuned skills in one model; a negative scale removes what was tuned in",
    relatives=("merge.scale.lines", "merge.average.linear"),
    mechanism="merge",
    tags=("permutation",),
)


def task_arithmetic(
    base: Tensor, deltas: Sequence[Tensor], scale: float = 1.0, weights: Sequence[float] | None = None
) -> Tensor:
    """base + scale * sum_i w_i delta_i for tensors of one shape; weights None are 1 each."""
    total = torch.zeros_like(base)
    for i, weight in enumerate(shares("task_arithmetic", weights, len(deltas))):
        total = torch.add(total, deltas[i], alpha=weight)
    return base + scale * total


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Rule):
    """scale: factor of the summed deltas (may be negative); weights: one per model (None: 1 each)."""

    scale: float = 1.0
    weights: tuple[float, ...] | None = None

    def prepare(self, view: MergeView) -> TaskArithmetic:
        shares("task_arithmetic", self.weights, view.models)
        return self

    def by_entries(self) -> bool:
        return True

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        return task_arithmetic(base, deltas, self.scale, self.weights)
