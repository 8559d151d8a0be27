"""Subsets of a clustered pool and a learner that answers from them: shared by the claims on diversity of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from luthier.core import stream
from luthier.lab.micro.clouds import Cloud, Sample

CLUSTERS, WIDTH, POOL, KEEP, FRESH, NEIGHBOURS, NOISE = 12, 8, 1000, 40, 50, 3, 0.5
WORLD = (
    "twelve clusters in 8 dimensions, weights rank^-1.5, 40 of 1000 rows chosen; an answer for each cluster, noise 0.5, "
    "3-nearest-neighbour learner"
)

VARIED = WORLD.replace("an answer for each cluster", "answers that change as much inside a cluster as among clusters")
SLOPE = 1.0


@dataclass(frozen=True)
class Clusters:
    """A pool of rows with noisy answers (n,), fresh points by cluster, and each cluster's true answer: at its centre, and how
    it changes from there, (clusters, width)."""

    cloud: Cloud
    pool: Sample
    answers: Tensor
    asked: tuple[Tensor, ...]
    truth: Tensor
    slopes: Tensor

    @classmethod
    def random(cls, seed: int, outliers: int = 0, copies: int = 0, slope: float = 0.0) -> Clusters:
        """One world; outliers lie far away and have answers of no use. slope: deviation of the truth inside a cluster, 1 among
        centres; 0: one answer for each cluster."""
        cloud, g = Cloud.random(CLUSTERS, WIDTH, seed, skew=1.5), stream(seed, "claim.subsets")
        pool = cloud.sample(POOL, g, outliers=outliers, copies=copies)
        truth = torch.randn(CLUSTERS, generator=g, dtype=torch.float64)
        noise = torch.randn(POOL, generator=g, dtype=torch.float64)
        own = torch.randn(CLUSTERS, WIDTH, generator=stream(seed, "claim.subsets.slopes"), dtype=torch.float64)
        slopes = slope * own / own.norm(dim=1, keepdim=True)
        inside = ((pool.points - cloud.centres[pool.label]) * slopes[pool.label]).sum(1)
        answers = torch.where(pool.label >= 0, truth[pool.label] + inside + NOISE * noise, 2 * noise)
        asked = tuple(c + torch.randn(FRESH, WIDTH, generator=g, dtype=torch.float64) for c in cloud.centres)
        return cls(cloud, pool, answers, asked, truth, slopes)

    def errors(self, rows: Tensor) -> dict[str, float]:
        """Squared error of a learner that knows these rows: worst cluster, mean over clusters, and over the pool's like."""
        x, y = self.pool.points[rows], self.answers[rows]
        found = []
        for c, asked in enumerate(self.asked):
            near = torch.cdist(asked, x).topk(min(NEIGHBOURS, len(x)), largest=False).indices
            true = self.truth[c] + (asked - self.cloud.centres[c]) @ self.slopes[c]
            found.append(float((y[near].mean(1) - true).square().mean()))
        held = sum(w * e for w, e in zip(self.cloud.weights.tolist(), found, strict=True))
        return {"worst": max(found), "mean": sum(found) / len(found), "held": held}

    def lot(self, seed: int, n: int = KEEP) -> Tensor:
        """n rows drawn by lot."""
        return torch.randperm(POOL, generator=stream(seed, "claim.subsets.lot"))[:n]


def rank_correlation(values: list[float], others: list[float]) -> float:
    """Spearman's rank correlation."""
    found: Any = spearmanr(values, others)
    return float(found.statistic)
