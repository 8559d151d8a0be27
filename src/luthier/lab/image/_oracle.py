"""Reading attributes exactly from pixels: the nearest of all images that can be drawn, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

import torch
from torch import Tensor

from luthier.core.errors import DataError, sentence, unknown
from luthier.lab.image._shapes import (
    ATTRIBUTES,
    CONCEPTS,
    CONTEXT,
    JITTERS,
    SHAPES,
    SIZE,
    combinations,
    draw,
    indices,
    keys,
    parse,
    to_float,
)

CHUNK = 512
Asked = Mapping[str, str] | str
"""Attributes by name, or a caption."""
SIGMA = 0.5  # standard deviation per pixel of the noise that the soft reader assumes


@dataclass(frozen=True)
class Templates:
    """All images that can be drawn: `pixels` (T, 768) in [-1, 1], `index` (T, 6) of their attributes, `jitter` (T,).

    The first 4608 are the world's own, the last 576 show concepts, whose colour is -1.
    """

    pixels: Tensor
    index: Tensor
    jitter: Tensor

    @cached_property
    def energy(self) -> Tensor:
        """Squared length of each, (T,)."""
        return self.pixels.square().sum(-1)

    def where(self, asked: Mapping[str, str]) -> Tensor:
        """Which templates have these attributes, (T,)."""
        want = indices([asked])[0]
        return ((self.index == want) | (want < 0)).all(-1)


@cache
def templates() -> Templates:
    """The templates, drawn once per process."""
    every: list[dict[str, str]] = list(combinations())
    for concept in CONCEPTS:
        for values in product(*(ATTRIBUTES[name] for name in CONTEXT)):
            every.append({**dict(zip(CONTEXT, values, strict=True)), "shape": concept})
    drawn = torch.stack([draw(a, j) for a in every for j in range(len(JITTERS))])
    index = indices(every).repeat_interleave(len(JITTERS), 0)
    return Templates(to_float(drawn).flatten(1), index, torch.arange(len(JITTERS)).repeat(len(every)))


def own_count() -> int:
    """How many templates show no concept."""
    return len(combinations()) * len(JITTERS)


def as_pixels(images: Tensor, who: str = "oracle") -> Tensor:
    """Images (N, 3, 16, 16), bytes or floats in [-1, 1], as rows of finite floats (N, 768). Raises DataError."""
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        came = f"shape {tuple(images.shape)}"
        raise DataError(sentence(who, "images of shape (N, 3, 16, 16)", came, "Stack single images, do not resize"))
    out = to_float(images).float().flatten(1)
    bad = (~torch.isfinite(out)).any(-1)
    if bool(bad.any()):
        came = f"NaN or infinity in {int(bad.sum())} of {len(out)}, the first at index {int(bad.nonzero()[0])}"
        raise DataError(sentence(who, "finite pixels", came, "Look at the sampler or the step size"))
    return out


@dataclass(frozen=True)
class Readings:
    """What the oracle sees in N images.

    index (N, 6): attribute numbers in the order of ATTRIBUTES (shape counts on through concepts, whose colour is -1).
    jitter (N,). template (N,): the nearest. rmse (N,): root mean squared pixel distance to it; 0 is perfect.
    """

    index: Tensor
    jitter: Tensor
    template: Tensor
    rmse: Tensor

    def __len__(self) -> int:
        return len(self.template)

    @property
    def attributes(self) -> dict[str, Tensor]:
        """Attribute numbers by name, (N,) each."""
        return dict(zip(ATTRIBUTES, self.index.unbind(-1), strict=True))

    def words(self) -> list[dict[str, str]]:
        """Attributes in words, image by image."""
        value = {name: SHAPES if name == "shape" else values for name, values in ATTRIBUTES.items()}
        return [{n: value[n][i] for n, i in zip(ATTRIBUTES, row, strict=True) if i >= 0} for row in self.index.tolist()]

    def right(self, asked: Sequence[Asked]) -> Tensor:
        """Which attributes are as asked, (N, 6); one that was not asked for counts as right.

        asked: attributes or captions, one for each image.
        """
        if len(asked) != len(self):
            raise DataError(sentence("readings", f"{len(self)} captions", str(len(asked)), "Give one for each image"))
        want = indices([parse(a) if isinstance(a, str) else a for a in asked])
        return (self.index == want) | (want < 0)

    def accuracy(self, asked: Sequence[Asked]) -> dict[str, float]:
        """Share of images in which each attribute, and `all` of them, are as asked."""
        right = self.right(asked)
        shares = {name: float(right[:, i].float().mean()) for i, name in enumerate(ATTRIBUTES)}
        return {**shares, "all": float(right.all(-1).float().mean())}

    def share(self, name: str) -> Tensor:
        """Share of each value of an attribute (`jitter` is one too), summing to 1 over images that have it."""
        if name not in (*ATTRIBUTES, "jitter"):
            raise DataError(unknown("attribute", name, (*ATTRIBUTES, "jitter")))
        size = len(JITTERS) if name == "jitter" else len(SHAPES) if name == "shape" else len(ATTRIBUTES[name])
        values = self.jitter if name == "jitter" else self.attributes[name]
        count = torch.bincount(values[values >= 0], minlength=size).float()
        return count / count.sum().clamp_min(1)

    def entropy(self, name: str) -> float:
        """Entropy of an attribute over the images, in nats."""
        return float(torch.special.entr(self.share(name)).sum())

    def coverage(self, asked: Asked = "") -> float:
        """Share of the templates allowed by a caption (all of the world's own without one) that are nearest to some image."""
        allowed = templates().where(parse(asked) if isinstance(asked, str) else asked)
        if "shape" not in (parse(asked) if isinstance(asked, str) else asked):
            allowed = allowed & (torch.arange(len(allowed)) < own_count())
        seen = torch.zeros_like(allowed)
        seen[self.template] = True
        return int((seen & allowed).sum()) / int(allowed.sum())


@torch.no_grad()
def read(images: Tensor) -> Readings:
    """The nearest template of each image (N, 3, 16, 16), bytes or floats in [-1, 1]. Raises DataError."""
    known, found, far = templates(), [], []
    for x in as_pixels(images.detach().cpu()).split(CHUNK):
        at = (known.energy - 2 * x @ known.pixels.T).argmin(-1)
        found.append(at)
        far.append((x - known.pixels[at]).square().mean(-1).sqrt())
    at = torch.cat(found) if found else torch.zeros(0, dtype=torch.long)
    return Readings(known.index[at], known.jitter[at], at, torch.cat(far) if far else torch.zeros(0))


def log_probability(images: Tensor, asked: Asked | Sequence[Asked], sigma: float = SIGMA) -> Tensor:
    """Log-probability (N,) that images show what is asked, if they are templates plus noise of `sigma` per pixel.

    Exact for that model, and differentiable in the images. asked: one for all, or one for each image. All own templates
    are equally likely beforehand; concepts take part where one is asked for.
    """
    if not 0 < sigma < math.inf:
        raise DataError(sentence("log_probability", "sigma > 0", str(sigma), "Give a noise level such as 0.5"))
    known, x = templates(), as_pixels(images, "log_probability")
    every = [asked] * len(x) if isinstance(asked, str | Mapping) else list(asked)
    if len(every) != len(x):
        raise DataError(sentence("log_probability", f"{len(x)} captions", str(len(every)), "Give one for each image"))
    wanted = [parse(a) if isinstance(a, str) else a for a in every]
    mask = {repr(w): known.where(w) for w in wanted}
    right = torch.stack([mask[repr(w)] for w in wanted]).to(x.device) if wanted else torch.zeros(0, len(known.energy))
    own = torch.arange(len(known.energy)) < own_count()
    possible = torch.stack([own | (w.get("shape") in CONCEPTS) for w in wanted]).to(x.device) if wanted else right
    score = (x @ known.pixels.T.to(x.device) - known.energy.to(x.device) / 2) / sigma**2
    score = score.masked_fill(~possible.bool(), -math.inf)
    return score.masked_fill(~right.bool(), -math.inf).logsumexp(-1) - score.logsumexp(-1)


def distance(images: Tensor) -> Tensor:
    """Root mean squared pixel distance to the nearest template, (N,), differentiable almost everywhere."""
    x, known = as_pixels(images, "distance"), templates().pixels
    at = read(images).template
    return ((x - known[at].to(x.device)).square().mean(-1) + 1e-12).sqrt()


def truth(asked: Asked, name: str, split: str = "train") -> Tensor:
    """True share of each value of an attribute among the keys of a split that a caption allows.

    Jitter is uniform. Where the split has no such key (a novel pair), all keys count. Sums to 1.
    """
    if name == "jitter":
        return torch.full((len(JITTERS),), 1 / len(JITTERS))
    if name not in ATTRIBUTES:
        raise DataError(unknown("attribute", name, (*ATTRIBUTES, "jitter")))
    wanted = parse(asked) if isinstance(asked, str) else asked
    own = [a for a in keys(split) if all(a[n] == v for n, v in wanted.items())]
    own = own or [a for a in combinations() if all(a[n] == v for n, v in wanted.items())]
    size = len(SHAPES) if name == "shape" else len(ATTRIBUTES[name])
    values = indices(own)[:, list(ATTRIBUTES).index(name)]
    return torch.bincount(values, minlength=size).float() / max(1, len(own))
