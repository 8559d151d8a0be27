"""Component-wise gradient clipping: one component that explodes does not slow the others.

Paper: Yang and Ma, Improving Stability of Fine-Tuning Pretrained Language Models via Component-Wise Gradient Norm
Clipping, EMNLP 2022, arXiv 2210.10325.   Formula: g_c <- g_c * min(1, max_norm / (|g_c| + 1e-6)) for each component c.
Choose it when: runs on small data differ wildly by seed.   Rather not when: the relative size of the modules' gradients
should steer the update (with Adam it hardly does).
Relatives: clip_grad_norm (one component: the whole model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from torch import nn

from luthier.core import Card, Context, Hook, component
from luthier.optim.gradients._clip import clip_groups, gradients_by

CARD = Card(
    name="Component-wise gradient norm clipping",
    source="arXiv 2210.10325",
    papers=(56,),
    cost="one norm per component",
    limits=(
        "each component's norm is at most max_norm afterwards, its direction unchanged",
        "a single component: the same as clip_grad_norm",
        "an infinite max_norm changes nothing",
    ),
    differs=("clips once per step, after all micro-batches; the released trainer clips after each of them",),
    use_when="fine-tuning on little data is unstable from seed to seed",
    avoid_when="all gradients are small and steady already",
    relatives=("optim.gradients.clip_grad_norm",),
    mechanism="gradient transforms",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ClipGradByComponent(Hook):
    """max_norm: largest norm of a component; by: what a component is ("parameter", as released, by default)."""

    room: ClassVar[str] = "optim"
    may_idle: ClassVar[bool] = True
    points: ClassVar[tuple[str, ...]] = ("gradients",)
    max_norm: Annotated[float, Gt(0)] = 1.0
    by: Literal["parameter", "module", "layer"] = "parameter"

    def gradients(self, named: Sequence[tuple[str, nn.Parameter]], ctx: Context) -> None:
        """Clip in place; notes how many components shrank."""
        ctx.note(clip_groups(gradients_by(named, self.by).values(), self.max_norm))
