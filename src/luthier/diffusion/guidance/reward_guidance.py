"""Reward guidance: guide by the condition as the base model sees it, and by what personalisation added to it.

Paper: arXiv 2402.12004, section 3.3.
Formula: out = base(none) + condition_scale (base(c) - base(none)) + reward_scale (tuned(c) - base(c)).
Takes: the tuned denoiser, its base as the handle "reference".   Gives: a denoiser.
Choose it when: a personalised model forgets its prompt, or the subject is too weak.   Rather not when: there is one model; cfg.
Relatives: cfg, rlg (on the guided models: reward_scale = condition_scale * weight in part).

>>> import torch
>>> reward_guidance(torch.zeros(1), torch.ones(1), torch.tensor([3.0]), 2.0, 0.5)
tensor([3.])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Denoiser, Guidance, Needs, component
from luthier.diffusion.guidance._handles import other
from luthier.diffusion.schedules._path import Condition, Predictor

CARD = Card(
    name="reward guidance of DCO",
    source="arXiv 2402.12004",
    papers=(20,),
    needs=Needs(handles=("reference",)),
    cost="two evaluations of the base and one of the tuned model",
    limits=(
        "reward_scale = 0 is cfg of the base, without asking the tuned model",
        "both scales 1: the tuned model, up to rounding",
        "tuned = base: cfg of the base, whatever reward_scale",
    ),
    differs=(
        "checked against the authors' sampler; the tuned model may see a caption of its own (handle 'tuned_condition'), as "
        "there, where it holds the subject's new word",
        "without condition it is the tuned model's own prediction",
    ),
    use_when="a personalised model should keep to its prompt",
    avoid_when="evaluations are dear",
    relatives=("diffusion.guidance.cfg", "diffusion.guidance.rlg"),
    mechanism="guidance",
)


def reward_guidance(none: Tensor, base: Tensor, tuned: Tensor, condition_scale: float, reward_scale: float) -> Tensor:
    """Predictions (B, ...) of the base without and with condition, and of the tuned model with it -> the guided one."""
    return none + condition_scale * (base - none) + reward_scale * (tuned - base)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class RewardGuidance(Guidance):
    """condition_scale: of the base's guidance; reward_scale: of what tuning added."""

    condition_scale: Annotated[float, Ge(0)] = 5.0
    reward_scale: Annotated[float, Ge(0)] = 5.0

    def guide(self, denoiser: Denoiser, handles: Mapping[str, Any]) -> Denoiser:
        base = other(handles, "reference", denoiser, "reward_guidance")

        def guided(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            if condition is None:
                return denoiser(x, t, None)
            plain = base(x, t, condition)
            tuned = denoiser(x, t, handles.get("tuned_condition", condition)) if self.reward_scale else plain
            return reward_guidance(base(x, t, None), plain, tuned, self.condition_scale, self.reward_scale)

        return Predictor(guided, denoiser.path, denoiser.kind)
