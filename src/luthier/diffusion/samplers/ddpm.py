"""DDPM: ancestral sampling, each step a draw from the posterior of the previous noise level.

Paper: arXiv 2006.11239, eq. 6-7 and section 3.2.
Formula: mean of q(x_s | x_t, x0); variance that of the same posterior ("small"), or that of q(x_t | x_s) ("large").
Takes: one evaluation a step, noise.   Gives: x at the next time.
Choose it when: many steps are affordable, or errors of the model should wash out.   Rather not when: few steps; ddim.
Relatives: ddim (eta = 1), flow_sde (level = 1).

>>> import torch
>>> from luthier.diffusion.schedules.ve import VE
>>> move = DDPM().move(VE(), torch.tensor(2.0), torch.tensor(1.0)); round(float(move.keep), 4), round(float(move.noise) ** 2, 4)
(0.25, 0.75)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from luthier.core import Card, NoisePath, component
from luthier.diffusion.samplers._affine import Affine, Move, fading, keeping, levels

CARD = Card(
    name="DDPM",
    source="arXiv 2006.11239",
    equations=("6", "7"),
    cost="one evaluation a step, and noise",
    limits=(
        "ddim with eta = 1 (variance small)",
        "for data without spread every step keeps the exact distribution (variance small)",
        "variance large is the variance of x_t given x_s",
    ),
    differs=(
        "stated by alpha and sigma, so that it holds on every path",
        "the last step, to t = 0, draws no noise with either variance",
    ),
    use_when="steps are cheap and fresh noise should wash out errors",
    avoid_when="few steps must do",
    relatives=("diffusion.samplers.ddim", "diffusion.samplers.flow_sde"),
    mechanism="affine step",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DDPM(Affine):
    """variance: of the step."""

    variance: Literal["small", "large"] = "small"

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        at, to = levels(path, t, s)
        move = keeping(at, to, to.sigma * fading(at, to))
        if self.variance == "small":
            return move
        forward = (at.sigma.square() - (at.alpha / to.alpha * to.sigma).square()).clamp_min(0).sqrt()
        return move._replace(noise=forward.masked_fill(to.sigma == 0, 0.0))
