"""DPM-Solver++(2M): second order from one evaluation a step, by the clean estimate of the step before.

Paper: arXiv 2211.01095, algorithm 2.
Formula: D = x0 + (h / (2 h_before)) (x0 - x0_before), h the gain of log(alpha / sigma); x_s = (sigma_s / sigma_t) x_t
+ (alpha_s - alpha_t sigma_s / sigma_t) D. The first step, and one to t = 0, take D = x0.
Takes: one evaluation a step.   Gives: x at the next time; keeps the last clean estimate.
Choose it when: 10 to 30 steps must do.   Rather not when: 1 to 4; a consistency model.   Relatives: ddim (D = x0), heun.

>>> DPMpp2M().evaluations
1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core import Card, Sampler, component
from luthier.diffusion.samplers._affine import keeping, levels, mean_of
from luthier.diffusion.schedules._path import like

CARD = Card(
    name="DPM-Solver++(2M)",
    source="arXiv 2211.01095",
    equations=("algorithm 2",),
    cost="one evaluation a step; one clean estimate is kept",
    limits=(
        "one step: ddim",
        "clean estimates that do not change: ddim",
        "Gaussian data: second order towards the exact map",
    ),
    differs=(
        "a step from pure noise (alpha = 0) has infinite h; the step after it is then of first order, as in diffusers",
        "the last step is of second order unless it ends at t = 0 (lower_order_final=False of diffusers, which lowers "
        "it below 15 steps by default)",
    ),
    use_when="few evaluations of a plain denoiser must do",
    relatives=("diffusion.samplers.ddim", "diffusion.samplers.heun"),
    mechanism="ODE step",
)


@dataclass(frozen=True)
class Before:
    """The clean estimate of the step before, and its gain of log(alpha / sigma)."""

    clean: Tensor
    gain: Tensor


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Sampler):
    """Has no parameters."""

    def step(self, at: Any, state: Before | None) -> tuple[Tensor, Before]:
        here, there = levels(at.path, at.t, at.s)
        clean = at.clean(at.x, at.t)
        gain = (there.alpha / there.sigma).log() - (here.alpha / here.sigma).log()
        ahead = clean
        if state is not None and bool(torch.isfinite(gain)):
            ahead = clean + like(gain / state.gain / 2, at.x) * (clean - state.clean)
        return mean_of(keeping(here, there, there.sigma), at.x, ahead), Before(clean, gain)
