"""Model soup: the plain average of several fine-tunes of one base.

Paper: arXiv 2203.05482, the uniform soup (recipe of section 2).   Formula: theta = (1 / k) sum_i theta_i.
Takes: fine-tunes of one initialisation.   Gives: one model at the cost of one.
Choose it when: a sweep left several good models.   Rather not when: some are bad; greedy_soup leaves them out.
Relatives: greedy_soup and learned_soup (weights by held-out data), linear (weights by hand).

>>> soup([torch.tensor([1.0]), torch.tensor([3.0])])
tensor([2.])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from luthier.core import Card, Site, component
from luthier.merge._rule import MergeView, Rule, shares, weights_of
from luthier.merge.average.linear import linear

CARD = Card(
    name="uniform soup",
    source="arXiv 2203.05482",
    papers=(120,),
    cost="one pass over each model's weights",
    limits=(
        "copies of one model give that model bit for bit",
        "for a linear model it equals the average of outputs",
        "permuting the models changes nothing but rounding",
    ),
    use_when="you tuned one base several times (other seeds, rates, data orders) and all turned out well",
    avoid_when="the fine-tunes start from different weights",
    relatives=("merge.search.greedy_soup", "merge.search.learned_soup", "merge.average.linear"),
    mechanism="merge",
    tags=("permutation",),
)


def soup(models: Sequence[Tensor]) -> Tensor:
    """Mean of tensors of one shape."""
    return linear(models, (1.0,) * len(models))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Soup(Rule):
    """No parameters: every model counts the same; the base itself counts only if it is listed as a model."""

    def prepare(self, view: MergeView) -> Soup:
        shares("soup", None, view.models)
        return self

    def by_entries(self) -> bool:
        return True

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        return linear(weights_of(base, deltas), (1.0,) * len(deltas))
