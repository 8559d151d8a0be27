"""Reward-guided consistency distillation: the few-step student is also pushed towards what a differentiable reward likes.

Paper: arXiv 2403.11027, eq. 6.
Formula: L_CD - strength * R(f(x_t, t, 0), c): the reward of the student's one-step image, with its gradient.
Takes: images, conditions, a reward that gradients flow through.   Gives: two terms, the distillation's and the reward's.
Choose it when: a few-step model shall also please a reward.   Rather not when: the reward can be fooled by small ripples: keep
strength low and watch another judge, or align the teacher first (adjoint_matching).
Relatives: consistency_distillation (strength = 0), draft (reward through the sampler).

>>> RewardGuided(strength=0.5).strength
0.5
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import ConfigError, Refused, sentence
from luthier.core.terms import as_terms
from luthier.diffusion.consistency._jump import jump
from luthier.diffusion.consistency.consistency_distillation import ConsistencyDistillation, neighbours
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._path import mix

CARD = Card(
    name="RG-LCD",
    source="arXiv 2403.11027",
    papers=(32,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference", "reward")),
    cost="consistency distillation, and one more forward and backward of the student and of the reward",
    limits=(
        "strength = 0: the loss and the gradient of consistency distillation",
        "a constant reward changes no gradient",
    ),
    differs=(
        "the proxy reward model that the paper trains beside the student is not part of it: hand in any differentiable reward",
    ),
    use_when="a few-step model shall also please a differentiable reward",
    avoid_when="the reward is easily fooled",
    relatives=("diffusion.consistency.consistency_distillation",),
    mechanism="consistency",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class RewardGuided(Objective):
    """strength: weight of the reward; distillation: the loss that it is added to."""

    strength: Annotated[float, Ge(0)] = 1.0
    distillation: Objective = field(default_factory=ConsistencyDistillation)

    def __post_init__(self) -> None:
        if not isinstance(self.distillation, ConsistencyDistillation):
            raise ConfigError(sentence("reward_guided", "consistency_distillation", repr(self.distillation),
                                       "Its grid says where the reward is read"))  # fmt: skip

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        base = as_terms(self.distillation(batch, s))
        if self.strength == 0:
            return base
        assert isinstance(self.distillation, ConsistencyDistillation)
        student, own = s.handle("policy"), self.distillation
        t, _ = neighbours(s["uniform"][:, 0], make_grid(student.path, own.steps), own.skip)
        x = mix(student.path, s["image"], s["noise"], t)
        made = jump(student, x, t, torch.zeros_like(t), batch.condition())
        value = s.handle("reward")(made, batch.meta)
        if not value.requires_grad:
            raise Refused("reward_guided requires a reward that gradients flow through; this one gives plain numbers. Use ddpo, or "
                          "another reward.")  # fmt: skip
        return (*base, Terms("reward_guided.reward", -value).scaled(self.strength))
