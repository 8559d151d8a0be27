"""Variance-preserving path in continuous time, with linear beta or cosine.

Paper: arXiv 2011.13456 (linear beta), arXiv 2102.09672, eq. 17 (cosine).
Formula: alpha^2 + sigma^2 = 1; linear: log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2; cosine: alpha = f(t) / f(0) with f(t) =
cos(pi/2 (t + s) / (1 + s)).
Takes: times in [0, t_max].   Gives: alpha, sigma, their derivatives.
Choose it when: a diffusion model is made from scratch or was trained in continuous time.   Rather not when: it was trained
on a table of 1000 steps; vp_table has exactly these.   Relatives: vp_table, flow, ve.

>>> import torch
>>> at = VP(schedule="cosine", offset=0.0).level(torch.tensor(0.5)); round(float(at.alpha), 4), round(float(at.sigma), 4)
(0.7071, 0.7071)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import softplus

from luthier.core import Card, Level, NoisePath, component
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="variance-preserving path",
    source="arXiv 2011.13456",
    cost="none",
    limits=(
        "alpha^2 + sigma^2 = 1 at every time",
        "x is clean at t = 0",
        "time_of(log-SNR) is the inverse on [0, t_max]",
    ),
    differs=(
        "the cosine ends at t = 0.9946 unless t_max says otherwise, as DPM-Solver ends it: alpha is 0 at t = 1, where a "
        "prediction of eps says nothing",
    ),
    use_when="images keep unit size at every noise level and time is continuous",
    relatives=("diffusion.schedules.vp_table", "diffusion.schedules.flow", "diffusion.schedules.ve"),
    mechanism="noise path",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class VP(NoisePath):
    """schedule: what falls; beta_0, beta_1: rate of the linear one at t = 0 and 1; offset: s of the cosine."""

    schedule: Literal["linear", "cosine"] = "linear"
    beta_0: Annotated[float, Gt(0)] = 0.1
    beta_1: Annotated[float, Gt(0)] = 20.0
    offset: Annotated[float, Ge(0)] = 0.008
    t_min: Annotated[float, Gt(0)] = 1e-3
    t_max: Annotated[float, Gt(0), Le(1)] = 0.9946

    def __post_init__(self) -> None:
        if self.beta_1 < self.beta_0 or self.t_max <= self.t_min:
            raise ValueError(
                f"vp requires beta_0 <= beta_1 and t_min < t_max; got {self.beta_0}, {self.beta_1}, {self.t_min}, {self.t_max}"
            )

    def level(self, t: Tensor) -> Level:
        t = wide(t)
        if self.schedule == "linear":
            log_alpha = -t * (self.beta_0 / 2 + t * (self.beta_1 - self.beta_0) / 4)
            alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
            d_alpha = -alpha * (self.beta_0 + t * (self.beta_1 - self.beta_0)) / 2
        else:
            pace, first = math.pi / 2 / (1 + self.offset), math.cos(math.pi / 2 * self.offset / (1 + self.offset))
            angle, start = pace * (t + self.offset), pace * self.offset
            alpha = (angle.cos() / first).masked_fill(t >= 1, 0.0)
            # 1 - alpha^2 = (cos^2 start - cos^2 angle) / cos^2 start, a product of sines: exact near t = 0
            sigma = ((angle - start).sin() * (angle + start).sin()).clamp_min(0).sqrt() / first
            d_alpha = -pace * angle.sin() / first
        return Level(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time_of(self, log_snr: Tensor) -> Tensor:
        log_snr = wide(log_snr)
        if self.schedule == "linear":
            twice = 2 * softplus(-log_snr)  # 2 log(1 / alpha^2)
            slope = self.beta_1 - self.beta_0
            t = twice / (self.beta_0 + (self.beta_0**2 + slope * twice).sqrt())
        else:
            start = math.pi / 2 * self.offset / (1 + self.offset)
            # sin^2 angle = 1 - cos^2 start alpha^2 = sigma^2 + sin^2 start alpha^2
            down, up = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
            sine = (up + math.sin(start) ** 2 * down).sqrt()
            angle = torch.atan2(sine, math.cos(start) * down.sqrt())
            t = angle * (1 + self.offset) * 2 / math.pi - self.offset
        return t.clamp(0, self.t_max)
