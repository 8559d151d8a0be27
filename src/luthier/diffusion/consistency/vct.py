"""VCT: consistency training in which an encoder, trained beside the model, chooses the noise that goes with each image.

Paper: arXiv 2502.18197; the formula is that of the authors' code.
Formula: z = mu(x) + sigma(x) eps in place of eps, and the loss is that of the consistency technique plus
strength / gap * KL(N(mu(x), sigma(x)^2) || N(0, 1)), gap the distance of the two highest noise levels. Gradients reach the encoder
through x_t alone.
Takes: images, conditions; brings the encoder.   Gives: (B,) values of two terms.
Choose it when: a few-step model is trained from images alone (ict, sct without references) and its gradients are noisy.
Rather not when: there is a trained teacher: its ODE couples images and noise already.   Relatives: ict, sct; sample several steps
with the guide coupled_noise, which draws the noise between them from the same encoder.

>>> VCT(coupling="independent").brings((3, 16, 16), seed=0)
{}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import ConfigError, sentence
from luthier.core.terms import as_terms
from luthier.diffusion.consistency._couple import NoiseEncoder, kl_to_normal, transported
from luthier.diffusion.consistency.ict import ICT, karras_levels, levels_at
from luthier.diffusion.consistency.sct import SCT, nearer

CARD = Card(
    name="VCT",
    source="arXiv 2502.18197",
    papers=(47,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform", "progress"), handles=("policy", "coupling")),
    cost="the consistency technique, and one forward and backward of a small encoder; its weights train too",
    limits=(
        "mu = 0 and sigma = 1, as at the start: KL 0 and the loss of the consistency technique",
        "coupling independent: the consistency technique itself",
        "the KL is that of torch.distributions",
        "coupling transport: no other order of the noise is nearer to the images",
    ),
    differs=(
        "coupling, KL and its weight follow the authors' code; there the metric is taken for each pixel, here for each image",
        "the encoder is a small convolutional network that begins at independent noise; the authors take a small UNet, which "
        "sees the class as well and has no such start",
        "transport pairs the images and the noise of a step, as the authors' baseline does; conditions are not looked at",
        "a merged pipeline has no place for the encoder: it stays in the run's adapter",
    ),
    use_when="a few-step model is trained from images alone",
    avoid_when="there is a trained teacher",
    relatives=("diffusion.consistency.ict", "diffusion.consistency.sct", "diffusion.guidance.coupled_noise"),
    mechanism="consistency",
)


def gap(technique: ICT | SCT, progress: float, high: float = 80.0) -> float:
    """Distance of the two highest noise levels at a share of the run in [0, 1); high: the highest one where there is no grid."""
    if isinstance(technique, ICT):
        levels = karras_levels(levels_at(progress, technique.first, technique.last), technique.low, technique.high)
        return float(levels[-1] - levels[-2])
    top = torch.tensor([high], dtype=torch.float64)
    return float(top - nearer(top, math.floor(progress * technique.stages), technique.q, technique.k, technique.b))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class VCT(Objective):
    """consistency: ict, or sct without references; coupling: who chooses the noise; strength: of the KL.

    width, depth: channels and blocks of the encoder.
    """

    consistency: Objective = field(default_factory=ICT)
    coupling: Literal["learned", "transport", "independent"] = "learned"
    strength: Annotated[float, Ge(0)] = 10.0
    width: Annotated[int, Gt(0)] = 32
    depth: Annotated[int, Gt(0)] = 4

    def __post_init__(self) -> None:
        own = self.consistency
        if not isinstance(own, ICT | SCT) or getattr(own, "references", 0):
            raise ConfigError(sentence("vct", "the consistency technique ict, or sct with references 0", repr(own),
                                       "References assume that noise and image are independent"))  # fmt: skip

    def brings(self, shape: tuple[int, ...], seed: int) -> Mapping[str, nn.Module]:
        """The encoder, under "coupling"; nothing for the other couplings."""
        return {"coupling": NoiseEncoder(shape, self.width, self.depth, seed)} if self.coupling == "learned" else {}

    def pair(self, image: Tensor, noise: Tensor) -> Tensor:
        """The noise (B, ...) of a whole step in the order that it goes with the images (B, ...); recipes call this."""
        return transported(image, noise) if self.coupling == "transport" else noise

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        if self.coupling != "learned":
            return as_terms(self.consistency(batch, s))
        assert isinstance(self.consistency, ICT | SCT)
        mean, deviation = s.handle("coupling")(s["image"])
        coupled = s.replaced(noise=mean + deviation * s["noise"])
        strength = self.strength / gap(self.consistency, float(s["progress"][0]))
        kl = Terms("vct.kl", kl_to_normal(mean, deviation)).scaled(strength)
        return (*as_terms(self.consistency(batch, coupled)), kl)
