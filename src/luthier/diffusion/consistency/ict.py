"""Improved consistency training: a few-step model learned from images alone, comparing each image at two neighbouring noise levels.

Paper: arXiv 2310.14189, table 1 and eq. 5-10.
Formula: 1 / (s_{i+1} - s_i) * pseudo-Huber(f(x + s_{i+1} z), f(x + s_i z)), the second without gradient; levels s are a Karras grid
whose number doubles from `first` to `last` in equal stages of the run; i is drawn so that log s is normal (mean, std).
Takes: images, conditions.   Gives: (B,) values.
Choose it when: there is no trained diffusion model, or its quality is the limit.   Rather not when: a good teacher exists and time
is short (consistency_distillation, sct from a trained model).   Relatives: sct, consistency_distillation.

>>> [levels_at(p, 10, 1280) for p in (0.0, 0.5, 0.999)]
[11, 161, 1281]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.diffusion.consistency._ratios import time_at, two_levels
from luthier.diffusion.schedules._path import mix

CARD = Card(
    name="iCT",
    source="arXiv 2310.14189",
    papers=(11,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform", "progress"), handles=("policy",)),
    cost="one forward and backward, one forward of the target",
    limits=(
        "the number of levels goes from first to last by doublings",
        "the probabilities of the levels sum to 1",
        "the target carries no gradient",
        "data of one point and a network that knows it: loss 0",
    ),
    differs=(
        "levels are ratios sigma / alpha, so that any path will do; on ve they are the paper's",
        "the DDIM form of the jump takes the place of c_skip and c_out for networks that predict eps, v or velocity",
        "dropout, where the network has any, is not the same in both passes",
    ),
    use_when="there is no teacher",
    avoid_when="a good teacher exists and time is short",
    relatives=("diffusion.consistency.sct", "diffusion.consistency.consistency_distillation"),
    mechanism="consistency",
)


def levels_at(progress: float, first: int, last: int) -> int:
    """Number of levels N at a share of the run in [0, 1): min(first 2^stage, last) + 1, stages of equal length. Eq. 9 and 10."""
    stages = math.floor(math.log2(last // first)) + 1
    return min(first * 2 ** math.floor(progress * stages), last) + 1


def karras_levels(count: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """`count` rising noise ratios from low to high with equal steps of s^(1 / rho), float64."""
    share = torch.linspace(0, 1, count, dtype=torch.float64)
    return (
        torch.lerp(
            torch.tensor(low, dtype=torch.float64) ** (1 / rho),
            torch.tensor(high, dtype=torch.float64) ** (1 / rho),
            share,
        )
        ** rho
    )


def level_probabilities(levels: Tensor, mean: float, std: float) -> Tensor:
    """Probability of each pair (s_i, s_{i+1}), (N - 1,): the normal mass of log s between the two, normalised. Eq. 8."""
    mass = torch.erf((levels.log() - mean) / (math.sqrt(2) * std)).diff()
    return mass / mass.sum()


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ICT(Objective):
    """first, last: levels at the start and at the end; low, high: smallest and largest ratio; mean, std: of log s; huber: c."""

    first: Annotated[int, Gt(1)] = 10
    last: Annotated[int, Gt(1)] = 1280
    low: Annotated[float, Gt(0)] = 0.002
    high: Annotated[float, Gt(0)] = 80.0
    mean: float = -1.1
    std: Annotated[float, Gt(0)] = 2.0
    huber: float | None = None

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, x0, uniform = s.handle("policy"), s["image"], s["uniform"]
        levels = karras_levels(levels_at(float(s["progress"][0]), self.first, self.last), self.low, self.high).to(x0.device)
        rising = level_probabilities(levels, self.mean, self.std).cumsum(0)
        at = torch.searchsorted(rising, uniform[:, 0].double().contiguous()).clamp_max(len(levels) - 2)
        near, far = levels[at].to(uniform), levels[at + 1].to(uniform)
        t, r = time_at(model.path, far), time_at(model.path, near)
        x, lower = mix(model.path, x0, s["noise"], t), mix(model.path, x0, s["noise"], r)
        values = two_levels(model, x, lower, t, r, batch.condition(), self.huber)
        return Terms("ict", values / (far - near))
