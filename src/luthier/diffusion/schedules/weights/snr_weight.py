"""Signal-to-noise weight: the error of eps, whatever the network predicts.

Paper: arXiv 2202.00512, section 4.   Formula: alpha^2 / sigma^2 on the error of x0.
Takes: a path, times (B,), the kind of the prediction.   Gives: factors (B,) on its squared error.
Choose it when: a model of kind x0 or v should train like one of kind eps.
Rather not when: high noise must be learned as well; min_snr caps this one.
Relatives: min_snr (with a cap), unit_weight (the same for eps).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> [round(float(w), 2) for w in SNRWeight()(Flow(), torch.tensor([0.2, 0.5]), "x0")]
[16.0, 1.0]
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from luthier.core import Card, NoisePath, Weighting, component
from luthier.diffusion.schedules._weight import in_kind, snr

CARD = Card(
    name="signal-to-noise weight",
    source="arXiv 2202.00512",
    cost="none",
    limits=(
        "1 for kind eps at every time",
        "alpha^2 / sigma^2 for kind x0",
    ),
    use_when="the weight of eps training is wanted with another kind",
    relatives=("diffusion.schedules.weights.min_snr", "diffusion.schedules.weights.unit_weight"),
    mechanism="loss weighting",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SNRWeight(Weighting):
    """Has no parameters."""

    def __call__(self, path: NoisePath, t: Tensor, kind: str) -> Tensor:
        return in_kind(snr(path, t), path, t, kind)
