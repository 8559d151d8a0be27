"""Energy distance: how far what the model draws is from held-out images of the same captions, as distributions of pixels.

Source: standard (energy distance of two samples).
Formula: 2 E|x - y| - E|x - x'| - E|y - y'|, |.| the root mean squared difference of two images' pixels, x drawn, y held out; pairs
are of different rows, which makes the estimate unbiased.
Takes: test images with their conditions, a subject that draws.   Gives: energy_distance, 0 for equal distributions.
Choose it when: samples of real images are judged, few-step ones too, and no world can read them.   Rather not when: a world can
(attribute_accuracy), or large photographs are compared, whose pixels say little.
Relatives: denoising_error (of the denoiser, not of what it draws), attribute_accuracy.

>>> EnergyDistance(samples=2).samples
2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure.images._image import ImageSubject, held_out, rows_of

CARD = Card(
    name="energy distance",
    source="standard",
    needs=Needs(batch=("image",)),
    cost="samples images per row; distances of all pairs of images",
    limits=(
        "drawn images equal to the held-out ones, one per row: 0",
        "all drawn images equal and all held-out ones equal: twice their distance",
    ),
    differs=("models of latents are compared with held-out images that went through their VAE",),
    use_when="samples of real images are judged",
    avoid_when="images are large photographs",
    relatives=("measure.images.denoising_error", "measure.images.attribute_accuracy"),
    mechanism="two-sample distance",
)


def energy_items(drawn: Tensor, held: Tensor) -> Tensor:
    """Shares of the rows in the energy distance, (n,), whose mean it is; drawn (n, samples, ...), held (n, ...), n >= 2."""
    n, samples = drawn.shape[:2]
    x, y = drawn.flatten(0, 1).flatten(1).double(), held.flatten(1).double()
    scale = y.shape[1] ** -0.5

    def others(distance: Tensor) -> Tensor:
        """Means (n,) of distances (n, n) to other rows."""
        return (distance.sum(1) - distance.diagonal()) / (n - 1)

    between = torch.cdist(x, y).view(n, samples, n).mean(1) * scale
    drawn_ones = torch.cdist(x, x).view(n, samples, n, samples).mean((1, 3)) * scale
    held_ones = torch.cdist(y, y) * scale
    return others(between) + others(between.mT) - others(drawn_ones) - others(held_ones)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class EnergyDistance(Measure):
    """samples: images per row."""

    samples: Annotated[int, Ge(1)] = 4

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        model, rows = cast(ImageSubject, subject), rows_of(rows, self.name)
        if len(rows) < 2:
            raise DataError(sentence(self.name, "at least two test images", "one", "Raise data.test_rows"))
        with torch.no_grad():
            held = model.decode(held_out(ctx, self.name).float()).cpu()
        items = energy_items(model.generate(rows, samples=self.samples), held)
        yield Reading("energy_distance", float(items.mean()), tuple(items.tolist()), -1, "", "quality")
