"""Rows that need different skills of a linear learner, with the gradient of each row known: for claims on gradients.

A row is an input on one skill's directions among many, seen through a nuisance embedding that tells topics, not skills.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core import stream
from luthier.lab.micro.linear import ridge

SKILLS, WIDTH, TOPICS, NOISE, FRESH = 12, 4, 12, 0.1, 40


@dataclass(frozen=True)
class Skills:
    """Inputs (n, d) and answers (n,) of a pool, skill and topic of each row, vectors of its texts, and the truth (d,)."""

    x: Tensor
    y: Tensor
    skill: Tensor
    topic: Tensor
    vectors: Tensor
    truth: Tensor
    seed: int

    @classmethod
    def random(cls, seed: int, pool: int, skew: float = 1.5) -> Skills:
        """A pool of this size; skills have weights rank^-skew; topics are drawn apart from them."""
        g = stream(seed, "claim.skills")
        weights = torch.arange(1, SKILLS + 1, dtype=torch.float64) ** -skew
        skill = torch.multinomial(weights, pool, replacement=True, generator=g)
        truth = torch.randn(SKILLS * WIDTH, generator=g, dtype=torch.float64)
        x = cls.inputs(skill, g)
        y = x @ truth + NOISE * torch.randn(pool, generator=g, dtype=torch.float64)
        topic = torch.randint(TOPICS, (pool,), generator=g)
        centres = torch.randn(TOPICS, 8, generator=g, dtype=torch.float64)
        vectors = 3 * centres[topic] + torch.randn(pool, 8, generator=g, dtype=torch.float64)
        return cls(x, y, skill, topic, vectors, truth, seed)

    @staticmethod
    def inputs(skill: Tensor, g: torch.Generator) -> Tensor:
        """Normal inputs in the directions of each row's skill, nearly 0 elsewhere."""
        x = 0.05 * torch.randn(len(skill), SKILLS, WIDTH, generator=g, dtype=torch.float64)
        x[torch.arange(len(skill)), skill] += torch.randn(len(skill), WIDTH, generator=g, dtype=torch.float64)
        return x.flatten(1)

    def gradients(self) -> Tensor:
        """Gradient of each row's squared error at a rough first guess of the weights, (n, d)."""
        g = stream(self.seed, "claim.skills.proxy")
        proxy = self.truth + torch.randn(len(self.truth), generator=g, dtype=torch.float64)
        return 2 * (self.x @ proxy - self.y)[:, None] * self.x

    def errors(self, rows: Tensor) -> dict[str, float]:
        """Squared error on fresh rows of a learner that saw these rows: over all skills alike, and the worst of them."""
        learned = ridge(self.x[rows], self.y[rows, None], 0.1)[0]
        g = stream(self.seed, "claim.skills.fresh")
        found = []
        for s in range(SKILLS):
            x = self.inputs(torch.full((FRESH,), s), g)
            found.append(float((x @ (learned - self.truth)).square().mean()))
        return {"even": sum(found) / SKILLS, "worst": max(found)}
