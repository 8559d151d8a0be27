"""Consistency training without a teacher: two noise levels of one image, measured by the ratio sigma / alpha on any path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.core import NoisePath
from luthier.diffusion.consistency._jump import Condition, jump, pseudo_huber
from luthier.diffusion.schedules._path import like


def time_at(path: NoisePath, ratio: Tensor) -> Tensor:
    """Times (B,) at which sigma / alpha has these values; 0 for 0."""
    t = path.time_of(-2 * ratio.clamp_min(1e-12).log()).to(ratio.dtype)
    return torch.where(ratio > 0, t, torch.zeros_like(t))


def two_levels(
    model: Any, x: Tensor, lower: Tensor, t: Tensor, r: Tensor, condition: Condition, huber: float | None
) -> Tensor:
    """d(f(x, t, 0), f(lower, r, 0)) per row (B,), the second without gradient; where r is 0 it is `lower` itself."""
    end = torch.zeros_like(t)
    with torch.no_grad():
        goal = jump(model, lower, r.clamp_min(model.path.t_min), end, condition)
        goal = torch.where(like(r == 0, x).bool(), lower, goal)
    return pseudo_huber(jump(model, x, t, end, condition), goal, huber)
