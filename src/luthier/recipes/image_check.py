"""Whether a recipe is about images, and what is wrong with one that is, without torch and before any weight loads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, LuthierError, UnknownComponent, counted
from luthier.core.registry import find
from luthier.models.pipelines import is_pipeline, pixel_shape, takes_captions
from luthier.recipes.recipe import Data, slot_entries

IMAGE_WORLD = "lab:image"
PROMPT_FILES = (".jsonl", ".csv", ".parquet", ".txt")
"""Suffixes of files that may hold captions alone."""


def is_image(model: str, objective: Any) -> bool:
    """Whether a recipe is about images: by its model, or by an objective of the diffusion room."""
    if model.startswith(IMAGE_WORLD) or is_pipeline(model):
        return True
    spec = objective[0] if isinstance(objective, list | tuple) and objective else objective
    name = next(iter(spec)) if isinstance(spec, Mapping) and spec else spec
    try:
        return isinstance(name, str) and find(name).room == "diffusion"
    except UnknownComponent:
        return False


def image_faults(plain: Mapping[str, Any], data: Data) -> tuple[str, list[str]]:
    """(how the training images were read, all faults of objective, model and data) of an image recipe."""
    faults: list[str] = []
    objectives = slot_entries("objective", plain.get("objective", "nll"), [])
    for entry in objectives:
        if entry.card.needs.batch and not any(b.startswith("image") for b in entry.card.needs.batch):
            faults.append(f"objective: {entry.short} requires a language model; got the image model {plain['model']!r}. Use an "
                          "objective of luthier.diffusion, for example denoise.")  # fmt: skip
    if isinstance(train := plain.get("train"), Mapping) and train.get("shard"):
        faults.append("train.shard: requires a language model or a text encoder; got an image model. Leave it out: several processes "
                      "train it as copies.")  # fmt: skip
    try:
        train = data.image_source
    except DataError as fault:
        return "", [*faults, str(fault)]
    folder = folder_here(str(plain["model"]))
    if not folder.is_dir():
        return f"{train} (not read: the model is not here, so the size of its images is not known)", faults
    kinds = {kind for entry in objectives for kind in entry.card.needs.batch if kind.startswith("image")}
    told = []
    for key, source in (("train", train), ("test", data.image_test)):
        if source is None or source.startswith(IMAGE_WORLD):
            told += [f"images of {source}"] if source else []
            continue
        try:
            statement, rows = _read(source, folder, kinds, data)
        except LuthierError as fault:
            faults.append(f"data.{key}: {fault}")
            continue
        told.append(statement)
        if bare := [i + 1 for i, row in enumerate(rows) if not row.get("caption")] if takes_captions(folder) else []:
            have = "has" if len(bare) == 1 else "have"
            faults.append(f"data.{key}: {len(bare)} of {len(rows)} images {have} no caption, the first is image {bare[0]}. "
                          "Add captions (metadata.jsonl or a .txt beside each image).")  # fmt: skip
    return told[0] if told else "", faults


def folder_here(model: str) -> Path:
    """The folder of an image model, a lab world's among them."""
    if not model.startswith(IMAGE_WORLD):
        return Path(model).expanduser()
    found = find_spec("luthier.lab.image")  # its place without importing it
    places = found.submodule_search_locations if found else None
    name = model.removeprefix(IMAGE_WORLD).strip("/") or "base"
    return Path(next(iter(places or [""]))) / "assets" / name


def _read(source: str, folder: Path, kinds: Collection[str], data: Data) -> tuple[str, list[dict[str, Any]]]:
    """(how a source was read, its rows), read as the run will: prompts alone, pairs of images, or images. Raises DataError."""
    from luthier.data.formats._images import load_images, load_prompts

    if "image_prompts" in kinds and Path(source).suffix in PROMPT_FILES:
        rows, told, _ = load_prompts(source, data.fields)
        return told, rows
    shape = pixel_shape(folder)
    if "image_preference" not in kinds:
        found = load_images(source, shape, data.resize, data.on_bad, data.fields)
        return found.statement, found.rows
    sides = [
        load_images(source, shape, data.resize, "error", {**(data.fields or {}), "image": part})
        for part in ("chosen", "rejected")
    ]
    return f"{counted(len(sides[0].rows), 'pair')} of images from {source}", sides[0].rows
