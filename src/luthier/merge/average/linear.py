"""Linear merge: a weighted average of models.

Source: standard.   Formula: sum_i w_i theta_i / sum_i w_i, or sum_i w_i theta_i where not normalised.
Takes: models of one architecture.   Gives: one model.
Choose it when: tunings of one base lie close together.   Rather not when: they learned different tasks; add vectors.
Relatives: soup (equal weights), wise_ft (base and one model), task_arithmetic (sums of deltas).

>>> linear([torch.tensor([1.0]), torch.tensor([4.0])], (2.0, 1.0))
tensor([2.])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Card, Site, component
from luthier.core.errors import Refused, sentence
from luthier.merge._rule import MergeView, Rule, shares, weights_of

CARD = Card(
    name="linear merge",
    source="standard",
    cost="one pass over each model's weights",
    limits=(
        "copies of one model give that model bit for bit",
        "weight 1 on one model and 0 on the others gives that model",
        "permuting models with their weights changes nothing but rounding",
        "for a linear model it equals the same average of outputs",
    ),
    use_when="you have several tunings of one base and know how much each should count",
    avoid_when="the models were not tuned from one base: their average is no model",
    relatives=("merge.average.soup", "merge.task_vectors.task_arithmetic"),
    mechanism="merge",
    tags=("permutation",),
)


def linear(models: Iterable[Tensor], weights: Sequence[float], normalise: bool = True) -> Tensor:
    """Weighted average (or sum, where not normalised) of tensors of one shape; one model is in memory at a time.

    Raises Refused when the weights sum to 0 and are to be normalised, ValueError when their number is not that of the
    models.
    """
    total = sum(weights)
    if normalise and total == 0:
        raise Refused(
            sentence(
                "linear", "weights with a sum other than 0", f"{tuple(weights)}", "Change them or set normalise: false"
            )
        )
    out: Tensor | None = None
    for model, weight in zip(models, weights, strict=True):
        out = model * weight if out is None else torch.add(out, model, alpha=weight)
    if out is None:
        raise Refused(sentence("linear", "at least one model", "none", "List them under `models`"))
    return out / total if normalise and total != 1 else out


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Linear(Rule):
    """weights: one per model in the recipe's order (None: equal); normalise: divide by their sum."""

    weights: tuple[float, ...] | None = None
    normalise: bool = True

    def prepare(self, view: MergeView) -> Linear:
        total = sum(shares("linear", self.weights, view.models))
        if self.normalise and total == 0:
            raise Refused(
                sentence(
                    "linear",
                    "weights with a sum other than 0",
                    f"{self.weights}",
                    "Change them or set normalise: false",
                )
            )
        return self

    def by_entries(self) -> bool:
        return True

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        return linear(weights_of(base, deltas), shares("linear", self.weights, len(deltas)), self.normalise)
