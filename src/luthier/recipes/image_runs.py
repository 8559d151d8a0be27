"""What a finished image run is measured by and what it shows: readings, faults told before training, sample grids."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import Module

from luthier.core.device import fastest
from luthier.core.errors import DataError, sentence
from luthier.models.denoiser import LoadedDenoiser, load_denoiser
from luthier.recipes.images import ImageSubject, brought, codec_of, drawer, view_of
from luthier.recipes.places import denoiser_source
from luthier.recipes.recipe import Data, ImageSampling, Recipe


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

    sampling: None takes the run's own, or the defaults. It goes to the machine's accelerator if there is one.
    """
    from luthier.recipes.export import recipe_of

    folder = Path(source)
    is_run = (folder / "adapter").is_dir()
    recipe = recipe_of(folder) if is_run else Recipe(model=source, data=Data(train="none"), objective="denoise")
    recipe = replace(recipe, seed=seed, sampling=sampling or recipe.sampling)
    loaded, _, beside = reread(folder, recipe) if is_run else (load_denoiser(denoiser_source(recipe.model), recipe.dtype), None, {})
    loaded.module.to(fastest())
    if loaded.codec is not None:
        loaded.codec.vae.to(fastest())
    view = view_of(loaded)
    return ImageSubject(
        view, drawer(recipe, view.path, loaded, beside), loaded.module.conditioner.tokens, *codec_of(loaded)
    )


def reread(run: Path, recipe: Recipe) -> tuple[LoadedDenoiser, Any, dict[str, Module]]:
    """(the pipeline of a finished run, its adaptation on it, the modules that its objective brought)."""
    from luthier.recipes.build import build_objective
    from luthier.recipes.export import attached_of

    loaded = load_denoiser(denoiser_source(recipe.model), recipe.dtype)
    beside = brought(recipe, build_objective(recipe.objective), loaded)
    return loaded, attached_of(run, recipe, loaded.module, beside), beside


def asked(prompts: Sequence[str], subject: ImageSubject) -> list[dict[str, Any]]:
    """Prompts as rows: captions, or class numbers where the model takes these. Raises DataError."""
    raw = subject.view.module.conditioner.raw
    if not raw:
        return [{}] * max(1, len(prompts))
    if not prompts:
        raise DataError(
            "generate requires at least one prompt; got none. Give --prompt TEXT, or lines on standard input."
        )
    if raw == ("label",):
        if bad := [p for p in prompts if not p.strip().isdigit()]:
            raise DataError(
                sentence("generate", "class numbers as prompts", repr(bad[0]), "This model takes labels, not text")
            )
        return [{"label": int(p)} for p in prompts]
    return [{"caption": p} for p in prompts]
