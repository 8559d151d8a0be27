"""Image reward: what the recipe's reward thinks of the images that the model draws.

Source: standard.   Formula: mean reward over samples of the test conditions.
Takes: rows with conditions, a subject that draws, the recipe's reward.   Gives: image_reward.
Choose it when: a reward was tuned for; put the same `reward` into the baseline's recipe.   Rather not when: it is the only measure:
a reward that rises while all else falls was hacked (attribute_accuracy, image_vendi, image_drift).
Relatives: world_reward.

>>> ImageReward(samples=2).samples
2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component
from luthier.core.errors import DataError, sentence
from luthier.measure.images._image import ImageSubject, rows_of

CARD = Card(
    name="image reward",
    source="standard",
    needs=Needs(batch=("image",), handles=("reward",)),
    cost="samples images per row, and their rewards",
    limits=("a reward that is the same for all images: that number",),
    use_when="a reward was tuned for",
    avoid_when="it is the only measure",
    relatives=("measure.images.attribute_accuracy", "measure.images.image_vendi"),
    mechanism="reward",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ImageReward(Measure):
    """samples: images per row."""

    samples: Annotated[int, Ge(1)] = 4

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        reward = ctx.handles.get("reward")
        if reward is None:
            raise DataError(
                sentence(self.name, "a recipe with a reward", "none", "Add for example `reward: {world_reward: {}}`")
            )
        images = cast(ImageSubject, subject).generate(rows_of(rows, self.name), samples=self.samples)
        asked = [row for row in rows for _ in range(self.samples)]
        with torch.no_grad():
            items = reward(asked, images.flatten(0, 1)).double().cpu().view(len(rows), self.samples).mean(1)
        yield Reading("image_reward", float(items.mean()), tuple(items.tolist()), 1, "", "alignment")
