"""DDIM: step along the estimated noise, with as much fresh noise as asked; deterministic at eta = 0.

Paper: arXiv 2010.02502, eq. 12 and 16.
Formula: x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z, n = eta sigma_s sqrt(1 - r^2), r = alpha_t sigma_s / (alpha_s sigma_t).
Takes: one evaluation a step.   Gives: x at the next time.
Choose it when: in doubt; it is the exponential integrator of first order on every path.   Rather not when: 10 to 30 steps must do
on a smooth model; dpmpp_2m.   Relatives: ddpm (eta = 1), euler (the same on flow), consistency (all noise fresh).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> move = DDIM().move(Flow(), torch.tensor(0.5), torch.tensor(0.25)); round(float(move.keep), 4), round(float(move.clean), 4)
(0.5, 0.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from luthier.core import Card, NoisePath, component
from luthier.diffusion.samplers._affine import Affine, Move, fading, keeping, levels

CARD = Card(
    name="DDIM",
    source="arXiv 2010.02502",
    equations=("12", "16"),
    cost="one evaluation a step",
    limits=(
        "eta = 1 is ddpm",
        "eta = 0 on flow is euler",
        "a step with the true x0 keeps the distribution of x given x0, whatever eta",
        "eta = 0 for Gaussian data: first order towards the exact map",
    ),
    differs=(
        "stated by alpha and sigma, so that it holds on every path; on vp_table it equals DDIMScheduler of diffusers",
    ),
    use_when="a plain sampler that works everywhere is wanted",
    relatives=("diffusion.samplers.ddpm", "diffusion.samplers.euler", "diffusion.samplers.dpmpp_2m"),
    mechanism="affine step",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DDIM(Affine):
    """eta: share of the ancestral noise that is drawn afresh."""

    eta: Annotated[float, Ge(0), Le(1)] = 0.0

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        at, to = levels(path, t, s)
        fresh = self.eta**2 * (1 - fading(at, to).square()).clamp_min(0)
        return keeping(at, to, to.sigma * (1 - fresh).sqrt())
