"""A variant on real data: the 1797 handwritten digits of scikit-learn, 8x8 grey pixels, with a judge and a copy detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, DataError, MissingExtra, sentence, unknown
from luthier.core.streams import python_stream
from luthier.lab.image._shapes import digest, to_float
from luthier.lab.image._world import DIGITS, _folder

SIDE, CLASSES, BRIGHTEST = 8, 10, 16
SPLITS = ("train", "stop", "test")
SHARES = (0.7, 0.1, 0.2)


@cache
def loaded() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """All images (1797, 1, 8, 8) as bytes, their labels (1797,), and the split of each."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as fault:
        raise MissingExtra("lab:image digits", "scikit-learn", "select") from fault
    x, y = load_digits(return_X_y=True)
    pixels = (torch.from_numpy(x).view(-1, 1, SIDE, SIDE) * 255 / BRIGHTEST).round().to(torch.uint8)
    return pixels, torch.from_numpy(y).long(), tuple(_split(i) for i in range(len(y)))


def _split(number: int) -> str:
    place = digest(f"digits/{number}") / 2**64
    return SPLITS[0] if place < SHARES[0] else SPLITS[1] if place < SHARES[0] + SHARES[1] else SPLITS[2]


@dataclass(frozen=True)
class DigitReadings:
    """label (N,): what the judge reads. copy (N,): root mean squared pixel distance to the nearest training image."""

    label: Tensor
    copy: Tensor

    def accuracy(self, asked: Sequence[int]) -> float:
        """Share of images that the judge reads as asked."""
        return float((self.label == torch.tensor(list(asked))).float().mean())


class Digits:
    """Real digits: rows, a judge (a support vector machine fit on train and stop), distance to the training images.

    >>> Digits().rows("test", 1, seed=0)[0]["image"].shape
    torch.Size([1, 8, 8])
    """

    def rows(self, split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
        """`n` rows of a split: image (1, 8, 8) bytes, label, number. All come round before one comes again."""
        index, (pixels, labels, _) = self.indices(split), loaded()
        rng, out = python_stream(seed, f"image.digits.{split}"), []
        while len(out) < n:
            for i in rng.sample(index, min(len(index), n - len(out))):
                out.append({"image": pixels[i], "label": int(labels[i]), "number": i, "split": split})
        return out

    def indices(self, split: str) -> list[int]:
        """Numbers of the images of a split, made by hash."""
        if split not in SPLITS:
            raise ConfigError(unknown("split", split, SPLITS))
        return [i for i, s in enumerate(loaded()[2]) if s == split]

    @staticmethod
    def stack(rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The images of rows as the model takes them: (N, 1, 8, 8), floats in [-1, 1]."""
        return to_float(torch.stack([row["image"] for row in rows]))

    @cached_property
    def judge(self) -> Any:
        """The support vector machine, fit on the train and stop splits."""
        from sklearn.svm import SVC

        index = self.indices("train") + self.indices("stop")
        pixels, labels, _ = loaded()
        return SVC(gamma="scale", C=10.0).fit(to_float(pixels[index]).flatten(1).numpy(), labels[index].numpy())

    @torch.no_grad()
    def oracle(self, images: Tensor) -> DigitReadings:
        """What the judge reads in images (N, 1, 8, 8), bytes or floats in [-1, 1]; not exact, see `luthier lab check`."""
        if images.ndim != 4 or images.shape[1:] != (1, SIDE, SIDE):
            came = f"shape {tuple(images.shape)}"
            raise DataError(sentence("digits", "images of shape (N, 1, 8, 8)", came, "Stack single images"))
        x = to_float(images.detach().cpu()).float().flatten(1)
        if not bool(torch.isfinite(x).all()):
            raise DataError(
                sentence("digits", "finite pixels", "NaN or infinity", "Look at the sampler or the step size")
            )
        known = to_float(loaded()[0][self.indices("train")]).flatten(1)
        copy = torch.cdist(x, known).min(-1).values / SIDE
        return DigitReadings(torch.from_numpy(self.judge.predict(x.numpy())).long(), copy)

    def model_folder(self) -> Path:
        """The folder of the shipped class-conditional model, as diffusers lays it out."""
        return _folder(DIGITS)
