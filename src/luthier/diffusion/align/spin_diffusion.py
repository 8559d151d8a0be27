"""Self-play: real images are preferred over those that an earlier version of the model draws for the same conditions.

Paper: arXiv 2402.10210, eq. 4.9.
Formula: the loss of diffusion_dpo with the training image as the chosen one, a sample of the opponent as the rejected one, and the
opponent as the reference. The opponent is the model before training, or its average, which follows it.
Takes: images, conditions.   Gives: (B,) values.
Choose it when: images show what is wanted and denoise has stopped helping.   Rather not when: real comparisons exist
(diffusion_dpo), or sampling in every step is too dear.   Relatives: diffusion_dpo, denoise.

>>> SpinDiffusion(beta=2000.0).opponent
'reference'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt

from luthier.core import Batch, Card, Needs, Objective, Sampler, Signals, Terms, Times, Weighting, component
from luthier.diffusion.align._pairs import gain, pair_loss
from luthier.diffusion.align._trajectory import drawn, walk
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.schedules.times.uniform_time import UniformTime
from luthier.diffusion.schedules.weights.unit_weight import UnitWeight

CARD = Card(
    name="SPIN-Diffusion",
    source="arXiv 2402.10210",
    papers=(55,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="a sampling by the opponent, then diffusion_dpo",
    limits=(
        "policy = opponent: log 2, whatever beta",
        "fed the opponent's samples as rejected images, diffusion_dpo is the same",
        "swapping real and drawn images turns the gradient at the opponent round",
    ),
    differs=(
        "the form on single noise levels that is used in practice; the paper derives it over whole walks, whose form here is not "
        "checked against the authors' code",
        "losers are drawn anew in each step instead of once for each iterate; the opponent is the start (one iterate), or with "
        "opponent = 'ema' the average, a soft series of iterates; further iterates are further runs",
    ),
    use_when="images show what is wanted",
    avoid_when="comparisons exist",
    relatives=("diffusion.align.diffusion_dpo", "diffusion.train.denoise"),
    mechanism="margin loss",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SpinDiffusion(Objective):
    """beta, times, weighting: as in diffusion_dpo; opponent: "reference" or "ema"; steps, sampler: how it draws."""

    beta: Annotated[float, Gt(0)] = 2000.0
    opponent: Literal["reference", "ema"] = "reference"
    steps: Annotated[int, Ge(1)] = 10
    sampler: Sampler = field(default_factory=DDIM)
    times: Times = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UnitWeight)

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        policy, opponent, noise, condition = s.handle("policy"), s.handle(self.opponent), s["noise"], batch.condition()
        source = drawn(s["uniform"][:, 7], self.steps + 1, noise, "spin")
        with torch.no_grad():
            loser = walk(opponent, self.sampler, self.steps, source.values[-1], condition, source).sample
        t = self.times(s["uniform"][:, 0], policy.path)
        real, made = (gain(policy, opponent, x0, noise, t, condition) for x0 in (s["image"], loser))
        return Terms("spin_diffusion", pair_loss(real, made, self.beta * self.weighting(policy.path, t, policy.kind)))
