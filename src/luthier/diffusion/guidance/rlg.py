"""Reinforcement learning guidance: set the strength of a reward-tuned model at sampling time, beyond its training if wanted.

Paper: arXiv 2508.21016.   Formula: out = base + weight (tuned - base). If tuned data ~ base data exp(reward / beta), the mix aims
at base data exp(weight reward / beta): the weight divides beta.
Takes: the tuned denoiser, and its base as the handle "reference".   Gives: a denoiser.
Choose it when: a tuned model is too weak or too strong.   Rather not when: evaluations are dear; merge the weights instead.
Relatives: cfg (condition instead of tuning), reward_guidance (both at once), wise_ft (mixes weights).

>>> import torch
>>> rlg(torch.zeros(2), torch.ones(2), 2.0)
tensor([2., 2.])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Denoiser, Guidance, Needs, component
from luthier.diffusion.guidance._handles import other
from luthier.diffusion.schedules._path import Condition, Predictor

CARD = Card(
    name="RLG",
    source="arXiv 2508.21016",
    papers=(109,),
    needs=Needs(handles=("reference",)),
    cost="one evaluation of the base beside one of the tuned model",
    limits=(
        "weight = 0 is the base and weight = 1 the tuned model, bit for bit, at one evaluation",
        "Gaussian base and linear reward: the guided score is that of the base tilted by weight times the reward at every "
        "noise level",
        "the mix is the same in every prediction kind",
        "with cfg: guiding both models first, or the mix afterwards, is the same",
    ),
    differs=(
        "the mix was checked against the authors' sampler; its option to leave the first steps unguided is not offered",
        "beyond one Gaussian mode the guided ODE does not sample the tilted distribution exactly: mixing scores at a noise "
        "level is not noising the mixed distribution",
    ),
    use_when="the strength of alignment should be set without training again",
    avoid_when="evaluations are dear",
    relatives=("diffusion.guidance.cfg", "diffusion.guidance.reward_guidance", "merge.average.wise_ft"),
    mechanism="guidance",
)


def rlg(base: Tensor, tuned: Tensor, weight: float) -> Tensor:
    """base + weight (tuned - base) of predictions (B, ...); exactly `base` at 0 and `tuned` at 1."""
    return torch.lerp(base, tuned, weight)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class RLG(Guidance):
    """weight: 0 base, 1 tuned, above 1 beyond what was trained."""

    weight: Annotated[float, Ge(0)] = 2.0

    def guide(self, denoiser: Denoiser, handles: Mapping[str, Any]) -> Denoiser:
        base = other(handles, "reference", denoiser, "rlg")
        if self.weight in (0, 1):
            return denoiser if self.weight else base

        def guided(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return rlg(base(x, t, condition), denoiser(x, t, condition), self.weight)

        return Predictor(guided, denoiser.path, denoiser.kind)
