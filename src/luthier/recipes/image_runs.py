"""What a finished image run is measured by and what it shows: readings, faults told before training, sample grids."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from luthier.core import MeasureContext, Reading
from luthier.core.errors import DataError, Refused, sentence
from luthier.models.denoiser import load_denoiser
from luthier.recipes.images import ImageSubject, as_floats, codec_of, drawer, source_of, view_of
from luthier.recipes.recipe import Data, ImageSampling, Recipe, parse

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
    images = tuple(as_floats(part) for part in prepared.kit.test.images)
    handles = {"images": images, "read": prepared.kit.subject.read}
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


def picture(image: Tensor) -> Any:
    """An image (C, H, W) in [-1, 1] as one of Pillow."""
    from PIL import Image

    pixels = np.clip(np.rint((image.float().numpy() + 1) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, -1))


def png(image: Tensor) -> str:
    """An image (C, H, W) in [-1, 1] as a PNG in base64."""
    held = io.BytesIO()
    picture(image).save(held, format="PNG", optimize=True)
    return base64.b64encode(held.getvalue()).decode()


def grid(images: Tensor, at_least: int = 96) -> Any:
    """Images (rows, columns, C, H, W) as one of Pillow, a row for each condition; small ones are enlarged, pixels kept."""
    from PIL import Image

    rows, columns, _, height, width = images.shape
    scale, gap = max(1, -(-at_least // max(height, width))), 4
    out = Image.new("RGB", (columns * (width * scale + gap) - gap, rows * (height * scale + gap) - gap), "white")
    for r in range(rows):
        for c in range(columns):
            one = picture(images[r, c]).convert("RGB").resize((width * scale, height * scale), resample=0)
            out.paste(one, (c * (width * scale + gap), r * (height * scale + gap)))
    return out


def subject_at(source: str, sampling: ImageSampling | None, seed: int) -> ImageSubject:
    """The image model of a run's folder, a pipeline folder, a hub name or lab:image, to be sampled from.

    sampling: None takes the run's own, or the defaults.
    """
    from luthier.core.files import read_json, read_tensors
    from luthier.recipes.build import attach_all, build_adapt

    folder = Path(source)
    is_run = (folder / "adapter").is_dir()
    if is_run:
        recipe = parse({k: v for k, v in read_json(folder / "manifest.json")["recipe"].items() if v is not None})
    else:
        recipe = Recipe(model=source, data=Data(train="none"), objective="denoise")
    recipe = replace(recipe, seed=seed, sampling=sampling or recipe.sampling)
    loaded = load_denoiser(source_of(recipe), recipe.dtype)
    if is_run:
        attached = attach_all(loaded.module, build_adapt(recipe.adapt), recipe.seed)
        attached.load(read_tensors(folder / "adapter" / "adaptation.safetensors"))
    view = view_of(loaded)
    return ImageSubject(view, drawer(recipe, view.path, loaded.shape, {}), loaded.module.conditioner.tokens, *codec_of(loaded))


def asked(prompts: Sequence[str], subject: ImageSubject) -> list[dict[str, Any]]:
    """Prompts as rows: captions, or class numbers where the model takes these. Raises DataError."""
    raw = subject.view.module.conditioner.raw
    if not raw:
        return [{}] * max(1, len(prompts))
    if not prompts:
        raise DataError("generate requires at least one prompt; got none. Give --prompt TEXT, or lines on standard input.")
    if raw == ("label",):
        if bad := [p for p in prompts if not p.strip().isdigit()]:
            raise DataError(sentence("generate", "class numbers as prompts", repr(bad[0]), "This model takes labels, not text"))
        return [{"label": int(p)} for p in prompts]
    return [{"caption": p} for p in prompts]
