"""Denoisers that begin exactly right and are then tuned: shared by claims on alignment and personalisation.

The base is the best denoiser of a Gaussian mixture in closed form, the policy is the base plus a small network that says
nothing at first. So what tuning should reach (the mixture tilted by a linear reward) is known, and no base must be trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core import Batch, NoisePath, Objective, Signals, stream
from luthier.core.terms import as_terms
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._kinds import from_pair, to_eps
from luthier.diffusion.schedules._path import level
from luthier.diffusion.schedules.vp import VP
from luthier.lab.micro.mixture import Mixture, mmd_to
from luthier.reproduce.claims._axes import axes
from luthier.reproduce.claims._denoiser import Net

PATH, KIND = VP(), "v"


class Exact(nn.Module):
    """The best denoiser of a mixture; points stand as images (B, 2, 1, 1)."""

    def __init__(self, world: Mixture, path: NoisePath = PATH) -> None:
        super().__init__()
        self.path, self.kind = path, KIND
        self.world = Mixture(*(v.float() for v in (world.weights, world.means, world.covariances)))

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, 2, 1, 1), t (B,) -> v, (B, 2, 1, 1)."""
        at = level(self.path, t, x)
        x0 = self.world.denoise(x.flatten(1), at.alpha.flatten(), at.sigma.flatten()).view_as(x)
        return from_pair(x0, to_eps(x, x0, at, "x0"), at, KIND)


class Tuned(nn.Module):
    """An exact base and a network that is added to it, nothing at the start."""

    def __init__(self, base: Exact, seed: int) -> None:
        super().__init__()
        self.path, self.kind, self.base = base.path, base.kind, base
        self.added = Net(base.path, base.kind, seed)
        nn.init.zeros_(self.added.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.added.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """x (B, 2, 1, 1), t (B,) -> v, (B, 2, 1, 1)."""
        return self.base(x, t) + self.added(x, t)


@functools.cache
def world_of(seed: int) -> tuple[Mixture, Tensor]:
    """A mixture of four modes in the plane, and a direction of reward of length 1."""
    direction = torch.randn(2, generator=stream(seed, "claim.tuned.reward"), dtype=torch.float64)
    return Mixture.random(4, 2, seed, spread=1.0, deviation=0.3), direction / direction.norm()


Rows = Callable[[torch.Generator], dict[str, tuple[Tensor, ...]]]


def tune(seed: int, objective: Objective, lr: float, steps: int, rows: Rows, batch: int, kind: str = "image",
         handles: Mapping[str, Any] | None = None, start: Tuned | None = None) -> Tuned:  # fmt: skip
    """The base tuned by Adam with a linear decay on rows (signals by name, a tuple of parts each) drawn anew each step."""
    reference = Exact(world_of(seed)[0])
    policy = start or Tuned(reference, seed)
    held = {"policy": policy, "reference": reference, **(handles or {})}
    parts = ("chosen", "rejected") if kind == "image_preference" else ("image",)
    search = torch.optim.Adam(policy.added.parameters(), lr=lr)
    for step in range(steps):
        g = stream(seed, "claim.tuned", step)
        columns = {**rows(g), "noise": (torch.randn(batch, 2, 1, 1, generator=g),), "uniform": (torch.rand(batch, 8, generator=g),),
                   "progress": (torch.full((batch,), step / steps),)}  # fmt: skip
        inputs = {"condition.none": torch.zeros(batch * len(parts))}
        terms = as_terms(
            objective(Batch(kind, inputs, parts, meta=[{}] * batch), Signals(columns, parts, held.__getitem__))
        )
        for group in search.param_groups:
            group["lr"] = lr * (1 - step / steps)
        search.zero_grad()
        sum(t.scale * t.sums()[0] / t.sums()[1] for t in terms).backward()  # type: ignore[union-attr]
        search.step()
    return policy


@torch.no_grad()
def points_of(model: Any, seed: int, sampler: Any = None, steps: int = 20, n: int = 1500) -> Tensor:
    """n samples (n, 2), float64, from the same noise for every model."""
    g = stream(seed, "claim.tuned.noise")
    x = torch.randn(n, 2, 1, 1, generator=g)
    return sample(model, sampler or DDIM(), x, make_grid(model.path, steps), None, g).flatten(1).double()


def figures_of(x: Tensor, truth: Mixture, base: Mixture, direction: Tensor) -> dict[str, float]:
    """Mean reward of points, 1000 x their squared discrepancy from what they should be, and from the base; the axes."""
    found = axes(x, truth, base=base, reward=lambda x: x @ direction, length=0.5)
    named = {"reward": found["alignment/reward"], "drift": found["drift/base"]}
    return {**named, "distance": 1000 * mmd_to(x, truth, 0.5), **found}
