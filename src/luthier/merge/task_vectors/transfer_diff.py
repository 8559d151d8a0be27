"""Fine-tuning transfer: add to a new base what tuning changed in an older one.

Paper: arXiv 2503.20110.   Formula: theta = target_base + scale * (source_tuned - source_base).
Takes: the target base; the source's base and its tuned model, in this order, or one adapter trained on the source base.
Gives: one model of the target's version; without training, or as a better start for it (recycle, then tune).
Choose it when: a new version of a base appears and tuning was done on the old one.
Rather not when: the versions are not linearly connected (see barrier) or have other shapes.
Relatives: task_arithmetic (models tuned from the base itself).

>>> transfer_diff(torch.tensor([5.0]), source=torch.tensor([1.0]), tuned=torch.tensor([3.0]))
tensor([7.])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Card, Site, component
from luthier.core.errors import Refused, sentence
from luthier.merge._rule import Deltas, MergeView, Rule, weights_of

CARD = Card(
    name="fine-tuning transfer",
    source="arXiv 2503.20110",
    papers=(122,),
    cost="one pass over the weights of three models",
    limits=(
        "target base = source base, scale = 1: the source's tuned model bit for bit",
        "scale = 0, or a source that was not tuned: the target base",
        "of a LoRA adapter the difference is its scale times B A",
        "the barrier of linear interpolation is 0 at both ends",
    ),
    differs=(
        "all tensors take part, as in the authors' script; tensors of another shape are refused, where the script pads "
        "new rows of embedding and head with zeros",
        "the script's float64 difference is added to a bfloat16 base; here the sum is rounded once",
    ),
    use_when="tuning was done on an earlier or later checkpoint of the same architecture and should not be repeated",
    avoid_when="source and target base were trained far apart",
    relatives=("merge.task_vectors.task_arithmetic",),
    mechanism="merge",
)


def transfer_diff(base: Tensor, source: Tensor, tuned: Tensor, scale: float = 1.0) -> Tensor:
    """base + scale * (tuned - source) for tensors of one shape; `tuned` itself where base = source and scale = 1."""
    return tuned if scale == 1 and torch.equal(base, source) else base + scale * (tuned - source)


def barrier(
    loss: Callable[[Mapping[str, Tensor]], float],
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    points: int = 11,
) -> tuple[float, ...]:
    """How far the loss on the line between two models lies above the line between their losses.

    loss: of weights by name. points: shares 0 to 1, evenly spaced, both ends included (0 there by definition). Values
    near 0 everywhere say that the models are linearly connected, which is where transfer works. Raises ValueError for
    fewer than 3 points.
    """
    if points < 3:
        raise ValueError(sentence("barrier", "at least 3 points", str(points), "Ask for more points"))
    first, last = loss(one), loss(other)
    inner = []
    for i in range(1, points - 1):
        t = i / (points - 1)
        mixed = {n: torch.lerp(v, other[n], t) if v.is_floating_point() else v for n, v in one.items()}
        inner.append(loss(mixed) - ((1 - t) * first + t * last))
    return (0.0, *inner, 0.0)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TransferDiff(Rule):
    """scale: factor of the difference. Models: source base and source tuned, or one adapter of the source base."""

    scale: float = 1.0

    def prepare(self, view: MergeView) -> TransferDiff:
        if view.models not in (1, 2):
            came = f"{view.models} models"
            raise Refused(sentence("transfer_diff", "the source's base and its tuned model", came, "List these two"))
        return self

    def __call__(self, base: Tensor, deltas: Sequence[Tensor], at: Site) -> Tensor:
        whole = [not isinstance(deltas, Deltas) or deltas.whole(i) for i in range(len(deltas))]
        if len(deltas) == 1 and not whole[0]:
            return base + self.scale * deltas[0]
        if len(deltas) != 2 or not all(whole):
            came = "a model without its base" if len(deltas) == 1 else "an adapter beside another model"
            do = "Give the source's base and tuned model, or one adapter alone"
            raise Refused(sentence("transfer_diff", "two whole models or one adapter", came, do))
        source, tuned = weights_of(base, deltas)
        return transfer_diff(base, source, tuned, self.scale)
