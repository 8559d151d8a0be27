"""Image Vendi score: the effective number of different images among the samples of one condition, from their pixels.

Paper: arXiv 2210.02410.
Formula: exp of the entropy of the eigenvalues of K / n, K the Gaussian kernel of root mean squared pixel distances.
Takes: rows with conditions, a subject that draws.   Gives: image_vendi, from 1 to the number of samples.
Choose it when: diversity within a condition matters, for any images.   Rather not when: pixels say little (large photographs):
embed them first.   Relatives: attribute_entropy (exact, in a world), vendi (of texts).

>>> import torch
>>> round(vendi_of(torch.zeros(3, 1, 2, 2), 0.25), 4)
1.0
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure.images._image import ImageSubject, rows_of
from luthier.ops.vendi import vendi_of_distances

CARD = Card(
    name="image Vendi score",
    source="arXiv 2210.02410",
    needs=Needs(batch=("image",)),
    cost="samples images per row; eigenvalues of small matrices",
    limits=("equal images: 1", "n images far apart: n"),
    differs=("the kernel is a Gaussian of pixel distances; the paper leaves the kernel open",),
    use_when="diversity within a condition matters",
    avoid_when="pixels say little",
    relatives=("measure.images.attribute_entropy", "measure.diversity.vendi"),
    mechanism="Vendi score",
)


def vendi_of(images: Tensor, length: float) -> float:
    """Effective number of images (n, C, H, W), under exp(-rms^2 / (2 length^2))."""
    flat = images.flatten(1).double()
    rms = torch.cdist(flat, flat).square() / flat.shape[1]
    return float(vendi_of_distances(rms, length))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ImageVendi(Measure):
    """samples: images per row; length: of the kernel, in units of pixel values in [-1, 1]."""

    samples: Annotated[int, Ge(2)] = 16
    length: Annotated[float, Gt(0)] = 0.25

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        images = cast(ImageSubject, subject).generate(rows_of(rows, self.name), samples=self.samples)
        items = [vendi_of(some, self.length) for some in images]
        yield Reading("image_vendi", sum(items) / len(items), tuple(items), 1, "images", "diversity")
