"""Direct consistency optimisation: learn a subject from a few images, but only until they are denoised better than before by enough.

Paper: arXiv 2402.12004, eq. 8.
Formula: -log sigmoid(-beta w(t) * (e(x) - e_ref(x))), e the mean squared error of the prediction at x_t: diffusion DPO without the
rejected image. The gradient of an image fades as its gain over the frozen start grows.
Takes: a few images, their conditions.   Gives: (B,) values.
Choose it when: a subject or style shall be learned and the rest must stay; sample with reward_guidance.
Rather not when: there are many images (denoise), or pairs (diffusion_dpo).
Relatives: denoise, diffusion_dpo, reward_guidance.

>>> import torch
>>> anchored_loss(torch.zeros(1), 1000.0)
tensor([0.6931])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt
from torch import Tensor
from torch.nn import functional as F

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, Times, Weighting, component
from luthier.diffusion.align._pairs import gain
from luthier.diffusion.schedules.times.uniform_time import UniformTime
from luthier.diffusion.schedules.weights.unit_weight import UnitWeight

CARD = Card(
    name="DCO",
    source="arXiv 2402.12004",
    papers=(20,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="denoise, and one forward of the reference",
    limits=(
        "policy = reference: log 2, and beta / 2 times the gradient of denoise",
        "an image whose gain is large has no gradient left",
        "it is diffusion_dpo of twice the beta with a rejected image that neither model can tell apart",
    ),
    differs=(
        "the sigmoid is taken for each image; the authors' code takes it of the mean over a batch, which is one image there",
        "both models see the same caption; the authors' code shows the reference one without the subject's new word",
    ),
    use_when="a few images must be learned and the rest kept",
    avoid_when="there are many images",
    relatives=("diffusion.train.denoise", "diffusion.guidance.reward_guidance", "diffusion.align.diffusion_dpo"),
    mechanism="margin loss",
)


def anchored_loss(gained: Tensor, strength: Tensor | float) -> Tensor:
    """-log sigmoid(strength * gained), (B,), from gains over the reference (B,)."""
    return -F.logsigmoid(strength * gained)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DCO(Objective):
    """beta: how early an image has been learned enough; times, weighting: at which noise levels, and how much each counts."""

    beta: Annotated[float, Gt(0)] = 1000.0
    times: Times = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UnitWeight)

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        policy = s.handle("policy")
        t = self.times(s["uniform"][:, 0], policy.path)
        gained = gain(policy, s.handle("reference"), s["image"], s["noise"], t, batch.condition())
        return Terms("dco", anchored_loss(gained, self.beta * self.weighting(policy.path, t, policy.kind)))
