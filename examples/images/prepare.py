"""Make what the `real_*.yaml` recipes need from labelled images: an untrained model for them, and five images of one class.

    python examples/images/prepare.py DATA OUT --subject Sandal

DATA holds train.npz and test.npz (x: bytes (N, H, W) or (N, H, W, 3); y: labels; classes: their names). Written are
OUT/untrained, a pipeline folder: a small transformer that knows the words of the captions "a NAME"; OUT/rest, the images of all
other classes; OUT/five, five images of the subject's class with the caption "a <new>"; OUT/unseen, the class's test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image

from luthier.models.conditioning import WordCaptions

NEW = "a <new>"


def write_model(out: Path, words: list[str], length: int, size: int, channels: int, hidden: int = 96) -> None:
    """An untrained pipeline for images of this size and captions of these words; its first prediction is zero."""
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=hidden // 4, in_channels=channels, out_channels=channels, num_layers=4,
        cross_attention_dim=hidden, sample_size=size, patch_size=4, use_additional_conditions=False,
    )  # fmt: skip
    torch.nn.init.zeros_(network.proj_out.weight)
    network.save_pretrained(out / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(out / "scheduler")
    (out / "conditioner").mkdir(exist_ok=True)
    WordCaptions(words, length, hidden).save(out / "conditioner")
    index = {"_class_name": "ImageWorldPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
             "transformer": ["diffusers", "PixArtTransformer2DModel"]}  # fmt: skip
    (out / "model_index.json").write_text(json.dumps(index))


def write_images(out: Path, images: np.ndarray, caption: str) -> None:
    """Images as PNG files with a caption beside each."""
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(out / f"{i:04}.png")
        (out / f"{i:04}.txt").write_text(caption)


def main(data: Path, out: Path, subject: str) -> None:
    """Write the four folders."""
    splits = {name: dict(np.load(data / f"{name}.npz")) for name in ("train", "test")}
    classes = [str(c) for c in splits["train"]["classes"]]
    if subject not in classes:
        raise SystemExit(f"--subject must be one of {', '.join(classes)}; got {subject!r}.")
    label, shape = classes.index(subject), splits["train"]["x"].shape
    if (count := int((splits["train"]["y"] == label).sum())) < 5:
        raise SystemExit(f"--subject requires a class of at least five images; {subject!r} has {count}.")
    captions = [f"a {c.lower()}" for c in classes]
    words = sorted({w for i, c in enumerate(captions) if i != label for w in c.split()})
    write_model(
        out / "untrained", words, max(len(c.split()) for c in captions), shape[1], shape[3] if len(shape) == 4 else 1
    )
    (out / "rest").mkdir(exist_ok=True)
    for name, held in splits.items():
        kept = np.random.default_rng(0).permutation(np.flatnonzero(held["y"] != label))
        np.savez(out / "rest" / f"{name}.npz", x=held["x"][kept], y=held["y"][kept], classes=np.array(captions))
    write_images(out / "five", splits["train"]["x"][splits["train"]["y"] == label][:5], NEW)
    write_images(out / "unseen", splits["test"]["x"][splits["test"]["y"] == label], NEW)


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("data", type=Path)
    words.add_argument("out", type=Path)
    words.add_argument(
        "--subject", required=True, help="the class that the model shall not see until its five images come"
    )
    given = words.parse_args()
    main(given.data, given.out, given.subject)
