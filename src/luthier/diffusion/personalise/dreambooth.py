"""DreamBooth: learns a subject from a few images, and its class anew from images of that class that the model draws itself.

Paper: arXiv 2208.12242, eq. 2.   Formula: L(subject) + strength * L(class images of the untrained model), L any objective of
single images, denoise by default; the two have noise and times of their own.
Takes: a few images with captions, the caption of their class.   Gives: (B,) values of each part.
Choose it when: a subject is learned by the weights, and the rest of its class must stay as it is.
Rather not when: a new word alone is enough (textual_inversion), or an anchor for each image will do (dco).
Relatives: denoise (strength 0), dco, textual_inversion (gives the subject a word of its own).

>>> DreamBooth(prior="a dog").images
64
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import ConfigError, sentence
from luthier.core.terms import as_terms
from luthier.diffusion.train.denoise import Denoise

CARD = Card(
    name="DreamBooth",
    source="arXiv 2208.12242",
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="twice that of its objective; the class images are drawn once before training",
    limits=(
        "strength = 0: its objective, and no class image is drawn",
        "class images equal to the subject's, with its captions, noise and times: 1 + strength times its objective",
        "the value of diffusers' training script with prior preservation",
    ),
    differs=(
        "the subject's name is the captions' matter: a rare word of the model, or a new one (adaptation textual_inversion)",
        "the conditions of class images are never dropped",
    ),
    use_when="a subject is learned by the weights and its class must stay",
    avoid_when="a new word alone is enough",
    relatives=("diffusion.train.denoise", "diffusion.personalise.dco", "adapt.representation.textual_inversion"),
    mechanism="denoising",
)
OWN = ("noise", "uniform")


def side(batch: Batch, part: str) -> Batch:
    """One part of a batch as a batch of its own, with its noise and uniform numbers."""
    at, size = batch.parts.index(part), len(batch)
    inputs = {k: v[at * size : (at + 1) * size] for k, v in batch.inputs.items()}
    return replace(batch, inputs=inputs, parts=("image",))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DreamBooth(Objective):
    """prior: caption of the class (its number for models of classes); images: of it, drawn by the untrained model.

    strength: of the class's loss; objective: what both parts are learned by.
    """

    prior: str = ""
    images: Annotated[int, Gt(0)] = 64
    strength: Annotated[float, Ge(0)] = 1.0
    objective: Objective = field(default_factory=Denoise)

    def __post_init__(self) -> None:
        if (
            self.objective.needs.batch != ("image",)
            or self.objective.brings((1, 1, 1), 0)
            or isinstance(self.objective, DreamBooth)
        ):
            raise ConfigError(sentence("dreambooth", "an objective of single images that is only a loss", self.objective.name,
                                       "Use denoise or dco"))  # fmt: skip

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return replace(CARD.needs, signals=self.objective.needs.signals, handles=self.objective.needs.handles)

    @property
    def class_images(self) -> tuple[str, int] | None:
        """(caption, how many) of the images that the recipe shall have the untrained model draw; None for none."""
        return (self.prior, self.images) if self.strength else None

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        if not self.strength:
            return as_terms(self.objective(batch, s))
        mine = as_terms(self.objective(side(batch, "image"), s.part("image")))
        drawn: Mapping[str, Tensor] = {k: s[f"prior_{k}"] for k in OWN}
        kept = as_terms(self.objective(side(batch, "prior"), s.part("prior").replaced(**drawn)))
        return (*mine, *(replace(t, name=f"{t.name}.prior").scaled(self.strength) for t in kept))
