"""Steps that are affine in x, the clean estimate and fresh noise: most samplers are a choice of three coefficients.

From time t to an earlier time s: x_s = keep x_t + clean x0 + noise z, z standard normal. If x0 and eps are right for x_t,
any `kept` in [0, sigma_s] gives x_s the right distribution: x_s = alpha_s x0 + kept eps + sqrt(sigma_s^2 - kept^2) z.
`kept` is what ddim, ddpm, tcd, consistency and flow_sde differ in.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.core import Level, NoisePath, Sampler
from luthier.core.errors import Refused, sentence
from luthier.diffusion.schedules._path import like, wide


class Move(NamedTuple):
    """Coefficients of a step, of the shape of its times, in float64."""

    keep: Tensor
    clean: Tensor
    noise: Tensor


def keeping(at: Level, to: Level, kept: Tensor) -> Move:
    """The step that keeps this much (0 to sigma_s) of the estimated noise and draws the rest afresh."""
    fresh = (to.sigma.square() - kept.square()).clamp_min(0).sqrt()
    return Move(kept / at.sigma, to.alpha - kept * at.alpha / at.sigma, fresh)


def fading(at: Level, to: Level) -> Tensor:
    """alpha_t sigma_s / (alpha_s sigma_t): the root of the ratio of signal-to-noise at t to that at s, in [0, 1]."""
    return at.alpha * to.sigma / (to.alpha * at.sigma)


def mean_of(move: Move, x: Tensor, x0: Tensor) -> Tensor:
    """Where the step goes on average, (B, ...)."""
    return like(move.keep, x) * x + like(move.clean, x) * x0


def log_prob(move: Move, x: Tensor, x0: Tensor, after: Tensor) -> Tensor:
    """Log density (B,), in nats, of arriving at `after` from x with clean estimate x0; all (B, ...).

    Raises Refused for a step without noise, which has no density.
    """
    if bool((move.noise <= 0).any()):
        raise Refused(
            sentence(
                "the log density of a step",
                "a step that draws noise",
                "one without",
                "Use ddpm, ddim with eta > 0 or flow_sde, and leave out the last step",
            )
        )
    off = (after - mean_of(move, x, x0)) / like(move.noise, x)
    size = math.prod(x.shape[1:])
    constant = size * (move.noise.log() + math.log(2 * math.pi) / 2)
    return -off.square().flatten(1).sum(1) / 2 - constant.to(device=x.device, dtype=x.dtype)


def landing(move: Move, to: Level) -> Move:
    """The move, or where it ends at clean data the one that takes the clean estimate."""
    end = to.sigma == 0
    return Move(move.keep.masked_fill(end, 0.0), to.alpha.where(end, move.clean), move.noise.masked_fill(end, 0.0))


class Affine(Sampler):
    """A sampler without state whose steps are affine; members give `move`."""

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        """The coefficients of a step from times t to earlier times s, both of one shape."""
        raise NotImplementedError

    def step(self, at: Any, state: Any) -> tuple[Tensor, Any]:
        move = self.move(at.path, at.t, at.s)
        after = mean_of(move, at.x, at.clean(at.x, at.t))
        return (after + like(move.noise, at.x) * at.draw() if bool((move.noise > 0).any()) else after), state


def levels(path: NoisePath, t: Tensor, s: Tensor) -> tuple[Level, Level]:
    """The path's levels at t and at s, in float64. Raises Refused unless s < t."""
    if not bool((s < t).all()):
        raise Refused(
            sentence("a sampler", "falling times", f"a step from {t.tolist()} to {s.tolist()}", "Sort the grid")
        )
    return path.level(wide(t)), path.level(wide(s))


def zero(at: Level) -> Tensor:
    """Zeros of the level's shape."""
    return torch.zeros_like(at.sigma)
