"""Batches of images, with the noise and the uniform numbers of each row and step drawn here, so that any split is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from luthier.core.batch import CONDITION, Batch
from luthier.core.streams import stream
from luthier.train.feed import Feed, order

UNIFORMS = 8
"""Uniform numbers per row and step: the first is for the time, the second drops conditions, the rest are the objective's."""


@dataclass
class Prior:
    """Images that the model shall go on drawing, given beside every batch as its part "prior", with numbers of their own.

    images: (N, C, H, W) in the model's range. conditions: raw inputs of all of them, (1, ...).
    """

    images: Tensor
    conditions: Mapping[str, Tensor]

    def drawn(self, seed: int, step: int, size: int) -> dict[str, Tensor]:
        """Which images go with a step (size,), and their noise and uniform numbers."""
        row = torch.randint(len(self.images), (size,), generator=stream(seed, "diffusion.prior", step))
        noise = torch.randn(size, *self.images.shape[1:], generator=stream(seed, "diffusion.prior.noise", step))
        return {
            "prior_row": row,
            "prior_noise": noise,
            "prior_uniform": uniforms(seed, "diffusion.prior.uniform", step, size),
        }


def uniforms(seed: int, role: str, step: int, size: int) -> Tensor:
    """Uniform numbers (size, 8), never 0 or 1."""
    return torch.rand(size, UNIFORMS, generator=stream(seed, role, step)).clamp(1e-7, 1 - 1e-7)


@dataclass
class ImageFeed(Feed):
    """Images in memory as batches.

    images: per part (N, C, H, W), in the model's own range, float or as given by `decode`. conditions: raw inputs of the
    conditioner by name, (N, ...). null: raw inputs of "no condition" for one row; drop: how often it takes the place of a
    row's condition. decode: stored images -> model's range (for bytes). rows, shape: number and shape of what is generated,
    where there are only conditions and no images. steps: of the whole run, for objectives that change as it goes (column
    "progress", from 0 to below 1). references: images of the whole data drawn for each step (column "references", (K, C, H, W)).
    pair: (images, noise) of a whole step -> its noise in the order in which it goes with the images. prior: see there.
    """

    images: tuple[Tensor, ...]
    kind: str
    parts: tuple[str, ...]
    batch: int
    seed: int
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Tensor] = field(default_factory=dict)
    drop: float = 0.0
    micro: int | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Sequence[Mapping[str, Any]] = ()
    decode: Callable[[Tensor], Tensor] = torch.Tensor.float
    rows: int = 0
    shape: tuple[int, ...] = ()
    steps: int = 1
    references: int = 0
    pair: Callable[[Tensor, Tensor], Tensor] | None = None
    prior: Prior | None = None
    unit: ClassVar[str] = "images"

    def __len__(self) -> int:
        return self.rows or len(self.images[0])

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Micro-batches of this rank: its share of the global batch and of the global noise."""
        rows = order(self.seed, step, self.batch, len(self))
        shape = (self.batch, *(self.shape or self.images[0].shape[1:]))
        noise = torch.randn(shape, generator=stream(self.seed, "diffusion.noise", step))
        uniform = uniforms(self.seed, "diffusion.uniform", step, self.batch)
        if self.pair is not None and self.images:
            noise = self.pair(self.decode(self.images[0][torch.tensor(rows)]), noise)
        own = list(range(self.batch))[rank::world]
        size = self.micro or len(own)
        progress = torch.full((self.batch,), step / max(self.steps, 1))
        shared = self._references(step)
        beside = {} if self.prior is None else self.prior.drawn(self.seed, step, self.batch)
        made = []
        for at in (own[i : i + size] for i in range(0, len(own), size)):
            drawn = {"noise": noise[at], "uniform": uniform[at], "progress": progress[at],
                     **{k: v[at] for k, v in beside.items()}}  # fmt: skip
            made.append(self.collate([rows[i] for i in at], drawn, shared))
        return made

    def _references(self, step: int) -> dict[str, Tensor]:
        if not self.references:
            return {}
        chosen = torch.randperm(len(self), generator=stream(self.seed, "diffusion.references", step))[: self.references]
        return {"references": self.decode(self.images[0][chosen])}

    def collate(self, rows: Sequence[int], drawn: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Batch:
        """The batch of these rows with what was drawn for each of them, and for all of them."""
        index = torch.tensor(list(rows), dtype=torch.long)
        inputs = {"image": torch.cat([self.decode(part[index]) for part in self.images])} if self.images else {}
        dropped = drawn["uniform"][:, 1] < self.drop
        for name, values in self.conditions.items():
            chosen = values[index]
            if self.drop:
                chosen = torch.where(
                    dropped.view(-1, *(1 for _ in chosen.shape[1:])), self.null[name].to(chosen.dtype), chosen
                )
            inputs[CONDITION + name] = torch.cat([chosen] * len(self.parts))
        columns = {**drawn, **shared, **{k: v[index] for k, v in self.columns.items()}}
        meta = [self.meta[r] for r in rows] if self.meta else ()
        parts = self.parts
        if self.prior is not None:
            parts, held = (*parts, "prior"), self.prior.images[columns.pop("prior_row")]
            beside = {CONDITION + k: v.expand(len(rows), *v.shape[1:]) for k, v in self.prior.conditions.items()}
            inputs = {k: torch.cat([v, {"image": held, **beside}[k].to(v.dtype)]) for k, v in inputs.items()}
        return Batch(self.kind, inputs, parts, columns, tuple(rows), meta)
