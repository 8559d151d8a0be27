"""One trained 2-D teacher per world and its few-step students, judged by their distance from the truth: shared by claims."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.core import NoisePath, Objective, stream
from luthier.diffusion.samplers.euler import Euler
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.times.logit_normal import LogitNormal
from luthier.diffusion.train.denoise import Denoise
from luthier.lab.micro.mixture import Mixture, mmd_to
from luthier.reproduce.claim import TUNING_SEED
from luthier.reproduce.claims._axes import axes, timed
from luthier.reproduce.claims._denoiser import Net, Trainer, frozen, points

MODES, POINTS, RATES = 5, 4000, (3e-4, 1e-3, 3e-3)


@functools.cache
def world(seed: int) -> tuple[Mixture, Tensor]:
    """A mixture of five modes and 4,000 points of it."""
    mixture = Mixture.random(MODES, 2, seed)
    return mixture, mixture.sample(POINTS, stream(seed, "claim.few_steps"))[0].float()


@functools.cache
def teacher(seed: int, path: NoisePath | None = None, kind: str = "velocity") -> Net:
    """A denoiser trained on the world's points, averaged; frozen."""
    at = path or Flow()
    net = Trainer(Net(at, kind, seed), world(seed)[1], seed)
    return frozen(net.run(Denoise(times=LogitNormal()), 800, 3e-3, 0.99))


def student(seed: int, objective: Objective, lr: float, steps: int, start: Net | None = None, **more: Any) -> Net:
    """The teacher (or `start`) trained on with an objective; averaged over about twenty steps."""
    begin = copy.deepcopy(start or teacher(seed)).requires_grad_(True)
    trainer = Trainer(begin, world(seed)[1], seed, {"reference": frozen(begin), **more.pop("handles", {})})
    return trainer.run(objective, steps, lr, 0.95, **more)


@functools.cache
def taught(seed: int) -> Tensor:
    """What the teacher draws in 40 steps, (n, 2)."""
    return points(teacher(seed), Euler(), 40, seed)


def best_rate(figures: Callable[[int, float], Mapping[str, float]], measure: str) -> float:
    """The learning rate of the lowest figure, on a world that is not reported."""
    torch.manual_seed(0)
    return min(RATES, key=lambda lr: figures(TUNING_SEED, lr)[measure])


@dataclass(frozen=True)
class Trial:
    """Objectives that train the same teacher's students, each drawn by its own sampler and at its own best rate.

    steps: of training; counts: of sampling; by: the figure that rates are chosen by, whose samples are read on all axes too;
    handles: what objectives may ask for beside the teacher.
    """

    arms: Mapping[str, tuple[Any, Any]]
    steps: int
    counts: tuple[int, ...]
    by: str
    rates: dict[str, float] = field(default_factory=dict)
    handles: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, arm: str, seed: int, lr: float) -> dict[int, Tensor]:
        """The samples (n, 2) of every number of steps."""
        objective, sampler = self.arms[arm]
        asked = {"references": getattr(objective, "references", 0), "handles": self.handles}
        net = student(seed, objective, lr, self.steps, **asked)
        return {n: points(net, sampler, n, seed) for n in self.counts}

    def base(self, seed: int) -> Tensor | None:
        """Samples of what the students began as, if anything."""
        return taught(seed)

    def judged(self, drawn: Mapping[int, Tensor], seed: int) -> dict[str, float]:
        """mmd_N: squared discrepancy of N-step samples from the truth, times 1,000; the axes."""
        truth = world(seed)[0]
        far = {f"mmd_{n}": 1000 * mmd_to(x, truth) for n, x in drawn.items()}
        return {**far, **axes(drawn[int(self.by.removeprefix("mmd_"))], truth, base=self.base(seed))}

    @timed
    def figures(self, arm: str, seed: int, lr: float) -> dict[str, float]:
        """All figures of an arm."""
        return self.judged(self.samples(arm, seed, lr), seed)

    def run(self, seed: int) -> dict[str, dict[str, float]]:
        """Every arm at the rate of its best figure on a world that is not reported."""
        self.base(seed)
        for arm in self.arms.keys() - self.rates.keys():
            self.rates[arm] = best_rate(lambda seed, lr, arm=arm: self.figures(arm, seed, lr), self.by)
        return {arm: self.figures(arm, seed, self.rates[arm]) for arm in self.arms}
