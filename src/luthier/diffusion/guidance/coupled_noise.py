"""Coupled noise: between the steps of a consistency model, noise comes from the encoder that it was trained with.

Paper: arXiv 2502.18197; the formula is that of the authors' sampler.
Formula: z = mu(x0) + sigma(x0) eps in place of eps, x0 the clean estimate of the step.
Takes: the encoder as the handle "coupling".   Gives: noise.
Choose it when: a model of vct is sampled in more than one step.   Rather not when: it was trained with independent noise.
Relatives: vct, contrastive_noise (chooses the first noise).

>>> import torch
>>> CoupledNoise().renoise(torch.ones(1, 2), torch.zeros(1, 2), {"coupling": lambda x: (x + 5.0, x + 2.0)})
tensor([[7., 7.]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luthier.core import Card, Guidance, Needs, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="coupled noise of VCT",
    source="arXiv 2502.18197",
    papers=(),
    needs=Needs(handles=("coupling",)),
    cost="one pass of the encoder for each step that draws noise",
    limits=("mu = 0 and sigma = 1: the sampler without it, bit for bit", "one step: nothing is drawn"),
    differs=("checked against the authors' sampler",),
    use_when="a model of vct draws in several steps",
    avoid_when="the model was trained with independent noise",
    relatives=("diffusion.consistency.vct", "diffusion.samplers.consistency"),
    mechanism="guidance",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class CoupledNoise(Guidance):
    """Has no parameters."""

    def renoise(self, z: Tensor, clean: Tensor, handles: Mapping[str, Any]) -> Tensor:
        if "coupling" not in handles:
            raise Refused(sentence("coupled_noise", "the encoder of a model trained by vct", "a model without one",
                                   "Leave it out, or sample the run's folder"))  # fmt: skip
        mean, deviation = handles["coupling"](clean)
        return mean + deviation * z
