"""Min-SNR weight: the signal-to-noise weight with a cap, so that easy low-noise times do not dominate.

Paper: arXiv 2303.09556.   Formula: min(SNR, gamma) on the error of x0;
that is / SNR for eps, / (SNR + 1) for v on a variance-preserving path.
Takes: a path, times (B,), the kind of the prediction.   Gives: factors (B,) on its squared error.
Choose it when: training a diffusion model takes long; a good first choice.
Rather not when: the path is flow with logit_normal times, which balance already.
Relatives: snr_weight (gamma = infinity), unit_weight.

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> [round(float(w), 2) for w in MinSNR()(Flow(), torch.tensor([0.2, 0.5]), "x0")]
[5.0, 1.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from luthier.core import Card, NoisePath, Weighting, component
from luthier.diffusion.schedules._weight import in_kind, snr

CARD = Card(
    name="min-SNR weight",
    source="arXiv 2303.09556",
    cost="none",
    limits=(
        "min(SNR, gamma) for kind x0",
        "min(SNR, gamma) / SNR for eps",
        "min(SNR, gamma) / (SNR + 1) for v on vp",
        "gamma -> inf: snr_weight",
    ),
    differs=(
        "the paper states x0, eps and v on variance-preserving paths; velocity and other paths follow from the same error of x0",
    ),
    use_when="noise levels should share the training evenly",
    relatives=("diffusion.schedules.weights.snr_weight", "diffusion.schedules.weights.unit_weight"),
    mechanism="loss weighting",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """gamma: the cap."""

    gamma: Annotated[float, Gt(0)] = 5.0

    def __call__(self, path: NoisePath, t: Tensor, kind: str) -> Tensor:
        return in_kind(snr(path, t).clamp_max(self.gamma), path, t, kind)
