"""Straight path of flow matching: data and noise mixed linearly.

Paper: arXiv 2210.02747 (with sigma_min = 0), 2209.03003.   Formula: x_t = (1 - t) x0 + t eps, t in [0, 1].
Takes: times.   Gives: alpha, sigma, their derivatives; velocity = eps - x0.
Choose it when: the model is of the flow family (SD3, Flux), or few steps must do.   Rather not when: the network was made
for another path.   Relatives: vp, ve (the same family of mixtures, other coefficients).

>>> import torch
>>> [round(float(part), 2) for part in Flow().level(torch.tensor(0.25))]
[0.75, 0.25, -1.0, 1.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from luthier.core import Card, Level, NoisePath, component
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="flow path",
    source="arXiv 2210.02747",
    cost="none",
    limits=("alpha + sigma = 1", "velocity is eps - x0 at every time", "log-SNR is 0 at t = 1/2"),
    differs=("time runs from data (0) to noise (1), as in diffusers; the paper's runs the other way",),
    use_when="the model predicts velocities of a straight path",
    relatives=("diffusion.schedules.vp", "diffusion.schedules.ve"),
    mechanism="noise path",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Flow(NoisePath):
    """t_min, t_max: times at which denoisers are asked."""

    t_min: Annotated[float, Gt(0)] = 1e-3
    t_max: Annotated[float, Gt(0), Le(1)] = 1.0

    def level(self, t: Tensor) -> Level:
        t = wide(t)
        one = torch.ones_like(t)
        return Level(1 - t, t, -one, one)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-wide(log_snr) / 2).clamp(0, self.t_max)
