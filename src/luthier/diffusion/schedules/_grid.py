"""Grids: the times at which a sampler stops, descending, (steps + 1,), float64, ending in 0 (clean data)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from luthier.core import NoisePath
from luthier.core.errors import ConfigError, sentence
from luthier.diffusion.schedules._path import log_snr

Spacing = Literal["uniform", "karras", "log_snr"]


def _steps(steps: int, who: str) -> None:
    if steps < 1:
        raise ConfigError(sentence(who, "at least one step", str(steps), "Raise `steps`"))


def uniform_grid(path: NoisePath, steps: int, start: float | None = None) -> Tensor:
    """Equal steps of t from `start` (t_max if None) to 0.

    >>> from luthier.diffusion.schedules.flow import Flow
    >>> uniform_grid(Flow(), 4)
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    _steps(steps, "a uniform grid")
    return torch.linspace(path.t_max if start is None else start, 0, steps + 1, dtype=torch.float64)


def _ends(path: NoisePath, high: float | None, low: float | None, who: str) -> tuple[Tensor, Tensor]:
    """Log-SNR at the noisy and at the clean end; high, low are times (t_max and t_min if None)."""
    times = (path.t_max if high is None else high, path.t_min if low is None else low)
    noisy, clean = log_snr(path, torch.tensor(times, dtype=torch.float64))
    if not bool(torch.isfinite(noisy) & torch.isfinite(clean) & (clean >= noisy)):
        raise ConfigError(
            sentence(
                who,
                "two times of finite, rising log-SNR",
                f"log-SNR {float(noisy):g} at t = {times[0]:g} and {float(clean):g} at t = {times[1]:g}",
                "Give `high` below the end of the path and `low` above 0",
            )
        )
    return noisy, clean


def karras_grid(
    path: NoisePath, steps: int, rho: float = 7.0, high: float | None = None, low: float | None = None
) -> Tensor:
    """Noise ratios r = sigma / alpha with equal steps of r^(1 / rho), between times high and low, then 0.

    Source: arXiv 2206.00364, eq. 5, where alpha = 1.
    """
    _steps(steps, "a Karras grid")
    if rho <= 0:
        raise ConfigError(sentence("a Karras grid", "rho > 0", f"rho = {rho}", "7 is usual"))
    noisy, clean = (torch.exp(-end / 2) ** (1 / rho) for end in _ends(path, high, low, "a Karras grid"))
    ratio = torch.lerp(noisy, clean, torch.linspace(0, 1, steps, dtype=torch.float64)) ** rho
    return _closed(path.time_of(-2 * ratio.log()))


def log_snr_grid(path: NoisePath, steps: int, high: float | None = None, low: float | None = None) -> Tensor:
    """Equal steps of log-SNR between times high and low, then 0. Source: arXiv 2206.00927."""
    _steps(steps, "a log-SNR grid")
    noisy, clean = _ends(path, high, low, "a log-SNR grid")
    return _closed(path.time_of(torch.lerp(noisy, clean, torch.linspace(0, 1, steps, dtype=torch.float64))))


def _closed(times: Tensor) -> Tensor:
    return torch.cat((times, times.new_zeros(1)))


def make_grid(path: NoisePath, steps: int, spacing: Spacing = "uniform") -> Tensor:
    """A grid of this spacing with its usual settings."""
    match spacing:
        case "uniform":
            return uniform_grid(path, steps)
        case "karras":
            return karras_grid(path, steps)
        case "log_snr":
            return log_snr_grid(path, steps)
        case other:
            assert_never(other)


def index_grid(timesteps: Sequence[int], total: int) -> Tensor:
    """The grid of descending network time steps k in [0, total) of a table: t = (k + 1) / total, then 0."""
    index = torch.as_tensor(list(timesteps), dtype=torch.float64)
    if len(index) == 0 or float(index.min()) < 0 or float(index.max()) >= total or bool((index.diff() >= 0).any()):
        raise ConfigError(
            sentence("a grid of time steps", f"falling numbers in [0, {total})", str(list(timesteps)), "Sort them")
        )
    return _closed((index + 1) / total)


def shifted(grid: Tensor, shift: float, top: float = 1.0) -> Tensor:
    """t -> shift t / (1 + (shift - 1) t) on [0, top]: more time at high noise for shift > 1. Source: arXiv 2403.03206, eq. 23."""
    if shift <= 0:
        raise ConfigError(sentence("a shifted grid", "shift > 0", f"shift = {shift}", "1 changes nothing"))
    part = grid / top
    return top * shift * part / (1 + (shift - 1) * part)
