"""What can be drawn: attributes and their values, masks, keys and their splits, concepts, and the drawing itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, DataError, sentence, unknown

VERSION, SIZE = "1", 16
SPLITS = ("train", "stop", "test", "novel")
SHARES = (0.8, 0.1, 0.1)
NOVEL_PAIRS = 3  # pairs of a colour and a shape that the base model never sees, of 24
CONTEXT_SHARES = (0.5, 0.2, 0.3)  # of the 48 contexts of a concept
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "count": ("one", "two"),
    "size": ("small", "large"),
    "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "shape": ("square", "diamond", "triangle", "cross"),
    "position": ("top", "bottom", "left", "right"),
    "background": ("black", "grey", "white"),
}
"""Attributes in the order of a caption, and their values in the order of their indices."""
CONTEXT: tuple[str, ...] = ("count", "size", "position", "background")
JITTERS = ((0, 0), (1, 0), (0, 1), (1, 1))  # pixels to the right and down; never told in a caption
PAINT: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "magenta": (255, 0, 255),
    "cyan": (0, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255),
}  # fmt: skip
SIDE: Mapping[str, int] = {"small": 5, "large": 7}
Attributes = Mapping[str, str]


@dataclass(frozen=True)
class Concept:
    """An object the base model never saw: a shape in two colours, laid out by a pattern."""

    shape: str
    pattern: str
    first: str
    second: str


CONCEPTS: Mapping[str, Concept] = {
    "flag": Concept("square", "halves", "blue", "yellow"),
    "zebra": Concept("square", "stripes", "red", "cyan"),
    "chess": Concept("diamond", "checks", "green", "magenta"),
}
SHAPES = (*ATTRIBUTES["shape"], *CONCEPTS)  # readings of `shape` count on through the concepts


def digest(text: str) -> int:
    """A 64-bit number that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"image@{VERSION}/{text}".encode()).digest()[:8], "big")


def key_of(attributes: Attributes) -> str:
    """The full caption of an image, which is also its key."""
    return " ".join(attributes[name] for name in ATTRIBUTES)


@cache
def owner() -> dict[str, str]:
    """Word -> the attribute that it is a value of."""
    return {value: name for name, values in ATTRIBUTES.items() for value in values}


