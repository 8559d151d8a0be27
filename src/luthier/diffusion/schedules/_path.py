"""Times, noise levels and denoisers: how the parts of the diffusion room fit together."""

# A path (`NoisePath` of core; members vp, vp_table, ve, flow) says how clean data and noise mix: x_t = alpha(t) x0 +
# sigma(t) eps. Time runs from 0 (clean, no denoiser is asked there) up to path.t_max (noise); denoisers are asked on
# [t_min, t_max]. `level(path, t, x)` gives alpha, sigma and their derivatives, ready to multiply x.
#
# A denoiser is any callable (x, t, condition) -> prediction with the attributes `path` and `kind`; `Predictor` makes one
# of a function. Kinds (`_kinds.py`): "x0", "eps", "v" = alpha eps - sigma x0, "velocity" = d x_t / dt. Times handed to it
# are (B,), in the path's own units; `path.network_time` turns them into what networks made for the path take.
#
# Times (`schedules/times`) say which times to train at, from uniform numbers; weightings (`schedules/weights`) how much an
# error counts. Grids (`_grid.py`) are descending times (n + 1,) that end in 0, float64 on the CPU.
#
# `samplers._driver.sample(denoiser, sampler, x, grid, condition, noise)` runs any sampler on any path and kind. Guidance
# (`guidance/`) turns denoisers into denoisers, starting noise into starting noise, conditions into conditions.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core import Denoiser, Level, NoisePath
from luthier.core.errors import Refused, sentence

Condition = Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Predictor:
    """A function (x, t, condition) -> prediction as a denoiser of this path and kind."""

    function: Callable[[Tensor, Tensor, Any], Tensor]
    path: NoisePath
    kind: str

    def __call__(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """x (B, ...) at times t (B,) -> (B, ...)."""
        return self.function(x, t, condition)


def wide(t: Tensor) -> Tensor:
    """t in float64, or in float32 on devices without it."""
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def like(value: Tensor, x: Tensor) -> Tensor:
    """A value per row (B,), or one for all (), ready to multiply x (B, ...): x's dtype and device, trailing axes of 1."""
    value = value.to(device=x.device, dtype=x.dtype)
    return value.view(*value.shape, *(1,) * (x.ndim - value.ndim)) if value.ndim else value


def level(path: NoisePath, t: Tensor, x: Tensor) -> Level:
    """The path's level at times t, (B,) or (), ready to multiply x (B, ...)."""
    return Level(*(like(part, x) for part in path.level(t)))


def mix(path: NoisePath, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """alpha(t) x0 + sigma(t) eps for x0, eps (B, ...) and times t (B,).

    >>> from luthier.diffusion.schedules.flow import Flow
    >>> mix(Flow(), torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([0.25]))
    tensor([[0.7500, 0.7500]])
    """
    at = level(path, t, x0)
    return at.alpha * x0 + at.sigma * eps


def log_snr(path: NoisePath, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2) at times t, of t's shape; infinite where one of them is 0."""
    at = path.level(t)
    return 2 * (at.alpha.log() - at.sigma.log())


def noise_share(path: NoisePath, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma) at times t: 0 is clean, 1 is noise, on every path; t itself on the flow path."""
    at = path.level(t)
    return at.sigma / (at.alpha + at.sigma)


def check_times(path: NoisePath, t: Tensor, who: str) -> None:
    """Raise Refused for times outside [0, t_max] or that are no numbers."""
    if not bool(((t >= 0) & (t <= path.t_max * (1 + 1e-6))).all()):
        came = f"times from {float(t.min()):g} to {float(t.max()):g}"
        raise Refused(
            sentence(who, f"times in [0, {path.t_max:g}] of the path {path.name}", came, "Check the grid or the path")
        )


def same_path(one: Denoiser, other: Denoiser, who: str) -> None:
    """Raise Refused unless two denoisers share path and kind, so that their predictions can be mixed."""
    if one.path != other.path or one.kind != other.kind:
        came = f"{one.kind} on {one.path} and {other.kind} on {other.path}"
        raise Refused(sentence(who, "denoisers of one path and kind", came, "Use models of one family"))
