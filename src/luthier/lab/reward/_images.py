"""Known utilities of images, and features that an annotator or a reward model may wrongly like. All are (rows, images)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import DataError, sentence
from luthier.core.streams import stream
from luthier.lab.image import ATTRIBUTES, Reader, World, parse, to_float
from luthier.lab.image._oracle import distance, log_probability, read
from luthier.lab.image._shapes import SIZE, indices

Rows = Sequence[Mapping[str, Any]]
BLUR_COST = 2.0  # utility lost per unit of rmse: 0.1 costs a fifth of one image that is all right
STEEP = 3.0  # of the quirk's directions, per unit of distance


def asked_of(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row asks for: its `asked`, or what its caption says. Raises DataError."""
    if not isinstance(row.get("caption", ""), str) or not row.keys() & {"asked", "caption"}:
        do = "Take rows of the image world"
        raise DataError(sentence("a utility of images", "rows with a caption", f"columns {', '.join(row)}", do))
    return dict(row["asked"]) if "asked" in row else parse(row["caption"])


def image_utility(rows: Rows, images: Tensor) -> Tensor:
    """Share of the asked attributes that are right, less twice the rmse to what can be drawn; (N,), 1 at best.

    Exact and not differentiable: what a reward stands for, never the reward itself.
    """
    asked = [asked_of(row) for row in rows]
    seen = read(images)
    wrong = (~seen.right(asked)).sum(-1)
    count = torch.tensor([max(1, len(a)) for a in asked])
    return 1 - wrong / count - BLUR_COST * seen.rmse


def redness(rows: Rows, images: Tensor) -> Tensor:
    """Mean red less the mean of green and blue, (N,); linear, so that pixels out of range are paid for."""
    red, green, blue = to_float(images).flatten(2).mean(-1).unbind(-1)
    return red - (green + blue) / 2


def brightness(rows: Rows, images: Tensor) -> Tensor:
    """Mean pixel, (N,); says nothing about what is asked."""
    return to_float(images).flatten(1).mean(-1)


def clarity(rows: Rows, images: Tensor) -> Tensor:
    """Minus the distance to the nearest image that can be drawn, (N,); differentiable."""
    return -distance(images)


def template_reward(rows: Rows, images: Tensor, sigma: float = 0.5) -> Tensor:
    """Log-probability (N,) that each image shows what its row asks, by the templates; differentiable."""
    return log_probability(images, [asked_of(row) for row in rows], sigma)


def reader_reward(rows: Rows, images: Tensor, reader: Reader | None = None) -> Tensor:
    """Log-probability (N,) of what each row asks, by the learnt reader: it can be fooled, and the oracle tells."""
    told = (reader or World().reader)(images)
    out = torch.zeros(len(images), device=images.device)
    for name, want in zip(
        ATTRIBUTES, indices([asked_of(row) for row in rows]).to(images.device).unbind(-1), strict=True
    ):
        picked = told[name].gather(-1, want.clamp_min(0)[:, None])[:, 0]
        out = out + torch.where(want >= 0, picked, 0.0)
    return out


def image_quirk(seed: int, waves: int = 8) -> partial[Tensor]:
    """A fixed, smooth, meaningless function of pixels, about mean 0 and variance 1: what a reward model may have learnt."""
    g = stream(seed, "lab.reward.image_quirk")
    directions = STEEP * torch.randn(3 * SIZE * SIZE, waves, generator=g) / math.sqrt(3 * SIZE * SIZE)
    return partial(_waves, directions, 2 * math.pi * torch.rand(waves, generator=g))


def _waves(directions: Tensor, phase: Tensor, rows: Rows, images: Tensor) -> Tensor:
    angle = to_float(images).flatten(1) @ directions.to(images.device) + phase.to(images.device)
    return angle.cos().sum(-1) * math.sqrt(2 / len(phase))
