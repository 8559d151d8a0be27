"""Denoising: the network learns to predict what was mixed into an image, at noise levels drawn anew for each image.

Paper: arXiv 2006.11239, eq. 14 (eps); 2202.00512 (v); 2210.02747, eq. 14 (velocity).
Formula: w(t) * mean over pixels of (out(x_t, t, c) - target)^2, x_t = alpha(t) x0 + sigma(t) eps, where the target is what the
network predicts: x0, eps, v = alpha eps - sigma x0, or velocity = dx_t / dt.
Takes: images, their conditions.   Gives: (B,) values.
Choose it when: an image model shall learn a new look, subject or domain from images.   Rather not when: only a preference or a
reward is known (diffusion_dpo, draft), or few steps must do (the consistency family).
Relatives: anything in diffusion.consistency and diffusion.align.

>>> import torch
>>> out, target = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
>>> denoising_error(out, target)
tensor([1.])
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, Times, Weighting, component
from luthier.diffusion.schedules._kinds import from_pair, kind_of
from luthier.diffusion.schedules._path import level
from luthier.diffusion.schedules.times.uniform_time import UniformTime
from luthier.diffusion.schedules.weights.unit_weight import UnitWeight

CARD = Card(
    name="denoising",
    source="arXiv 2006.11239",
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy",)),
    cost="one forward and backward",
    limits=(
        "a network that predicts the target exactly has loss 0",
        "unit weight: the mean squared error of diffusers' training scripts",
        "for Gaussian data the best network leaves the closed-form variance of the target given x_t",
    ),
    use_when="images show what shall be learned",
    avoid_when="only comparisons or rewards are known",
    relatives=("diffusion.schedules.weights.min_snr", "diffusion.schedules.times.logit_normal"),
    mechanism="denoising",
)


def denoising_error(out: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per image, (B,), of predictions and targets (B, C, H, W)."""
    return (out - target).square().flatten(1).mean(1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Denoise(Objective):
    """times: at which noise levels; weighting: how much each counts."""

    times: Times = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UnitWeight)

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, x0, noise = s.handle("policy"), s["image"], s["noise"]
        t = self.times(s["uniform"][:, 0], model.path)
        at = level(model.path, t, x0)
        out = model(at.alpha * x0 + at.sigma * noise, t, batch.condition())
        target = from_pair(x0, noise, at, kind_of(model.kind))
        return Terms("denoise", self.weighting(model.path, t, model.kind) * denoising_error(out, target))
