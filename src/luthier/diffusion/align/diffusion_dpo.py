"""Diffusion DPO: an image model learns from pairs by denoising the chosen image better, and the rejected one worse, than before.

Paper: arXiv 2311.12908, eq. 14.
Formula: -log sigmoid(-beta w(t) / 2 * ((e(chosen) - e_ref(chosen)) - (e(rejected) - e_ref(rejected)))), e the mean squared error
of the prediction at x_t; both images get the same noise and time.
Takes: pairs of images under one condition; the model before training is the reference.   Gives: (B,) values.
Choose it when: people or a judge compared images.   Rather not when: a reward can be computed (draft, adjoint_matching, ddpo), or
only good images are known (spin_diffusion, denoise).
Relatives: in_po (noise found by inversion), spin_diffusion (losers are own samples), dco (no losers).

>>> DiffusionDPO(beta=2000.0).beta
2000.0
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, Times, Weighting, component
from luthier.diffusion.align._pairs import gain, pair_loss
from luthier.diffusion.schedules.times.uniform_time import UniformTime
from luthier.diffusion.schedules.weights.unit_weight import UnitWeight

CARD = Card(
    name="Diffusion DPO",
    source="arXiv 2311.12908",
    equations=("14",),
    needs=Needs(batch=("image_preference",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="forward and backward of both images, forward of the reference on both",
    limits=(
        "policy = reference: log 2, whatever beta",
        "swapping the images turns the gradient at the reference round",
        "two equal images: log 2 and no gradient",
    ),
    differs=(
        "errors are means over pixels and the same noise goes to both images, as in the authors' code; so beta = 5000 is "
        "theirs and does not scale with the size of an image",
        "the error is that of the network's own kind; the authors' code knows networks of eps only",
    ),
    use_when="images were compared",
    avoid_when="a reward can be computed for any image",
    relatives=("diffusion.align.in_po", "diffusion.align.spin_diffusion", "objectives.preference.dpo"),
    mechanism="margin loss",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(Objective):
    """beta: how near to stay to the reference; times, weighting: at which noise levels, and how much each counts."""

    beta: Annotated[float, Gt(0)] = 5000.0
    times: Times = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UnitWeight)

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        policy, reference, noise = s.handle("policy"), s.handle("reference"), s["noise"]
        t = self.times(s["uniform"][:, 0], policy.path)
        chosen, rejected = (
            gain(policy, reference, x0, noise, t, batch.condition(part))
            for x0, part in zip(s.tensors("image"), ("chosen", "rejected"), strict=True)
        )
        return Terms(
            "diffusion_dpo", pair_loss(chosen, rejected, self.beta * self.weighting(policy.path, t, policy.kind))
        )
