"""Whether a recipe is about images, and what is wrong with one that is, without torch and before any weight loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, UnknownComponent
from luthier.core.registry import find
from luthier.models.pipelines import is_pipeline, pixel_shape, takes_captions
from luthier.recipes.recipe import Data, slot_entries

IMAGE_WORLD = "lab:image"


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
    for entry in slot_entries("objective", plain.get("objective", "nll"), []):
        if not any(b.startswith("image") for b in entry.card.needs.batch):
            faults.append(f"objective: {entry.short} requires a language model; got the image model {plain['model']!r}. Use an "
                          "objective of luthier.diffusion, for example denoise.")  # fmt: skip
    if str(plain["model"]).startswith(IMAGE_WORLD):
        return f"images of {data.train}", faults
    folder = Path(str(plain["model"])).expanduser()
    if not folder.is_dir():
        return f"{data.train} (not read: the model is not here, so the size of its images is not known)", faults
    statement = ""
    try:
        from luthier.data.formats._images import load_images

        shape = pixel_shape(folder)
        for key, source in (("train", data.train), ("test", data.test)):
            if source is None or source.startswith(IMAGE_WORLD):
                continue
            found = load_images(source, shape, data.resize, data.on_bad, data.fields)
            statement = statement or found.statement
            bare = [i + 1 for i, r in enumerate(found.rows) if not r.get("caption")] if takes_captions(folder) else []
            if bare:
                faults.append(f"data.{key}: {len(bare)} of {len(found.rows)} images have no caption, the first is image {bare[0]}. "
                              "Add captions (metadata.jsonl or a .txt beside each image).")  # fmt: skip
    except LuthierError as fault:
        faults.append(f"data: {fault}")
    return statement, faults