def parse(caption: str, concepts: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a caption asks for; attributes that it does not name are left out. `concepts`: new words for concepts.

    >>> parse("two red cross")
    {'count': 'two', 'colour': 'red', 'shape': 'cross'}
    """
    said = {**{name: name for name in CONCEPTS}, **(concepts or {})}
    asked: dict[str, str] = {}
    for word in caption.split():
        name = "shape" if word in said else owner().get(word)
        if name is None:
            raise DataError(f"caption {caption!r}: {unknown('word', word, (*owner(), *said))}")
        if name in asked:
            raise DataError(sentence(f"caption {caption!r}", f"one {name}", "two", "Name it once"))
        asked[name] = said.get(word, word)
    return {name: asked[name] for name in ATTRIBUTES if name in asked}


def checked(attributes: Mapping[str, Any]) -> dict[str, str]:
    """The attributes in the order of a caption, all known and all there. Raises DataError.

    A concept is a `shape` without a colour.
    """
    own = attributes.get("shape") in CONCEPTS
    for name, value in attributes.items():
        if name not in ATTRIBUTES:
            raise DataError(unknown("attribute", name, tuple(ATTRIBUTES)))
        if value not in (SHAPES if name == "shape" else ATTRIBUTES[name]):
            raise DataError(unknown(name, str(value), SHAPES if name == "shape" else ATTRIBUTES[name]))
    missing = [name for name in ATTRIBUTES if name not in attributes and not (own and name == "colour")]
    if missing or (own and "colour" in attributes):
        came = f"no {', '.join(missing)}" if missing else "the colour of a concept, which has its own"
        raise DataError(sentence("draw", f"all of {', '.join(ATTRIBUTES)}", came, "Correct the attributes"))
    return {name: attributes[name] for name in ATTRIBUTES if name in attributes}


# -- splits ----------------------------------------------------------------------------------------------------


@cache
def novel_pairs() -> frozenset[tuple[str, str]]:
    """The (colour, shape) pairs that no split but `novel` contains."""
    pairs = sorted(product(ATTRIBUTES["colour"], ATTRIBUTES["shape"]), key=lambda pair: digest("/".join(pair)))
    return frozenset(pairs[:NOVEL_PAIRS])


@cache
def keys(split: str) -> tuple[dict[str, str], ...]:
    """All combinations of attributes in a split; together the splits hold all 1152 once."""
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, SPLITS))
    return tuple(a for a in combinations() if split_of(a) == split)


@cache
def combinations() -> tuple[dict[str, str], ...]:
    """All combinations of attributes, the last attribute running fastest."""
    return tuple(dict(zip(ATTRIBUTES, values, strict=True)) for values in product(*ATTRIBUTES.values()))


def split_of(attributes: Attributes) -> str:
    """The split of a combination: `novel` by its colour and shape, else by the hash of its key."""
    if (attributes["colour"], attributes["shape"]) in novel_pairs():
        return "novel"
    place = digest(key_of(attributes)) / 2**64
    return SPLITS[0] if place < SHARES[0] else SPLITS[1] if place < SHARES[0] + SHARES[1] else SPLITS[2]


@cache
def contexts(concept: str, split: str) -> tuple[dict[str, str], ...]:
    """The contexts (count, size, position, background) in which a concept stands in train, stop or test."""
    if concept not in CONCEPTS:
        raise ConfigError(unknown("concept", concept, tuple(CONCEPTS)))
    if split not in SPLITS[:3]:
        raise ConfigError(unknown("split of a concept", split, SPLITS[:3]))
    every = [dict(zip(CONTEXT, values, strict=True)) for values in product(*(ATTRIBUTES[name] for name in CONTEXT))]
    order = sorted(every, key=lambda c: digest(f"{concept}/{'/'.join(c.values())}"))
    one, two = round(CONTEXT_SHARES[0] * len(order)), round(sum(CONTEXT_SHARES[:2]) * len(order))
    return tuple({"train": order[:one], "stop": order[one:two], "test": order[two:]}[split])


# -- drawing ---------------------------------------------------------------------------------------------------


@cache
def mask(shape: str, side: int) -> Tensor:
    """Which pixels of a (side, side) box a shape fills."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    middle = side // 2
    across, down = (x - middle).abs(), (y - middle).abs()
    return {
        "square": torch.ones(side, side, dtype=torch.bool),
        "diamond": across + down <= middle,
        "triangle": across <= y // 2,
        "cross": across == down,
    }[shape]


@cache
def picture(what: str, colour: str | None, side: int) -> tuple[Tensor, Tensor]:
    """An object in its box: filled pixels (side, side) and their colours (3, side, side), as bytes."""
    if what not in CONCEPTS:
        flat = torch.tensor(PAINT[str(colour)], dtype=torch.uint8).view(3, 1, 1).expand(3, side, side)
        return mask(what, side), flat
    concept = CONCEPTS[what]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    second = {"halves": y > side // 2, "stripes": y % 2 == 1, "checks": (x + y) % 2 == 1}[concept.pattern]
    one, two = (torch.tensor(PAINT[c], dtype=torch.uint8).view(3, 1, 1) for c in (concept.first, concept.second))
    return mask(concept.shape, side), torch.where(second, two, one)


def corners(attributes: Attributes) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of the objects' boxes at jitter (0, 0).

    `top` is a row across the upper half, `left` a column down the left half; one object stands in its middle, two
    stand at its ends.
    """
    inset = (SIDE["large"] - SIDE[attributes["size"]]) // 2
    near, middle, far = inset, 4 + inset, 8 + inset
    across = near if attributes["position"] in ("top", "left") else far
    along = (middle,) if attributes["count"] == "one" else (near, far)
    return [(a, across) if attributes["position"] in ("top", "bottom") else (across, a) for a in along]


def draw(attributes: Attributes, jitter: int = 0) -> Tensor:
    """The image of a combination, (3, 16, 16) bytes. jitter: 0 to 3, see JITTERS."""
    if not 0 <= jitter < len(JITTERS):
        raise DataError(sentence("draw", f"a jitter from 0 to {len(JITTERS) - 1}", str(jitter), "Correct it"))
    given = checked(attributes)
    side, (dx, dy) = SIDE[given["size"]], JITTERS[jitter]
    filled, colours = picture(given["shape"], given.get("colour"), side)
    canvas = torch.tensor(PAINT[given["background"]], dtype=torch.uint8).view(3, 1, 1).repeat(1, SIZE, SIZE)
    for x, y in corners(given):
        box = canvas[:, y + dy : y + dy + side, x + dx : x + dx + side]
        box.copy_(torch.where(filled, colours, box))
    return canvas


def to_float(images: Tensor) -> Tensor:
    """Bytes 0 to 255 as floats in [-1, 1]; floats stay as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [-1, 1] as bytes; what lies outside is cut off."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def indices(given: Sequence[Attributes]) -> Tensor:
    """Attributes as numbers, (n, 6) in the order of ATTRIBUTES; -1 where one is not named."""
    table = {
        name: {v: i for i, v in enumerate(SHAPES if name == "shape" else values)} for name, values in ATTRIBUTES.items()
    }
    return torch.tensor([[table[n][a[n]] if n in a else -1 for n in ATTRIBUTES] for a in given]).view(
        -1, len(ATTRIBUTES)
    )
