"""Facts of a diffusers pipeline folder, read from its JSON files alone. Free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.core.errors import ModelError, sentence

PARTS = ("transformer", "unet")


def is_pipeline(source: str) -> bool:
    """Whether a folder holds a diffusers pipeline."""
    return (Path(source).expanduser() / "model_index.json").is_file()


def read_index(folder: Path) -> tuple[dict[str, Any], str]:
    """(model_index.json, the part that denoises). Raises ModelError for folders that are no pipeline for images."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            sentence(
                f"model folder {folder}", "model_index.json", "none", "Give a folder that holds a diffusers pipeline"
            )
        )
    index = _json(folder / "model_index.json")
    part = next((p for p in PARTS if p in index), None)
    if part is None:
        there = ", ".join(k for k in index if k[0] != "_")
        raise ModelError(
            sentence(f"model folder {folder}", "a transformer or a unet", there, "Give a pipeline for images")
        )
    return index, part


def latent_shape(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of what the network denoises: latents where there is a VAE, else pixels."""
    index, part = read_index(folder)
    config = _json(folder / part / "config.json")
    channels, size = int(config["in_channels"]), config.get("sample_size")
    if (
        index[part][1] == "FluxTransformer2DModel"
    ):  # takes squares of two by two, of any size; the VAE says which is usual
        channels, size = channels // 4, int(_json(folder / "vae" / "config.json")["sample_size"]) // _factor(folder)
    size = size[0] if isinstance(size, list) else size
    if not isinstance(size, int):
        raise ModelError(sentence(f"model {folder}, {part}", "a sample_size in config.json", repr(size), "Add it"))
    return channels, size, size


def pixel_shape(folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of the images that the pipeline is about, latents undone."""
    shape, index = latent_shape(folder), read_index(folder)[0]
    if not index.get("vae", [None])[0]:
        return shape
    channels = int(_json(folder / "vae" / "config.json").get("in_channels", 3))
    return channels, shape[1] * _factor(folder), shape[2] * _factor(folder)


def _factor(folder: Path) -> int:
    """Pixels along one side of a latent."""
    return 2 ** (len(_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)


def takes_captions(folder: Path) -> bool:
    """Whether the pipeline is conditioned on text."""
    index, _ = read_index(folder)
    return bool(index.get("text_encoder", [None])[0]) or (folder / "conditioner").is_dir()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ModelError(sentence(str(path), "a readable JSON file", str(fault), "Download the model again")) from fault
