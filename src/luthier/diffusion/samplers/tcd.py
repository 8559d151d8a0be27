"""Strategic stochastic sampling of TCD: jump past the target without noise, then add noise up to it.

Paper: arXiv 2402.19159, section 4.2 and algorithm 2.
Formula: s' = (1 - gamma) s; x_s' = alpha_s' x0 + sigma_s' eps; x_s = a x_s' + sqrt(sigma_s^2 - a^2 sigma_s'^2) z, a = alpha_s / alpha_s'.
Takes: one evaluation a step, noise if gamma > 0.   Gives: x at the next time.
Choose it when: a consistency or few-step model takes 2 to 20 steps.   Rather not when: one step; all are equal there.
Relatives: consistency (gamma = 1), ddim (gamma = 0).

>>> import torch
>>> from luthier.diffusion.schedules.ve import VE
>>> move = TCD(gamma=0.5).move(VE(), torch.tensor(4.0), torch.tensor(2.0)); float(move.keep), round(float(move.noise) ** 2, 4)
(0.25, 3.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from luthier.core import Card, NoisePath, component
from luthier.diffusion.samplers._affine import Affine, Move, keeping, levels
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="strategic stochastic sampling",
    source="arXiv 2402.19159",
    papers=(30,),
    equations=("algorithm 2",),
    cost="one evaluation a step, and noise if gamma > 0",
    limits=(
        "gamma = 0 is ddim without noise",
        "gamma = 1 is multistep consistency sampling",
        "on vp with gamma = 1 the fresh noise has variance 1 - alpha_s^2",
    ),
    differs=(
        "s' is (1 - gamma) times the path's continuous time; TCDScheduler of diffusers rounds it down to a step of the "
        "table, and its time of step 0 is not quite clean. Where s' is the same, a step is the same number (tested)",
        "times of other paths than the paper's variance-preserving one are their own: s' is as far along the path's time",
    ),
    use_when="a few-step model should gain from more steps instead of losing detail",
    relatives=("diffusion.samplers.consistency", "diffusion.samplers.ddim"),
    mechanism="affine step",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TCD(Affine):
    """gamma: 0 keeps all estimated noise, 1 draws all of it afresh."""

    gamma: Annotated[float, Ge(0), Le(1)] = 0.3

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        at, to = levels(path, t, s)
        past = path.level(wide(s) * (1 - self.gamma))
        return keeping(at, to, to.alpha / past.alpha * past.sigma)
