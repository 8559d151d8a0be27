"""Logit-normal times: middle noise levels are trained most often.

Paper: arXiv 2403.03206, eq. 19 and 23.   Formula: s = sigmoid(mean + std z), z normal; t = shift s / (1 + (shift - 1) s), as a
share of the path's time.
Takes: uniform numbers (B,) and a path.   Gives: times (B,).
Choose it when: the path is flow.   Rather not when: noise levels span orders of magnitude (ve): karras_time.
Relatives: uniform_time, karras_time.

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> LogitNormal()(torch.tensor([0.5]), Flow())
tensor([0.5000])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Card, NoisePath, Times, component
from luthier.diffusion.schedules._grid import shifted

CARD = Card(
    name="logit-normal times",
    source="arXiv 2403.03206",
    cost="none",
    limits=(
        "the median is at sigmoid(mean), moved by shift",
        "shift = 1 is no shift",
        "the distribution function of logit t is that of N(mean, std^2) at shift = 1 on flow",
    ),
    differs=("times below t_min are moved to t_min",),
    use_when="the path is flow",
    relatives=("diffusion.schedules.times.uniform_time", "diffusion.schedules.times.karras_time"),
    mechanism="training times",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LogitNormal(Times):
    """mean, std: of the logit; shift: > 1 moves times to higher noise."""

    mean: float = 0.0
    std: Annotated[float, Gt(0)] = 1.0
    shift: Annotated[float, Gt(0)] = 1.0

    def __call__(self, uniform: Tensor, path: NoisePath) -> Tensor:
        share = torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))
        return (path.t_max * shifted(share, self.shift)).clamp(path.t_min, path.t_max)
