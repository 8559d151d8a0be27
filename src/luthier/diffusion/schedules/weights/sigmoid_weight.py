"""Sigmoid weight: eps errors fade out where there is hardly any noise.

Paper: arXiv 2303.00848.   Formula: sigmoid(bias - log SNR) on the error of eps.
Takes: a path, times (B,), the kind of the prediction.   Gives: factors (B,) on its squared error.
Choose it when: images are large and fine noise wastes training.   Rather not when: fine texture matters most.
Relatives: min_snr (a hard cap on the same side).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> round(float(SigmoidWeight(bias=0.0)(Flow(), torch.tensor([0.5]), "eps")), 2)
0.5
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import Card, NoisePath, Weighting, component
from luthier.diffusion.schedules._path import log_snr
from luthier.diffusion.schedules._weight import in_kind, snr

CARD = Card(
    name="sigmoid weight",
    source="arXiv 2303.00848",
    cost="none",
    limits=(
        "sigmoid(bias - log SNR) for kind eps",
        "bias -> inf: snr_weight",
    ),
    differs=("the default bias of 2 is recalled from the paper, not checked against its text",),
    use_when="fine noise should count less",
    relatives=("diffusion.schedules.weights.min_snr",),
    mechanism="loss weighting",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SigmoidWeight(Weighting):
    """bias: larger counts fine noise more."""

    bias: float = 2.0

    def __call__(self, path: NoisePath, t: Tensor, kind: str) -> Tensor:
        return in_kind(snr(path, t) * torch.sigmoid(self.bias - log_snr(path, t)), path, t, kind)
