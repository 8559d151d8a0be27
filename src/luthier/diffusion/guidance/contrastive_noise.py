"""Contrastive noise optimisation: move the starting noises of a batch so that their first clean estimates differ.

Paper: arXiv 2510.03813.
Formula: mean_i [ -cos(x_i, x_i^ref) / (gamma tau) + log sum_j exp(cos(x_i, x_j) / tau) ], x the clean estimates at the first time, ref
those of the drawn noise, gamma = 1 / (tau log(B - 1) + 1).
Takes: the starting noise of several samples of one prompt, a denoiser.   Gives: the noise to start from.
Choose it when: samples of one prompt look alike, also with few-step models.   Rather not when: the batch is one sample.
Relatives: nn_repulsion (at every step), promptmog (varies the condition).

>>> round(balance(0.1, 5), 3)
0.878
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from luthier.core import Card, Denoiser, Guidance, component
from luthier.core.errors import Refused, sentence
from luthier.diffusion.guidance._groups import grouped
from luthier.diffusion.schedules._kinds import convert, kind_of, to_x0
from luthier.diffusion.schedules._path import Condition, level

CARD = Card(
    name="CNO",
    source="arXiv 2510.03813",
    papers=(362,),
    cost="steps + 1 evaluations before sampling",
    limits=(
        "steps = 0 returns the drawn noise, bit for bit",
        "the loss does not depend on the order of the batch",
        "tau = 0.1 and a batch of 5: gamma is 0.878",
        "groups are optimised apart from each other",
    ),
    differs=(
        "loss, gamma, pooling and the stopped gradient follow a published note on the paper; the paper's text and code were "
        "not at hand. Optimiser (Adam), steps and rate are ours",
        "the gradient stops at the network's own prediction; one of x0 is turned into a velocity first, since a stopped x0 "
        "leaves no gradient",
        "only estimates with two spatial axes larger than the window are pooled",
    ),
    use_when="samples of one prompt look alike",
    avoid_when="samples come one at a time",
    relatives=("diffusion.guidance.nn_repulsion", "diffusion.guidance.promptmog"),
    mechanism="diversity layer",
)


def balance(tau: float, batch: int) -> float:
    """gamma: where the greatest pull of the reference equals the sum of the greatest pushes of batch - 1 others."""
    return 1 / (tau * math.log(batch - 1) + 1)


def contrastive_loss(x: Tensor, reference: Tensor, tau: float = 0.1, gamma: float | None = None) -> Tensor:
    """The loss of estimates x (..., B, d) against those of the drawn noise: one value for each leading index.

    gamma: temperature of the pull as a share of tau; None: `balance`.
    """
    gamma = balance(tau, x.shape[-2]) if gamma is None else gamma
    unit = normalize(x, dim=-1)
    pull = (unit * normalize(reference, dim=-1)).sum(-1) / (gamma * tau)
    return (-pull + (unit @ unit.mT / tau).logsumexp(-1)).mean(-1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ContrastiveNoise(Guidance):
    """steps, lr: of Adam on the noise; tau: temperature; gamma: see `contrastive_loss`; window: side to which estimates are
    pooled; group: samples of one prompt, in order (None: the whole batch); through: let gradients through the network."""

    steps: Annotated[int, Ge(0)] = 10
    lr: Annotated[float, Gt(0)] = 0.01
    tau: Annotated[float, Gt(0)] = 0.1
    gamma: Annotated[float, Gt(0)] | None = None
    window: Annotated[int, Ge(1)] = 16
    group: Annotated[int, Gt(0)] | None = None
    through: bool = False

    def start(self, x: Tensor, t: Tensor, denoiser: Denoiser, condition: Condition) -> Tensor:
        if self.steps == 0:
            return x
        if (self.group or len(x)) < 3:
            came = f"{self.group or len(x)}"
            raise Refused(sentence("contrastive_noise", "three samples or more of a group", came, "Draw more at once"))
        with torch.enable_grad():
            noise = x.detach().clone().requires_grad_(True)
            reference = self.estimates(noise, t, denoiser, condition).detach()
            search = torch.optim.Adam([noise], lr=self.lr)
            for _ in range(self.steps):
                now = self.estimates(noise, t, denoiser, condition)
                (noise.grad,) = torch.autograd.grad(contrastive_loss(now, reference, self.tau, self.gamma).sum(), noise)
                search.step()
        return noise.detach()

    def estimates(self, x: Tensor, t: Tensor, denoiser: Denoiser, condition: Condition) -> Tensor:
        """Pooled clean estimates (groups, members, d) at noise x (B, ...)."""
        at, kind = level(denoiser.path, t, x), kind_of(denoiser.kind)
        with torch.set_grad_enabled(self.through):
            out = denoiser(x, t, condition)
            if not self.through and kind == "x0":
                out, kind = convert(x, out, at, kind, "velocity"), "velocity"
        x0 = to_x0(x, out, at, kind)
        if x0.ndim == 4 and min(x0.shape[2:]) > self.window:
            x0 = adaptive_avg_pool2d(x0, self.window)
        return grouped(x0, self.group, "contrastive_noise")
