"""Five images of an object that the image world's base never saw, learned under a new word and read by the oracle: shared by claims.

fidelity: share of images of the object that are exactly as asked, and their distance from what can be drawn. diversity: entropy of
the images drawn for one caption (as an effective number) and Vendi score, over those of as many true images. alignment: log
probability that an image shows what its caption asks for. drift: root mean squared pixel difference from what the untrained model
draws from the same noise for captions without the object. cost: seconds of the processor.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core.streams import python_stream
from luthier.lab.image import World, draw, to_float
from luthier.measure.images.image_vendi import vendi_of
from luthier.ops.vendi import effective_number
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from luthier.recipes.run import subject_of
from luthier.reproduce.claim import TUNING_SEED
from luthier.reproduce.claims._axes import timed
from luthier.train.loop import Loop

CONCEPT, CLASS, LENGTH = "flag", "square", 0.25
WORD: Mapping[str, Any] = {"textual_inversion": {"word": CONCEPT, "like": CLASS}}
WEIGHTS: list[Any] = [{"lora": {"rank": 8}}, WORD]
"""A LoRA beside the word."""
PLAIN: Mapping[str, Any] = {
    "model": "lab:image",
    "data": {"train": f"lab:image/{CONCEPT}", "rows": 5, "test_rows": 1},
    "sampling": {"steps": 10, "guidance": 2.0},
    "train": {"steps": 80, "batch": 16},
}
ASKED = {"new": (14, 4), "class": (16, 2), "other": (16, 2)}
"""Captions, and images of each: of the object, of its class, of other shapes."""


@functools.cache
def rows(which: str, split: str) -> list[dict[str, Any]]:
    """Rows of captions that no image was trained on."""
    world, count = World(), ASKED[which][0]
    if which == "new":
        return world.concept_rows(CONCEPT, split, count)
    every = world.rows(split, 40 * count)
    return [r for r in every if (r["attributes"]["shape"] == CLASS) == (which == "class")][:count]


@functools.cache
def shown(split: str) -> Tensor:
    """As many true images of the object for each caption as are drawn, (n, samples, 3, 16, 16)."""
    rng, (_, samples) = python_stream(0, "claim.concept.truth"), ASKED["new"]
    shifts = len(World().truth("", "jitter"))
    asked = [r["attributes"] for r in rows("new", split) for _ in range(samples)]
    return to_float(torch.stack([draw(a, rng.randrange(shifts)) for a in asked])).unflatten(0, (-1, samples))


def different(images: Tensor) -> tuple[float, float]:
    """Mean over captions of the effective number of images of the world, and of the Vendi score; (n, samples, 3, 16, 16)."""
    seen = World().oracle(images.flatten(0, 1)).template.view(images.shape[:2])
    shares = [t.unique(return_counts=True)[1].double() / len(t) for t in seen]
    number = sum(float(effective_number(s)) for s in shares) / len(shares)
    return number, sum(vendi_of(some, LENGTH) for some in images) / len(images)


def read(drawn: Mapping[str, Tensor], base: Mapping[str, Tensor], split: str) -> dict[str, float]:
    """All figures of images (n, samples, 3, 16, 16) by kind of caption; new, class, other: shares that are as asked."""
    world, out = World(), {}
    asked = {w: [r["asked"] for r in rows(w, split) for _ in range(x.shape[1])] for w, x in drawn.items()}
    for which, x in drawn.items():
        out[which] = world.oracle(x.flatten(0, 1)).accuracy(asked[which])["all"]
    new = drawn["new"].flatten(0, 1)
    number, vendi = (a / b for a, b in zip(different(drawn["new"]), different(shown(split)), strict=True))
    off = torch.cat([(drawn[w] - base[w]).flatten(2).square().mean(2).sqrt().flatten() for w in ("class", "other")])
    return {
        **out,
        "fidelity/accuracy": out["new"],
        "fidelity/distance": float(world.distance(new).mean()),
        "diversity/entropy": number,
        "diversity/vendi": vendi,
        "alignment/log_probability": float(world.log_probability(new, asked["new"]).mean()),
        "drift/base": float(off.mean()),
    }


@functools.cache
def untrained(seed: int, split: str) -> dict[str, Tensor]:
    """What the base draws, the new word standing for its class; the same noise as for every arm of the seed."""
    return _images(_prepared({"adapt": WORD, "objective": "denoise"}, 1e-3, seed), split, base=True)


def _prepared(arm: Mapping[str, Any], lr: float, seed: int) -> Any:
    return prepare(parse({**PLAIN, **arm, "train": {**PLAIN["train"], "lr": lr}, "seed": seed}))


def _images(prepared: Any, split: str, base: bool = False) -> dict[str, Tensor]:
    subject = subject_of(prepared)
    subject = subject.base() if base else subject
    return {w: subject.generate(rows(w, split), samples=n) for w, (_, n) in ASKED.items()}


@timed
def trained(arm: Mapping[str, Any], lr: float, seed: int, split: str) -> dict[str, float]:
    """Figures of a recipe run to its end by the ordinary engine."""
    prepared = _prepared(arm, lr, seed)
    Loop(prepared.job).run()
    return read(_images(prepared, split), untrained(seed, split), split)


@dataclass(frozen=True)
class Lesson:
    """Recipes that learn the object, each at its own best rate by the mean of some figures; beside them the untrained model.

    arms: by name, what differs in the recipe and the rates that are tried.
    """

    arms: Mapping[str, tuple[Mapping[str, Any], Sequence[float]]]
    by: tuple[str, ...]
    rates: dict[str, float] = field(default_factory=dict)

    def rate(self, arm: str) -> float:
        """The best one on captions and a seed that are not reported."""
        if arm not in self.rates:
            plain, tried = self.arms[arm]
            untrained(TUNING_SEED, "stop")
            found = {lr: trained(plain, lr, TUNING_SEED, "stop") for lr in tried}
            self.rates[arm] = max(found, key=lambda lr: sum(found[lr][name] for name in self.by))
        return self.rates[arm]

    def run(self, seed: int) -> dict[str, dict[str, float]]:
        """All arms, and the model before training."""
        start = timed(lambda: read(untrained(seed, "test"), untrained(seed, "test"), "test"))()
        return {"start": start} | {
            arm: trained(plain, self.rate(arm), seed, "test") for arm, (plain, _) in self.arms.items()
        }
