"""Weightings stated on the error of x0, and what they are on the error of another kind."""

from __future__ import annotations

from torch import Tensor

from luthier.core import NoisePath
from luthier.diffusion.schedules._kinds import kind_of, sensitivity


def in_kind(weight_x0: Tensor, path: NoisePath, t: Tensor, kind: str) -> Tensor:
    """The factor on |out - target|^2 of a kind that equals `weight_x0` on |x0 - target x0|^2; of t's shape."""
    return (weight_x0 / sensitivity(path.level(t), kind_of(kind)).square()).to(t.dtype)


def snr(path: NoisePath, t: Tensor) -> Tensor:
    """alpha^2 / sigma^2 at times t, of t's shape."""
    at = path.level(t)
    return (at.alpha / at.sigma).square()
