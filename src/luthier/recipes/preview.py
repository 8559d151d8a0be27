"""What `luthier preview` shows: a recipe's data as training would read it. Of language models no weights are loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import counted
from luthier.models.loading import load_config, load_tokenizer
from luthier.recipes.build import attach_all, build_adapt, build_objective, fit_kind, select
from luthier.recipes.mixing import mixture_of
from luthier.recipes.places import denoiser_source, model_source
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import load_splits
from luthier.recipes.text import encode_training
from luthier.report.image_preview import ImagePreview, Look, Shown

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels that are shown: a tenth of all training steps has less noise than the first, and so on."""
THUMB = 10


def encode_for_preview(recipe: Recipe) -> tuple[Any, Any, str]:
    """(encoded data, tokenizer, how the data was read)."""
    splits = load_splits(recipe.data, recipe.seed)
    kind = (
        "group"
        if recipe.loop is not None
        else fit_kind(build_objective(recipe.objective), splits.train, recipe.data.steps)
    )
    source = model_source(recipe.model)
    config, tokenizer = load_config(source), load_tokenizer(recipe.tokenizer or source)
    told = select(recipe, splits.train, tokenizer)
    encoded = encode_training(splits.train, kind, tokenizer, recipe.data, config)
    told += mixture_of(recipe, splits.train, encoded, kind)[1]
    return encoded, tokenizer, " ".join([splits.train.statement, *(f"{t}." for t in (*splits.train.notes, *told))])


def images_for_preview(recipe: Recipe, count: int) -> ImagePreview:
    """The first `count` training images at the recipe's noise levels, with their captions as the model reads them."""
    from luthier.core.streams import stream
    from luthier.diffusion.schedules._path import level
    from luthier.models.denoiser import load_denoiser
    from luthier.recipes.image_kit import training_pictures
    from luthier.recipes.images import as_floats, batch_kind, codec_of, view_of

    objective = build_objective(recipe.objective)
    loaded = load_denoiser(denoiser_source(recipe.model), recipe.dtype)
    attach_all(loaded.module, build_adapt(recipe.adapt), recipe.seed)  # it may teach words
    train, _ = training_pictures(recipe, loaded, batch_kind(objective))
    path, conditioner = view_of(loaded).path, loaded.module.conditioner
    times = times_of(objective, path)
    shown = []
    for row in range(min(count, len(train.rows))):
        raw = {k: v[row] for k, v in train.conditions.items()}
        tokens = conditioner.told(raw) if raw else ""
        caption = train.rows[row].get("caption", "")
        for part, images in zip(train.parts, train.images, strict=True) if train.images else [("prompt", None)]:
            looks: list[Look] = []
            size = "no image: it is drawn in training"
            if images is not None:
                x = as_floats(images[row : row + 1])
                noise = torch.randn(x.shape, generator=stream(recipe.seed, "diffusion.preview", row)).to(x)
                at = [level(path, t[None], x) for t in times]
                noised = torch.cat([x, *(a.alpha * x + a.sigma * noise for a in at)])
                with torch.no_grad():
                    pixels = codec_of(loaded)[0](noised)
                looks = [look(one) for one in pixels]
                size = _size(pixels, x, loaded.codec is not None)
            title = f"row {row + 1}" + (f", {part}" if len(train.parts) > 1 else "")
            shown.append(Shown(title, size, str(caption), tokens, looks))
    columns = ["clean", *(f"t {float(t):.3g}\n{_ratio(path, t)} noise" for t in times)]
    return ImagePreview(_facts(recipe, train, objective, bool(conditioner.raw)), columns, shown)


def times_of(objective: Any, path: Any) -> Tensor:
    """Times (5,) of the path that stand for those of training: quantiles of the objective's `times`, or of even ones."""
    from luthier.core import Times
    from luthier.diffusion.schedules.times.uniform_time import UniformTime

    one = getattr(objective, "members", (objective,))[0]
    one = getattr(one, "inner", one)
    one = getattr(one, "objective", one)
    own = getattr(one, "times", None)
    return (own if isinstance(own, Times) else UniformTime())(torch.tensor(SHARES), path)


def look(image: Tensor) -> Look:
    """An image (C, H, W) for a page and for a terminal; values beyond [-1, 1] are cut."""
    from luthier.recipes.image_runs import picture, png

    image = image.clamp(-1, 1)
    small = picture(image).convert("RGB").resize((THUMB, THUMB), resample=4)
    flat = list(small.get_flattened_data() if hasattr(small, "get_flattened_data") else small.getdata())
    return Look(png(image), [flat[i : i + THUMB] for i in range(0, len(flat), THUMB)])


def _ratio(path: Any, t: Tensor) -> str:
    """How strong noise is beside the image, sigma / (alpha + sigma), in per cent."""
    from luthier.diffusion.schedules._path import noise_share

    return f"{100 * float(noise_share(path, t)):.0f} %"


def _size(pixels: Tensor, x: Tensor, latent: bool) -> str:
    channels, height, width = pixels.shape[1:]
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    return f"{width} x {height}, {kind}" + (f"; noise is added to latents {tuple(x.shape[1:])}" if latent else "")


def _facts(recipe: Recipe, train: Any, objective: Any, conditional: bool) -> list[str]:
    drop = recipe.data.drop_condition
    told = f"{100 * drop:g} % of all images train without their caption or label (data.drop_condition)."
    used = f"Objective {objective.name}; a step sees {counted(recipe.train.batch, 'image')}."
    levels = (
        "Noise levels: "
        + ", ".join(f"{100 * s:.0f} %" for s in SHARES)
        + " of all training steps have less noise than these."
    )
    if ".consistency." in objective.id or not train.images:
        levels = "Noise levels are even in time; the objective has its own."
    return [f"{train.statement}.", *(f"{n}." for n in train.notes), used, *([told] if conditional else []), levels]
