"""Euler's method on the probability-flow ODE, in the path's time or in the noise ratio.

Paper: arXiv 2011.13456 (the ODE), arXiv 2206.00364 (in the ratio), arXiv 2210.02747 (flow).
Formula: time: x_s = x_t + (s - t) (alpha' x0 + sigma' eps). ratio: x / alpha moves along eps with sigma / alpha, which is ddim.
Takes: one evaluation a step.   Gives: x at the next time.
Choose it when: the path is flow, where it is the usual sampler.   Rather not when: the path is vp, whose ODE is stiff in its own time;
ddim or the ratio.   Relatives: heun (second order), ddim, flow_sde (with noise).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> move = Euler().move(Flow(), torch.tensor(1.0), torch.tensor(0.75)); float(move.keep), float(move.clean)
(0.75, 0.25)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from luthier.core import Card, NoisePath, component
from luthier.diffusion.samplers._affine import Affine, Move, keeping, landing, levels, zero
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="Euler",
    source="arXiv 2011.13456",
    cost="one evaluation a step",
    limits=(
        "on flow, in time: ddim",
        "in the ratio: ddim on every path",
        "on ve both spaces are the same",
        "Gaussian data: first order towards the exact map",
    ),
    differs=(
        "a step to t = 0 is the clean estimate on every path; on vp in its own time Euler's formula leaves half the noise",
        "EulerDiscreteScheduler of diffusers works on x / alpha; in the ratio, times alpha, it is the same",
    ),
    use_when="the model is a flow",
    relatives=("diffusion.samplers.heun", "diffusion.samplers.ddim"),
    mechanism="ODE step",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Euler(Affine):
    """space: what the step is linear in."""

    space: Literal["time", "ratio"] = "time"

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        at, to = levels(path, t, s)
        if self.space == "ratio":
            return keeping(at, to, to.sigma)
        dt = wide(s) - wide(t)
        pace = dt * at.d_sigma / at.sigma
        return landing(Move(1 + pace, dt * at.d_alpha - pace * at.alpha, zero(to)), to)
