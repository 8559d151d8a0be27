"""LiNeS: scale what tuning changed by a factor that rises with depth.

Paper: arXiv 2410.17146.   Formula: theta = theta_0 + (alpha + beta (l - 1) / (L - 1)) tau in block l of L.
Takes: a base and one model tuned from it, or several with any merge rule.   Gives: one model.
Choose it when: tuning hurt other tasks, or merged tasks interfere.   Rather not when: there is no sequence of blocks.
Relatives: wise_ft and task_arithmetic (one factor for all depths).

>>> scale_by_depth(torch.tensor([1.0]), torch.tensor([3.0]), depth=0.5, alpha=0.2, beta=0.8)
tensor([2.2000])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from luthier.core import Card, MergeRule, Site, component
from luthier.core.errors import Refused, sentence
from luthier.merge._rule import MergeView, Rule, by_entries, prepared, shares

CARD = Card(
    name="LiNeS",
    source="arXiv 2410.17146",
    papers=(43,),
    cost="as the inner rule; alpha = None adds one pass over all weights",
    limits=(
        "beta = 0 scales every site by alpha: task arithmetic",
        "alpha = 1, beta = 0 gives the inner merge, for one model that model",
        "alpha = beta = 0 gives the base",
        "the first block gets alpha and the last alpha + beta exactly",
    ),
    differs=(
        "sites outside of blocks get alpha, as in the official code; `after: last` gives those behind them alpha + "
        "beta",
        "blocks are counted within their stack, so that each tower of a two-tower model reaches alpha + beta",
        "a single block counts as the last",
    ),
    use_when=(
        "the shallow layers of a tuned or merged model should stay near the base; for one model take beta = 1 - alpha"
    ),
    relatives=("merge.average.wise_ft", "merge.task_vectors.task_arithmetic"),
    mechanism="merge",
)


def scale_by_depth(base: Tensor, merged: Tensor, *, depth: float, alpha: float, beta: float) -> Tensor:
    """base + (alpha + beta * depth) (merged - base) for tensors of one shape; depth 0 is the first block, 1 the
    last."""
    factor = alpha + beta * depth
    return merged if factor == 1 else base + factor * (merged - base)


def depth_at(at: Site, after: Literal["first", "last"] = "first") -> float:
    """Depth that LiNeS gives a site: that of its block; outside of blocks 0, or by `after` = last the site's own."""
    return at.depth if at.block >= 0 or after == "last" else 0.0


def task_alpha(summed: float, merged: float, models: int) -> float:
    """alpha for several tasks: ||sum of task vectors||_1 / ||merged task vector||_1 / number of tasks."""
    return summed / merged / models


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LiNeS(Rule):
    """alpha: factor of the first block (None: from task count and norms, see task_alpha); beta: rise to the last block;
    inner: the rule that merges the models (None: their task vectors are summed); after: how sites behind the blocks
    count."""

    alpha: float | None = 0.2
    beta: float = 0.8
    inner: MergeRule | None = None
    after: Literal["first", "last"] = "first"

    def prepare(self, view: MergeView) -> LiNeS:
        shares("lines", None, view.models)
        if all(s.block < 0 for s in view.sites):
            raise Refused(
                sentence(
                    "lines",
                    "numbered blocks in the tensor names",
                    "none",
                    "Use task_arithmetic: depth has no meaning here",
                )
            )
        ready = self if self.inner is None else replace(self, inner=prepared(self.inner, view))
        if self.alpha is not None:
            return ready
        summed = merged = 0.0
        for base, deltas, at in view.tensors():
            summed += float(sum(deltas[1:], start=deltas[0]).abs().sum())
            merged += float((ready._merged(base, deltas, at) - base).abs().sum())
        if merged == 0:
            raise Refused(
                sentence(
                    "lines", "models that differ from the base", "no difference", "Check the models, or give alpha"
                )
            )
        return replace(ready, alpha=task_alpha(summed, merged, view.models))

    def by_entries(self) -> bool:
        return self.inner is None or by_entries(self.inner)

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        if self.alpha is None:
            raise Refused(
                sentence("lines", "alpha, or a merge of whole models that fits it", "one tensor", "Give alpha")
            )
        merged = self._merged(base, deltas, at)
        return scale_by_depth(base, merged, depth=depth_at(at, self.after), alpha=self.alpha, beta=self.beta)

    def _merged(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        return base + sum(deltas[1:], start=deltas[0]) if self.inner is None else self.inner(base, deltas, at)
