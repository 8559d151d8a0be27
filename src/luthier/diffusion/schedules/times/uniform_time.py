"""Uniform times: every time of the path is trained equally often.

Paper: arXiv 2011.13456 (continuous time).   Formula: t = t_min + u (t_max - t_min).
Takes: uniform numbers (B,) and a path.   Gives: times (B,).
Choose it when: nothing is known about which times matter.   Rather not when: the path is flow (logit_normal) or ve
(karras_time).   Relatives: grid_time, logit_normal, karras_time.

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> UniformTime()(torch.tensor([0.5]), Flow(t_min=0.2))
tensor([0.6000])
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from luthier.core import Card, NoisePath, Times, component

CARD = Card(
    name="uniform times",
    source="arXiv 2011.13456",
    cost="none",
    limits=("u = 0 is t_min, u = 1 is t_max",),
    use_when="every noise level should be trained equally often",
    relatives=("diffusion.schedules.times.grid_time", "diffusion.schedules.times.logit_normal"),
    mechanism="training times",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class UniformTime(Times):
    """Has no parameters."""

    def __call__(self, uniform: Tensor, path: NoisePath) -> Tensor:
        return path.t_min + uniform * (path.t_max - path.t_min)
