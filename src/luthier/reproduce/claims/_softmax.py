"""A linear softmax model that knows something, rows of a careless teacher for something new, and what both cost.

logits = x W^T. The base has weights W0. The teacher follows argmax of W* x, W* = W0 + a random change, and names any class
in a share of its rows. New contexts lie around +m, old ones around -m: what is learned on the new ones also moves the old.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from luthier.core import Batch, Objective, Signals, stream
from luthier.core.terms import as_terms
from luthier.ops.divergence import kl_of_logits

F64 = torch.float64
CLASSES, WIDTH, FRESH = 8, 16, 2000


@dataclass(frozen=True)
class SoftmaxWorld:
    """base, truth: weights (CLASSES, WIDTH); centre (WIDTH,) of the new contexts, minus that of the old; noise: share of
    rows with any class."""

    base: Tensor
    truth: Tensor
    centre: Tensor
    noise: float

    @classmethod
    def random(cls, seed: int, noise: float = 0.3, change: float = 1.0, apart: float = 0.5) -> SoftmaxWorld:
        """Normal weights; change: size of what is new relative to the base; apart: distance of the centres from zero."""
        g = stream(seed, "claim.softmax.world")
        base = torch.randn(CLASSES, WIDTH, generator=g, dtype=F64)
        truth = base + change * torch.randn(CLASSES, WIDTH, generator=g, dtype=F64)
        centre = torch.randn(WIDTH, generator=g, dtype=F64)
        return cls(base, truth, apart * centre * WIDTH**0.5 / centre.norm(), noise)

    def contexts(self, n: int, g: Generator, old: bool = False) -> Tensor:
        """(n, WIDTH) around the centre, or around its mirror image."""
        return torch.randn(n, WIDTH, generator=g, dtype=F64) + (-self.centre if old else self.centre)

    def rows(self, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """Contexts (n, WIDTH) and the teacher's classes (n,)."""
        x = self.contexts(n, g)
        any_class = torch.randint(CLASSES, (n,), generator=g)
        careless = torch.rand(n, generator=g) < self.noise
        return x, torch.where(careless, any_class, (x @ self.truth.T).argmax(-1))

    def figures(self, weight: Tensor, seed: int) -> dict[str, float]:
        """Share of fresh new contexts answered rightly; share of old ones answered as by the base; KL(base || model) there."""
        g = stream(seed, "claim.softmax.fresh")
        new, old = self.contexts(FRESH, g), self.contexts(FRESH, g, old=True)
        return {
            "new": float(((new @ weight.T).argmax(-1) == (new @ self.truth.T).argmax(-1)).double().mean()),
            "old": float(((old @ weight.T).argmax(-1) == (old @ self.base.T).argmax(-1)).double().mean()),
            "drift": float(kl_of_logits(old @ self.base.T, old @ weight.T).mean()),
        }


def signals(logits: Tensor, reference: Tensor, label: Tensor, **more: Tensor) -> Signals:
    """Signals of sequences of one token from logits (n, V), the reference's logits and the classes (n,)."""

    def chosen(z: Tensor) -> Tensor:
        return z.log_softmax(-1).gather(-1, label[:, None])

    values = {"logits": logits[:, None], "ref_logits": reference[:, None], "token_logp": chosen(logits),
              "ref_token_logp": chosen(reference), "token_mask": torch.ones_like(label[:, None], dtype=F64), **more}  # fmt: skip
    return Signals({k: (v,) for k, v in values.items()})


def total(objective: Objective, s: Signals) -> Tensor:
    """The loss that the engine makes of the objective's terms, a scalar."""
    terms = as_terms(objective(Batch("text", {}, s.parts), s))
    sums = [(t.scale, *t.sums()) for t in terms]
    return torch.stack([scale * value / count for scale, value, count in sums]).sum()


def descend(start: Tensor, loss: Callable[[Tensor], Tensor], lr: float, stops: Sequence[int]) -> dict[int, Tensor]:
    """The weights after each number of full-batch Adam steps in `stops`."""
    weight = start.clone().requires_grad_()
    search: Any = torch.optim.Adam([weight], lr=lr)
    out = {}
    for step in range(1, max(stops) + 1):
        search.zero_grad()
        loss(weight).backward()
        search.step()
        if step in stops:
            out[step] = weight.detach().clone()
    return out
