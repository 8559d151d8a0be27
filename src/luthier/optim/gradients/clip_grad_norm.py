"""Global gradient clipping: all gradients shrink together when their common norm is too large.

Paper: arXiv 1211.5063.   Formula: g <- g * min(1, max_norm / (|g| + 1e-6)), |g| over all trained parameters.
Choose it when: rare batches give huge gradients.   Rather not when: one module explodes and the others should go on
learning; see clip_grad_by_component.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import nn

from luthier.core import Card, Context, Hook, component
from luthier.optim.gradients._clip import clip_groups

CARD = Card(
    name="Gradient norm clipping",
    source="arXiv 1211.5063",
    cost="one norm of all gradients",
    limits=("the norm is at most max_norm afterwards, the direction unchanged", "an infinite max_norm changes nothing"),
    use_when="always, as a guard against rare huge gradients",
    relatives=("optim.gradients.clip_grad_by_component",),
    mechanism="gradient transforms",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ClipGradNorm(Hook):
    """max_norm: largest norm of all gradients together."""

    room: ClassVar[str] = "optim"
    may_idle: ClassVar[bool] = True
    points: ClassVar[tuple[str, ...]] = ("gradients",)
    max_norm: Annotated[float, Gt(0)] = 1.0

    def gradients(self, named: Sequence[tuple[str, nn.Parameter]], ctx: Context) -> None:
        """Clip in place; notes how many gradients shrank (all or none)."""
        grads = [p.grad for _, p in named if p.grad is not None]
        if grads and clip_groups([grads], self.max_norm):
            ctx.note(len(grads))
