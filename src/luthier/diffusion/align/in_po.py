"""Diffusion DPO on noise that leads to the images: both images are inverted by the model itself, instead of mixed with random noise.

Paper: arXiv 2503.18454, eq. 14-16.
Formula: x_t by DDIM steps of the current model from x_0 upwards, eps = (x_t - alpha x_0) / sigma is the target, then the loss of
diffusion_dpo: -log sigmoid(-beta / 2 * ((e(chosen) - e_ref(chosen)) - (e(rejected) - e_ref(rejected)))).
Takes: pairs of images under one condition.   Gives: (B,) values.
Choose it when: pairs are few and steps are dear.   Rather not when: forward passes are dear (diffusion_dpo has no inversion).
Relatives: diffusion_dpo.

>>> import torch
>>> rungs(torch.tensor([0.0, 0.5, 0.999]), 10).tolist()
[1, 6, 10]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.diffusion.align._pairs import gain, pair_loss
from luthier.diffusion.align._trajectory import drawn
from luthier.diffusion.consistency._jump import Condition, estimates, land
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._path import level, like

CARD = Card(
    name="DDIM-InPO",
    source="arXiv 2503.18454",
    papers=(40,),
    needs=Needs(batch=("image_preference",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="diffusion_dpo, and up to `steps` forwards of the policy on both images",
    limits=(
        "policy = reference: log 2",
        "random noise in place of the inverted: diffusion_dpo",
        "eta = 0: the inversion has no randomness, and as steps grow, sampling leads back to the image",
        "an exact model of one Gaussian: the inverted noise is the standardised image, whatever t, as steps grow",
    ),
    differs=(
        "times are the rungs of the inversion's grid, one for each pair; the authors' code draws one for a batch",
        "checked against the loop in the authors' train.py: steps upwards by the current model, then a little noise (eta 0.1) of "
        "the deviation of the ancestral step; there the steps end one rung away from the time that is asked, here on it",
        "the first step asks the network at the least time of the path",
    ),
    use_when="pairs are few",
    avoid_when="forward passes are dear",
    relatives=("diffusion.align.diffusion_dpo",),
    mechanism="margin loss",
)


def rungs(uniform: Tensor, steps: int) -> Tensor:
    """How many inversion steps each row takes, 1 ... steps, by uniform numbers (B,)."""
    return (uniform * steps).floor().clamp(0, steps - 1).long() + 1


@torch.no_grad()
def inverted(
    model: Any, x0: Tensor, condition: Condition, count: Tensor, steps: int, eta: float, noise: Tensor | None
) -> Tensor:
    """x (B, ...) at the `count`-th (B,) of `steps` equal times, by DDIM steps upwards from clean x0 (B, ...).

    eta: noise that is added at each step, as a share of the ancestral step's deviation; noise (steps, B, ...) for eta > 0.
    """
    path, x = model.path, x0
    up = make_grid(path, steps).flip(0)
    for i in range(int(count.max())):
        low, high = up[i], up[i + 1]
        asked = torch.full((len(x),), max(float(low), path.t_min), dtype=x.dtype, device=x.device)
        moved = land(path, *estimates(model, x, asked, condition), torch.full_like(asked, float(high)))
        if eta and noise is not None:
            moved = moved + eta * like(DDPM().move(path, high, low).noise if float(low) else high * 0, x) * noise[i]
        x = torch.where(like(i < count, x).bool(), moved, x)
    return x


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class InPO(Objective):
    """beta: how near to stay to the reference; steps: of the inversion's grid; eta: noise that is added to it."""

    beta: Annotated[float, Gt(0)] = 5000.0
    steps: Annotated[int, Ge(1)] = 10
    eta: Annotated[float, Ge(0)] = 0.1

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        policy, reference, uniform = s.handle("policy"), s.handle("reference"), s["uniform"]
        count = rungs(uniform[:, 0], self.steps)
        t = make_grid(policy.path, self.steps).flip(0).to(uniform)[count]
        gains: list[Tensor] = []
        for part, x0 in zip(("chosen", "rejected"), s.tensors("image"), strict=True):
            condition = batch.condition(part)
            noise = drawn(uniform[:, 7], self.steps, x0, f"in_po.{part}").values if self.eta else None
            x = inverted(policy, x0, condition, count, self.steps, self.eta, noise)
            at = level(policy.path, t, x0)
            gains.append(gain(policy, reference, x0, (x - at.alpha * x0) / at.sigma, t, condition))
        return Terms("in_po", pair_loss(gains[0], gains[1], self.beta))
