"""Heun's method on the probability-flow ODE: an Euler step, corrected by the slope where it ends.

Paper: arXiv 2206.00364, algorithm 1.
Formula: x_s = x_t + (s - t) (u_t + u_s) / 2, u_s at the Euler step's end; the step to t = 0 is Euler's.
Takes: two evaluations a step, one for the last.   Gives: x at the next time.
Choose it when: exact trajectories count (teachers, inversion).   Rather not when: evaluations are dear; dpmpp_2m has second order
for one.   Relatives: euler (first order), dpmpp_2m.

>>> Heun().evaluations
2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from luthier.core import Card, Level, Sampler, component
from luthier.diffusion.samplers._affine import levels, mean_of
from luthier.diffusion.samplers.euler import Euler
from luthier.diffusion.schedules._path import like, wide

CARD = Card(
    name="Heun",
    source="arXiv 2206.00364",
    equations=("algorithm 1",),
    cost="two evaluations a step",
    limits=(
        "a step to t = 0 is Euler's",
        "where the slope is constant: euler",
        "Gaussian data: second order towards the exact map",
    ),
    differs=(
        "without the paper's churn of noise",
        "the ratio works on x / alpha by sigma / alpha, as HeunDiscreteScheduler of diffusers does",
    ),
    use_when="trajectories should be exact",
    relatives=("diffusion.samplers.euler", "diffusion.samplers.dpmpp_2m"),
    mechanism="ODE step",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """space: what the slope is taken by, the path's time or sigma / alpha."""

    evaluations: ClassVar[int] = 2
    space: Literal["time", "ratio"] = "time"

    def step(self, at: Any, state: Any) -> tuple[Tensor, Any]:
        path, x = at.path, at.x
        here, there = levels(path, at.t, at.s)
        first = at.clean(x, at.t)
        ahead = mean_of(Euler(space=self.space).move(path, at.t, at.s), x, first)
        if bool((there.sigma == 0).any()):
            return ahead, state
        second = at.clean(ahead, at.s)
        slope = self._slope(here, x, first) + self._slope(there, ahead, second)
        if self.space == "time":
            return x + like((wide(at.s) - wide(at.t)) / 2, x) * slope, state
        length = there.sigma / there.alpha - here.sigma / here.alpha
        return like(there.alpha, x) * (x / like(here.alpha, x) + like(length / 2, x) * slope), state

    def _slope(self, level: Level, x: Tensor, x0: Tensor) -> Tensor:
        """dx/dt, or d(x / alpha) / d(sigma / alpha) = eps."""
        eps = (x - like(level.alpha, x) * x0) / like(level.sigma, x)
        return eps if self.space == "ratio" else like(level.d_alpha, x) * x0 + like(level.d_sigma, x) * eps
