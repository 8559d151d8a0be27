"""Image drift: how far the tuned model's images are from what the untouched model draws from the same noise.

Source: standard.
Formula: mean over samples of the root mean squared pixel difference of tuned and base image.
Takes: rows with conditions, a subject and its base.   Gives: image_drift.
Choose it when: tuning shall change one thing and leave the rest.   Rather not when: the sampler or the noise schedule changed
with the training: the same noise then means another image.   Relatives: old_data (of texts), image_vendi.

>>> ImageDrift(samples=1).samples
1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.measure.images._image import ImageSubject, rows_of

CARD = Card(
    name="image drift",
    source="standard",
    needs=Needs(batch=("image",)),
    cost="samples images per row of both models",
    limits=("a model against itself: 0",),
    use_when="tuning shall change one thing and leave the rest",
    relatives=("measure.forgetting.old_data",),
    mechanism="paired noise",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ImageDrift(Measure):
    """samples: images per row; captions: drawn in place of the test rows, where these are what tuning shall change."""

    samples: Annotated[int, Ge(1)] = 4
    captions: tuple[str, ...] = ()

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        model = cast(ImageSubject, subject)
        rows = [{"caption": c} for c in self.captions] or rows_of(rows, self.name)
        tuned, base = model.generate(rows, samples=self.samples), model.base().generate(rows, samples=self.samples)
        items = (tuned - base).double().flatten(2).square().mean(2).sqrt().mean(1)
        yield Reading("image_drift", float(items.mean()), tuple(items.tolist()), 0, "", "forgetting")
