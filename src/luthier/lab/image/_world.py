"""The image world as one object: rows, concepts, exact and learnt reading, true distributions, the shipped models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, DataError, sentence
from luthier.core.streams import python_stream
from luthier.lab.image._oracle import Asked, Readings, distance, log_probability, read, truth
from luthier.lab.image._reader import Reader, load_reader
from luthier.lab.image._shapes import ATTRIBUTES, JITTERS, VERSION, contexts, draw, key_of, keys, split_of, to_float

Row = dict[str, Any]
ASSETS = Path(__file__).parent / "assets"
BASE, DIGITS, READER = "base", "digits", "reader.safetensors"


class World:
    """The image world, version 1. seed: added to the seed of every call, so that a study can have rows of its own.

    >>> world = World()
    >>> row = world.rows("test", 1, seed=0)[0]
    >>> world.oracle(row["image"][None]).accuracy([row["caption"]])["all"]
    1.0
    """

    version = VERSION

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    # -- rows ------------------------------------------------------------------------------

    def rows(self, split: str, n: int, seed: int = 0, *, partial: float = 0.0) -> list[Row]:
        """`n` rows of a split: image (3, 16, 16) bytes, caption, attributes, asked, key, split, jitter.

        The first m do not depend on n. Keys come round in a new shuffle each time all were given. partial: probability
        that a word is left out of the caption; `asked` is what the caption names, `attributes` what the image shows.
        """
        rng = python_stream(self.seed + seed, f"image.{split}")
        chosen = self._shuffled(keys(split), rng)
        return [self._row(next(chosen), split, rng, partial) for _ in range(n)]

    def row(self, attributes: Mapping[str, str], jitter: int = 0) -> Row:
        """The row of one combination of attributes, none missing."""
        own, image = {n: attributes[n] for n in ATTRIBUTES if n in attributes}, draw(attributes, jitter)
        return {"image": image, "caption": " ".join(own.values()), "attributes": own, "asked": own, "key": key_of(own),
                "split": split_of(own), "jitter": jitter}  # fmt: skip

    def concept_rows(self, concept: str, split: str, n: int, seed: int = 0, *, word: str = "") -> list[Row]:
        """`n` images of an object that the base never saw: flag, zebra or chess; `word` is its name in the captions.

        train, stop and test differ in count, size, position and background.
        """
        rng = python_stream(self.seed + seed, f"image.{concept}.{split}")
        chosen = self._shuffled(contexts(concept, split), rng)
        rows = []
        for context in (next(chosen) for _ in range(n)):
            attributes = {name: {**context, "shape": concept}[name] for name in ATTRIBUTES if name != "colour"}
            caption = " ".join((word or concept) if name == "shape" else v for name, v in attributes.items())
            jitter = rng.randrange(len(JITTERS))
            rows.append({"image": draw(attributes, jitter), "caption": caption, "attributes": attributes,
                         "asked": attributes, "key": f"{concept} {caption}", "split": split, "jitter": jitter})  # fmt: skip
        return rows

    def mislabelled(self, split: str, n: int, seed: int = 0, *, share: float) -> list[Row]:
        """Rows of `rows` of which exactly round(share * n) have one wrong word in the caption.

        `noisy` marks them; `clean` keeps the right caption.
        """
        if not 0 <= share <= 1:
            raise ConfigError(
                sentence("mislabelled", "a share from 0 to 1", str(share), "Give the share of wrong rows")
            )
        rng = python_stream(self.seed + seed, f"image.{split}.noise")
        wrong, out = set(rng.sample(range(n), round(share * n))), []
        for at, row in enumerate(self.rows(split, n, seed)):
            asked = dict(row["asked"])
            if at in wrong:
                name = rng.choice(list(ATTRIBUTES))
                asked[name] = rng.choice([v for v in ATTRIBUTES[name] if v != asked[name]])
            out.append({**row, "caption": " ".join(asked.values()), "asked": asked, "noisy": at in wrong,
                        "clean": row["caption"]})  # fmt: skip
        return out

    @staticmethod
    def stack(rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The images of rows as the model takes them: (N, 3, 16, 16), floats in [-1, 1]."""
        if not rows:
            raise DataError(sentence("stack", "at least one row", "none", "Ask for n >= 1 rows"))
        return to_float(torch.stack([row["image"] for row in rows]))

    @staticmethod
    def _shuffled(every: Sequence[dict[str, str]], rng: Random) -> Iterator[dict[str, str]]:
        while True:
            yield from rng.sample(every, len(every))

    @staticmethod
    def _row(attributes: dict[str, str], split: str, rng: Random, partial: float) -> Row:
        jitter, left_out = rng.randrange(len(JITTERS)), [rng.random() < partial for _ in ATTRIBUTES]
        asked = {name: v for (name, v), out in zip(attributes.items(), left_out, strict=True) if not out}
        return {"image": draw(attributes, jitter), "caption": " ".join(asked.values()), "attributes": dict(attributes),
                "asked": asked, "key": key_of(attributes), "split": split, "jitter": jitter}  # fmt: skip

    # -- truth -----------------------------------------------------------------------------

    def oracle(self, images: Tensor) -> Readings:
        """Attributes, jitter and distance to the nearest image that can be drawn, for (N, 3, 16, 16). Exact."""
        return read(images)

    def log_probability(self, images: Tensor, asked: Asked | Sequence[Asked], sigma: float = 0.5) -> Tensor:
        """Log-probability (N,) that images show what is asked (of all, or of each), under noise of `sigma`; differentiable."""
        return log_probability(images, asked, sigma)

    def distance(self, images: Tensor) -> Tensor:
        """Root mean squared distance (N,) to the nearest image that can be drawn; differentiable."""
        return distance(images)

    def truth(self, asked: Asked, name: str, split: str = "train") -> Tensor:
        """True shares of an attribute's values (or of `jitter`) among the images of a split that a caption allows."""
        return truth(asked, name, split)

    def total_variation(self, readings: Readings, asked: Asked, name: str, split: str = "train") -> float:
        """Half the summed difference between the shares of an attribute in readings and the true ones."""
        return float((readings.share(name) - truth(asked, name, split)).abs().sum() / 2)

    @cached_property
    def reader(self) -> Reader:
        """The learnt reader, frozen: judges by other means than the oracle, and has gradients."""
        return load_reader(ASSETS / READER)

    # -- models ----------------------------------------------------------------------------

    def model_folder(self) -> Path:
        """The folder of the shipped base model: transformer, scheduler and caption words, as diffusers lays them out."""
        return _folder(BASE)


def _folder(name: str) -> Path:
    if not (ASSETS / name / "model_index.json").is_file():
        do = "Rebuild it with `luthier lab build image`"
        raise DataError(sentence("lab:image", f"a model in {ASSETS / name}", "none there", do))
    return ASSETS / name
