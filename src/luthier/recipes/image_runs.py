"""What a finished image run is measured by and what it shows: readings, faults told before training, sample grids."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from luthier.core import MeasureContext, Reading
from luthier.core.errors import Refused, sentence

IMAGE_TAG = "image"
"""Measures whose card needs this kind of batch read images; all others read text."""


def measure_images(prepared: Any, cost: Mapping[str, float]) -> list[Reading]:
    """All readings of the recipe's measures on its test conditions."""
    ctx = context_of(prepared, cost)
    out: list[Reading] = []
    for one in prepared.parts.measures:
        if fits(one):
            out += list(one(prepared.kit.subject, prepared.kit.test.rows, ctx))
    return out


def context_of(prepared: Any, cost: Mapping[str, float]) -> MeasureContext:
    """Handles of image measures: the world's reader where there is one, the test images, the cost."""
    handles = {"images": prepared.kit.test.images, "read": prepared.kit.subject.read}
    return MeasureContext(prepared.recipe.seed, cost=dict(cost), handles=handles)


def fits(measure: Any) -> bool:
    """Whether a measure reads images, or costs, which everything has."""
    return IMAGE_TAG in measure.needs.batch or measure.id.startswith("measure.cost.")


def image_faults(prepared: Any) -> list[str]:
    """Sentences on parts of suites that are left out. Raises Refused for a measure of text that was named."""
    named = [m for m in prepared.recipe.measure if isinstance(m, str | dict)]
    short = {next(iter(m)) if isinstance(m, dict) else m for m in named}
    faults = [sentence(f"measure {m.name}", "a language model", "an image model", "Leave it out")
              for m in prepared.parts.measures if not fits(m) and short & {m.name, m.id}]  # fmt: skip
    reader = prepared.kit.subject.read
    unread = [m for m in prepared.parts.measures if "read" in m.needs.handles and reader is None]
    faults += [sentence(f"measure {m.name}", "a world that reads its images exactly (lab:image)", "other data", "Leave it out")
               for m in unread if short & {m.name, m.id}]  # fmt: skip
    if faults:
        raise Refused("\n".join(dict.fromkeys(faults)))
    left = [m.id for m in prepared.parts.measures if not fits(m) or m in unread]
    prepared.parts.measures[:] = [m for m in prepared.parts.measures if m.id not in left]
    return [f"{ident} is left out: it does not fit these data" for ident in left]


def image_samples(prepared: Any, each: int = 4, count: int = 8) -> list[dict[str, Any]]:
    """Images of a few test conditions, as data that a report can show, with the base's beside them."""
    rows = prepared.kit.test.rows[:count]
    if not rows:
        return []
    made = prepared.kit.subject.generate(rows, samples=each, role="samples")
    return [{"prompt": str(r.get("caption", r.get("label", "image"))), "reference": "", "outputs": [], "images": [png(x) for x in images]}
            for r, images in zip(rows, made, strict=True)]  # fmt: skip


def png(image: Tensor) -> str:
    """An image (C, H, W) in [-1, 1] as a PNG in base64."""
    from PIL import Image

    pixels = np.clip(np.rint((image.float().numpy() + 1) * 127.5), 0, 255).astype(np.uint8)
    made = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, -1))
    held = io.BytesIO()
    made.save(held, format="PNG", optimize=True)
    return base64.b64encode(held.getvalue()).decode()
