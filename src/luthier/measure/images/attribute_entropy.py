"""Attribute entropy: how many different images the model draws for one caption, against how many there are.

Source: standard.
Formula: for each caption, the entropy in nats of which of the world's images its samples are nearest to; and the total variation
between the shares of where the object stands and the true ones.
Takes: rows of a world, a subject that draws.   Gives: attribute_entropy, variation_from_truth.
Choose it when: tuning may have narrowed what a model draws.   Rather not when: images are of no world (image_vendi).
Relatives: image_vendi, attribute_accuracy.

>>> import torch
>>> round(entropy(torch.tensor([1, 1, 2, 2])), 4)
0.6931
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure.images._image import ImageSubject, reader, rows_of

CARD = Card(
    name="attribute entropy",
    source="standard",
    needs=Needs(batch=("image",), handles=("read",)),
    cost="samples images per row",
    limits=("one image again and again: 0", "n different images: log n"),
    use_when="images come from a world, and diversity within a caption matters",
    relatives=("measure.images.image_vendi", "measure.images.attribute_accuracy"),
    mechanism="oracle",
)


def entropy(kinds: Tensor) -> float:
    """Entropy in nats of the shares of equal numbers, (n,)."""
    _, counts = kinds.unique(return_counts=True)
    return float(torch.special.entr(counts.double() / counts.sum()).sum())


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class AttributeEntropy(Measure):
    """samples: images per row."""

    samples: Annotated[int, Ge(2)] = 16

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        read, rows = reader(ctx, self.name), rows_of(rows, self.name)
        images = cast(ImageSubject, subject).generate(rows, samples=self.samples)
        seen = read(images.flatten(0, 1))
        items = [entropy(kinds) for kinds in seen.template.view(len(rows), self.samples)]
        yield Reading("attribute_entropy", sum(items) / len(items), tuple(items), 1, "nats", "diversity")
        even = torch.full((len(seen.share("jitter")),), 1 / len(seen.share("jitter")))
        variation = float((seen.share("jitter") - even).abs().sum() / 2)
        yield Reading("variation_from_truth", variation, (), -1, "share", "diversity")
