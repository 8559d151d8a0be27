"""Log-normal noise: the logarithm of sigma / alpha is normal, on any path.

Paper: arXiv 2206.00364, table 1 (training).   Formula: log(sigma / alpha) = mean + std z, z normal.
Takes: uniform numbers (B,) and a path.   Gives: times (B,).
Choose it when: the path is ve, or training should not depend on how the path counts time.   Rather not when: the network
knows whole steps only: grid_time.   Relatives: logit_normal (on flow they are the same family: logit t = log ratio).

>>> import torch
>>> from luthier.diffusion.schedules.ve import VE
>>> KarrasTime(mean=0.0)(torch.tensor([0.5]), VE())
tensor([1.])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from luthier.core import Card, NoisePath, Times, component

CARD = Card(
    name="log-normal noise",
    source="arXiv 2206.00364",
    cost="none",
    limits=(
        "on ve: log t is normal with this mean and deviation",
        "on flow: the same times as logit_normal with this mean and deviation",
    ),
    differs=("times outside [t_min, t_max] are moved to its ends",),
    use_when="the path is ve",
    relatives=("diffusion.schedules.times.logit_normal",),
    mechanism="training times",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class KarrasTime(Times):
    """mean, std: of log(sigma / alpha)."""

    mean: float = -1.2
    std: Annotated[float, Gt(0)] = 1.2

    def __call__(self, uniform: Tensor, path: NoisePath) -> Tensor:
        log_ratio = self.mean + self.std * torch.special.ndtri(uniform)
        return path.time_of(-2 * log_ratio).to(uniform).clamp(path.t_min, path.t_max)
