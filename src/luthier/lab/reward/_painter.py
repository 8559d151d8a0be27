"""Pairs and scored images by a sloppy painter, so that imitating the chosen ones cannot win."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, sentence
from luthier.core.streams import python_stream, stream
from luthier.lab.image import ATTRIBUTES, World, draw, to_bytes, to_float
from luthier.lab.image._shapes import JITTERS
from luthier.lab.reward._annotator import Annotator, Utility, pairs
from luthier.lab.reward._images import brightness, image_utility

OFF = 1 / 4  # probability that the painter misses an attribute, each on its own
HASTE = (0.0, 0.1, 0.2, 0.3)  # standard deviations of the noise that is left on the canvas, equally often


def sloppy(asked: dict[str, str], rng: Random) -> Tensor:
    """An image (3, 16, 16), bytes, of the painter behind the pairs."""
    painted = {}
    for name, values in ATTRIBUTES.items():
        meant = asked.get(name) or rng.choice(values)
        painted[name] = meant if rng.random() >= OFF else rng.choice([v for v in values if v != meant])
    canvas = to_float(draw(painted, rng.randrange(len(JITTERS))))
    g = torch.Generator().manual_seed(rng.getrandbits(62))
    return to_bytes(canvas + rng.choice(HASTE) * torch.randn(canvas.shape, generator=g))


def image_preferences(n: int, split: str, seed: int, annotator: Annotator | None = None, *, utility: Utility = image_utility,
                      liking: Utility = brightness) -> list[dict[str, Any]]:  # fmt: skip
    """`n` pairs of images for captions of a split: see `pairs` for the columns; the images are bytes.

    The annotator (sharpness 4, no noise, no bias unless given) sees `utility` and, if biased, `liking`.
    """
    rows, rng = World().rows(split, n, seed), python_stream(seed, f"lab.reward.image.{split}")
    candidates = tuple(torch.stack([sloppy(row["asked"], rng) for row in _some(rows)]) for _ in range(2))
    g = stream(seed, f"lab.reward.image.{split}.verdicts")
    return pairs(rows, (candidates[0], candidates[1]), utility, annotator or Annotator(), g, liking)


def image_scores(
    n: int, split: str, seed: int, *, candidates: int = 4, utility: Utility = image_utility
) -> list[dict[str, Any]]:
    """`candidates` sloppy images for each of `n` captions, each a row with its `score` by the utility and its `group`."""
    if candidates < 1:
        raise ConfigError(sentence("image_scores", "candidates >= 1", str(candidates), "Give a positive number"))
    rows, rng = World().rows(split, n, seed), python_stream(seed, f"lab.reward.image.{split}.scores")
    every = [
        {**row, "group": group, "image": sloppy(row["asked"], rng)}
        for group, row in enumerate(_some(rows))
        for _ in range(candidates)
    ]
    scores = utility(every, torch.stack([row["image"] for row in every]))
    return [{**row, "score": float(score)} for row, score in zip(every, scores, strict=True)]


def _some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows:
        raise ConfigError(sentence("image preferences", "n >= 1", "n = 0", "Ask for at least one row"))
    return rows
