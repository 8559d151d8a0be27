"""How near the form of an additive delta comes to a given change of a linear map, whatever the training: for claims."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from luthier.adapt._delta import Delta
from luthier.core import stream
from luthier.lab.micro.linear import LinearWorld, square_root


def missed(world: LinearWorld, delta: Delta, seed: int, starts: int = 4, evaluations: int = 60) -> float:
    """Least excess risk, as a share of the base's, that Levenberg-Marquardt finds from a few random starts.

    0 is a perfect fit, 1 no fit at all.
    """
    root = square_root(world.covariance)
    target = world.delta @ root
    best = float("inf")
    for i in range(starts):
        g = stream(seed, f"fits.{i}")
        parts = {k: v.double() for k, v in delta.init(world.base, g).items()}
        sizes, shapes = [v.numel() for v in parts.values()], [v.shape for v in parts.values()]

        def error(flat: Tensor, names: tuple[str, ...] = tuple(parts), sizes: list[int] = sizes,
                  shapes: list[torch.Size] = shapes) -> Tensor:  # fmt: skip
            named = {k: t.view(s) for k, t, s in zip(names, flat.split(sizes), shapes, strict=True)}
            return (delta.delta(world.base, named) @ root - target).flatten()

        start = 0.5 * torch.randn(sum(sizes), generator=g, dtype=torch.float64)
        best = min(best, descended(error, start, evaluations))
    return best / float(target.square().sum())


def descended(error: Callable[[Tensor], Tensor], start: Tensor, evaluations: int) -> float:
    """Least |error(x)|^2 of MINPACK's Levenberg-Marquardt with exact derivatives."""
    slope = torch.func.jacfwd(error)
    done = least_squares(
        lambda x: error(torch.from_numpy(x)).numpy(),
        start.numpy(),
        lambda x: np.ascontiguousarray(slope(torch.from_numpy(x)).numpy()),  # type: ignore[arg-type]
        method="lm",
        max_nfev=evaluations,
    )
    return 2 * float(done.cost)


def best_low_rank(world: LinearWorld, rank: int) -> float:
    """The same share for the best change of this rank, in closed form: what LoRA can reach at most."""
    floor = world.risk(world.weight)
    return float((world.risk(world.base + world.best_rank(rank)) - floor) / (world.risk(world.base) - floor))


def moved(world: LinearWorld, change: Tensor | None = None, covariance: Tensor | None = None) -> LinearWorld:
    """The same base, with another change (k, d) to be found, scaled to the size of the old one, or other inputs."""
    delta = world.delta if change is None else change * (world.delta.norm() / change.norm())
    return LinearWorld(
        world.base + delta, world.covariance if covariance is None else covariance, world.base, world.noise
    )


def drawn(out: int, inputs: int, rank: int, generator: torch.Generator) -> Tensor:
    """A random matrix (out, inputs) of this rank, of unit variance an entry."""
    left = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return left @ torch.randn(rank, inputs, generator=generator, dtype=torch.float64) / rank**0.5
