"""The lab's image world as a source of rows, conditions, pairs, and rewards for image recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, counted, unknown
from luthier.recipes.image_check import IMAGE_WORLD

Row = Mapping[str, Any]
CONCEPTS = ("flag", "zebra", "chess")


def world_pictures(source: str, split: str, n: int, seed: int, kind: str) -> Any:
    """Rows of `lab:image`, of a concept (`lab:image/flag`) or of digits (`lab:image/digits`), as the objective reads them.

    An objective of pairs gets verdicts of an annotator on what a careless painter drew. Raises ConfigError for other names.
    """
    from luthier.lab.image import Digits, World
    from luthier.recipes.images import Pictures

    world, name, n = World(), source.removeprefix(IMAGE_WORLD).strip("/"), n or 512
    if name not in ("", "digits", *CONCEPTS):
        raise ConfigError(f"data {source!r}: {unknown('source', name, ('digits', *CONCEPTS))}")
    parts: tuple[str, ...] = ("image",)
    if kind == "image_preference":
        from luthier.lab.reward import image_preferences

        rows = list(image_preferences(n, split, seed))
        parts = ("chosen", "rejected")
        images = tuple(torch.stack([row[p] for row in rows]) for p in parts)
    else:
        if name in CONCEPTS:
            rows = world.concept_rows(name, split, n, seed)
        else:
            rows = (Digits() if name == "digits" else world).rows(split, n, seed)
        images = (torch.stack([torch.as_tensor(row["image"]) for row in rows]),) if kind == "image" else ()
    kept = [{k: v for k, v in row.items() if not isinstance(v, Tensor)} for row in rows]
    told = f"{counted(len(rows), 'row')} of {source}, split {split!r}"
    return Pictures(images, parts, kept, {}, kind, told, f"{source}@{world.version}:{split}:{n}:{seed}:{kind}", source)


def reader(source: str) -> Callable[[Tensor], Any]:
    """The world's exact reader of images."""
    from luthier.lab.image import Digits, World

    return Digits().oracle if source.endswith("/digits") else World().oracle


def world_rewards() -> Mapping[str, Callable[[Sequence[Row], Tensor], Tensor]]:
    """Rewards of the world by name, (rows, images) -> (n,): all but the last are differentiable."""
    from luthier.lab.reward import brightness, image_utility, reader_reward, redness, template_reward

    return {
        "reader": reader_reward,
        "templates": template_reward,
        "redness": redness,
        "brightness": brightness,
        "utility": image_utility,
    }
