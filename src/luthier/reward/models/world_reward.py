"""World reward: what a lab world itself thinks of an image, exact or by a learnt reader.

Source: standard.   Formula: by `which`: "reader", the learnt reader's log-probability of what was asked; "templates", the exact
one under pixel noise; "redness", "brightness", plain functions of pixels; "utility", the true utility, without gradient.
Takes: rows of lab:image and images.   Gives: (n,), higher is better.
Choose it when: reward tuning shall be studied where the truth is known.   Rather not when: images are of no world.
Relatives: exact, numeric (rewards of texts).

>>> WorldReward(which="redness").which
'redness'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from luthier.core import Card, Needs, Reward, Row, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="world reward",
    source="standard",
    needs=Needs(batch=("image_prompts", "image"), handles=("world",)),
    cost="one pass of a small reader, or distances to all images that can be drawn",
    limits=("utility: the world's own figure",),
    use_when="reward tuning is studied in the image world",
    relatives=("reward.verifiers.exact",),
    mechanism="oracle",
)
WORLD = (3, 16, 16)
"""(channels, height, width) of the world's images."""


def fitting(which: str, shape: tuple[int, ...]) -> None:
    """Raises Refused unless images of `shape` (C, H, W) have what the reward reads: colours, or the size of the world's images."""
    if which == "brightness" or (which == "redness" and shape[0] == 3) or shape == WORLD:
        return
    required = (
        "images with three channels"
        if which == "redness"
        else f"images of the world, {WORLD[0]} x {WORLD[1]} x {WORLD[2]}"
    )
    came = " x ".join(map(str, shape))
    raise Refused(sentence(f"world_reward {which}", required, came, "Use brightness, or a model of lab:image"))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class WorldReward(Reward):
    """which: the reward, see above."""

    which: Literal["reader", "templates", "redness", "brightness", "utility"] = "reader"

    def bound(
        self, rewards: Mapping[str, Callable[[Sequence[Row], Tensor], Tensor]], shape: tuple[int, ...]
    ) -> Callable[[Sequence[Row], Tensor], Tensor]:
        """The reward itself, from what the world offers, for images of `shape` (C, H, W). Raises Refused where it has no meaning."""
        fitting(self.which, shape)
        return rewards[self.which]

    def __call__(self, rows: Sequence[Row], completions: Any) -> Tensor:
        """Raises Refused: a recipe of the image world binds it first."""
        raise Refused(
            "world_reward requires the image world (model: lab:image); it is not bound to one. Use it in such a recipe."
        )
