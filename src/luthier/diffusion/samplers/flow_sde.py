"""Stochastic sampling of a flow or diffusion model that keeps the distribution at every time, with any amount of noise.

Paper: arXiv 2409.08861 (memoryless noise), arXiv 2505.05470 (SDE of a flow for policy gradients).
Formula: dx = (u + l^2 g^2 / (2 sigma) eps) dt + l g dw backwards in time, g^2 = 2 sigma (sigma' - sigma alpha' / alpha), u the
velocity; scheme "exact" integrates it for a constant clean estimate: x_s = alpha_s x0 + sigma_s (r^(l^2) eps + sqrt(1 - r^(2 l^2)) z),
r = alpha_t sigma_s / (alpha_s sigma_t); "euler" is Euler-Maruyama.
Takes: one evaluation a step, noise.   Gives: x at the next time, with a known density (`samplers._affine.log_prob`).
Choose it when: a policy gradient needs noisy steps, or adjoint matching memoryless ones.   Rather not when: only samples are
wanted; ddim.   Relatives: ddpm (level = 1, exact), ddim (level = 0, exact), euler (level = 0, euler).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> move = FlowSDE(level=0.0, scheme="euler").move(Flow(), torch.tensor(0.5), torch.tensor(0.25))
>>> round(float(move.keep), 4), round(float(move.clean), 4), float(move.noise)
(0.5, 0.5, 0.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Level, NoisePath, component
from luthier.diffusion.samplers._affine import Affine, Move, fading, keeping, landing, levels
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="marginal-preserving SDE",
    source="arXiv 2409.08861",
    cost="one evaluation a step, and noise",
    limits=(
        "level = 1, exact: ddpm; level = 0, exact: ddim",
        "level = 0, euler: euler in the path's time",
        "euler on flow: the step of Flow-GRPO with noise level a = level * sqrt(2)",
        "both steps agree as the grid gets finer",
        "level = 1 (memoryless): the first step from pure noise forgets its start",
    ),
    differs=(
        "level is a share of the memoryless noise g; Flow-GRPO's a sqrt(t / (1 - t)) is level = a / sqrt(2), checked "
        "against the formula in its authors' code",
        "where alpha = 0 the noise of an Euler step is that of the next time, as in the authors' code",
        "a step to t = 0 is the clean estimate; the authors' code adds noise there too",
        "steps of `exact` are ours; their limit of small steps is the paper's SDE",
    ),
    use_when="transitions need a density, or fresh noise",
    avoid_when="few steps must do",
    relatives=("diffusion.samplers.ddpm", "diffusion.samplers.ddim", "diffusion.samplers.euler"),
    mechanism="affine step",
)


def euler_maruyama(at: Level, to: Level, dt: Tensor, level: float) -> Move:
    """The Euler-Maruyama step of length dt < 0, from levels in float64."""

    def diffusion(of: Level) -> Tensor:
        return 2 * at.sigma * (of.d_sigma - of.sigma * of.d_alpha / of.alpha)

    g2 = level**2 * diffusion(at if not bool((at.alpha == 0).any()) else _where_noise(at, to))
    # u + g2 / (2 sigma) eps with eps = (x - alpha x0) / sigma
    per_eps = at.d_sigma + g2 / (2 * at.sigma)
    move = Move(1 + dt * per_eps / at.sigma, dt * (at.d_alpha - per_eps * at.alpha / at.sigma), (g2 * -dt).sqrt())
    return landing(move, to)


def _where_noise(at: Level, to: Level) -> Level:
    """`at`, with the next level's entries where alpha is 0."""
    return Level(*(b.where(at.alpha == 0, a) for a, b in zip(at, to, strict=True)))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class FlowSDE(Affine):
    """level: noise as a share of the memoryless one (0: none, 1: memoryless); scheme: how the SDE is discretised."""

    level: Annotated[float, Ge(0)] = 1.0
    scheme: Literal["exact", "euler"] = "exact"

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        at, to = levels(path, t, s)
        if self.scheme == "exact":
            kept = to.sigma * fading(at, to) ** (self.level**2) if self.level else to.sigma
            return keeping(at, to, kept)
        return euler_maruyama(at, to, wide(s) - wide(t), self.level)
