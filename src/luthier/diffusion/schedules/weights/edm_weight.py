"""EDM weight: errors are measured in the units in which an EDM network predicts.

Paper: arXiv 2206.00364, table 1.   Formula: (r^2 + s^2) / (r s)^2 on the error of x0, r = sigma / alpha, s the deviation of the data.
Takes: a path, times (B,), the kind of the prediction.   Gives: factors (B,) on its squared error.
Choose it when: the network has EDM preconditioning, with karras_time.   Rather not when: the deviation of the data is unknown.
Relatives: snr_weight (s -> infinity, up to nothing else).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> round(float(EDMWeight(deviation=1.0)(Flow(), torch.tensor([0.5]), "x0")), 2)
2.0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from luthier.core import Card, NoisePath, Weighting, component
from luthier.diffusion.schedules._weight import in_kind, snr

CARD = Card(
    name="EDM weight",
    source="arXiv 2206.00364",
    cost="none",
    limits=(
        "SNR + 1 / deviation^2 for kind x0",
        "deviation -> inf: snr_weight",
    ),
    differs=("stated on x0 of any path by the ratio sigma / alpha, which is the paper's sigma",),
    use_when="an EDM network is trained",
    relatives=("diffusion.schedules.weights.snr_weight",),
    mechanism="loss weighting",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class EDMWeight(Weighting):
    """deviation: of the data."""

    deviation: Annotated[float, Gt(0)] = 0.5

    def __call__(self, path: NoisePath, t: Tensor, kind: str) -> Tensor:
        return in_kind(snr(path, t) + self.deviation**-2, path, t, kind)
