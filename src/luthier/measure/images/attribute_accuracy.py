"""Attribute accuracy: the share of drawn images that show exactly what was asked for, read from the pixels by the world.

Source: standard (a world that knows how its images are drawn).
Formula: mean over conditions of the share of samples whose attributes are all as asked; beside it the distance of the samples
from the nearest image that can be drawn.
Takes: rows with captions of a world, a subject that draws.   Gives: attribute_accuracy, distance_to_world.
Choose it when: fidelity to the prompt shall be measured, not judged.   Rather not when: images are of no world (denoising_error).
Relatives: attribute_entropy, image_vendi (diversity beside it).

>>> AttributeAccuracy(samples=2).samples
2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure.images._image import ImageSubject, reader, rows_of

CARD = Card(
    name="attribute accuracy",
    source="standard",
    needs=Needs(batch=("image",), handles=("read",)),
    cost="samples images per row",
    limits=(
        "the world's own images: accuracy 1, distance 0",
        "a model that ignores the caption: the share of captions that fit by chance",
    ),
    use_when="images come from a world that reads them exactly",
    relatives=("measure.images.attribute_entropy",),
    mechanism="oracle",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class AttributeAccuracy(Measure):
    """samples: images per row."""

    samples: Annotated[int, Ge(1)] = 4

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        read, rows = reader(ctx, self.name), rows_of(rows, self.name)
        images = cast(ImageSubject, subject).generate(rows, samples=self.samples)
        seen = read(images.flatten(0, 1))
        asked = [row.get("asked", row["caption"]) for row in rows for _ in range(self.samples)]
        right = seen.right(asked).all(-1).double().view(len(rows), self.samples).mean(1)
        far = seen.rmse.double().view(len(rows), self.samples).mean(1)
        yield Reading("attribute_accuracy", float(right.mean()), tuple(right.tolist()), 1, "share", "quality")
        yield Reading("distance_to_world", float(far.mean()), tuple(far.tolist()), -1, "", "quality")
