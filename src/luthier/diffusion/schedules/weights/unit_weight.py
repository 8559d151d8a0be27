"""Unit weight: the squared error of the prediction as it is.

Paper: arXiv 2006.11239, eq. 14 (for eps).   Formula: 1, whatever the kind.
Takes: a path, times (B,), the kind of the prediction.   Gives: factors (B,) on its squared error.
Choose it when: the prediction kind was chosen for its plain error (eps, velocity).
Rather not when: training is slow because noise levels pull apart; use min_snr.
Relatives: min_snr, snr_weight.

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> UnitWeight()(Flow(), torch.tensor([0.2, 0.8]), "eps")
tensor([1., 1.])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Card, NoisePath, Weighting, component

CARD = Card(
    name="unit weight",
    source="arXiv 2006.11239",
    cost="none",
    limits=("1 for every kind and time",),
    use_when="the plain error is wanted",
    relatives=("diffusion.schedules.weights.min_snr", "diffusion.schedules.weights.snr_weight"),
    mechanism="loss weighting",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class UnitWeight(Weighting):
    """Has no parameters."""

    def __call__(self, path: NoisePath, t: Tensor, kind: str) -> Tensor:
        return torch.ones_like(t)
