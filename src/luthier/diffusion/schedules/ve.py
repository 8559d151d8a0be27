"""Variance-exploding path: noise is added to untouched data, and time is its deviation.

Paper: arXiv 2206.00364.   Formula: x_t = x0 + t eps.
Takes: times, which are noise deviations in units of the data.   Gives: alpha, sigma, their derivatives; velocity = eps.
Choose it when: the network is of the EDM family.   Rather not when: inputs of unit size matter to the network; vp keeps
them.   Relatives: vp (x / alpha is this path).

>>> import torch
>>> [round(float(part), 2) for part in VE().level(torch.tensor(3.0))]
[1.0, 3.0, 0.0, 1.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Card, Level, NoisePath, component
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="variance-exploding path",
    source="arXiv 2206.00364",
    cost="none",
    limits=("alpha = 1 at every time", "velocity is eps at every time", "log-SNR is -2 log t"),
    differs=(
        "preconditioning (c_in, c_skip, c_out) belongs to the network's own parametrisation and is not part of the path",
    ),
    use_when="the model is of the EDM family",
    relatives=("diffusion.schedules.vp", "diffusion.schedules.flow"),
    mechanism="noise path",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class VE(NoisePath):
    """t_min, t_max: least and largest noise deviation at which denoisers are asked."""

    t_min: Annotated[float, Gt(0)] = 0.002
    t_max: Annotated[float, Gt(0)] = 80.0

    def __post_init__(self) -> None:
        if not self.t_min < self.t_max:
            raise ValueError(f"ve requires t_min < t_max; got {self.t_min} and {self.t_max}")

    def level(self, t: Tensor) -> Level:
        t = wide(t)
        one = torch.ones_like(t)
        return Level(one, t, torch.zeros_like(t), one)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-wide(log_snr) / 2).clamp(0, self.t_max)

    def network_time(self, t: Tensor) -> Tensor:
        """log(sigma) / 4, what EDM networks take."""
        return t.log() / 4
