"""What consistency techniques share: jumps along the probability-flow ODE, their targets, and how far two results are apart.

A consistency function f(x, t, s) takes x at time t to time s in one evaluation. From any prediction it is the DDIM step

    f(x, t, s) = alpha(s) x0 + sigma(s) eps

with the estimates x0 and eps that the network's prediction at (x, t) makes together, so that f(x, t, t) = x exactly, whatever
the network says (eps, v and velocity; a network that predicts x0 has no such promise, see `bounded`). s = 0 is clean data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.core import NoisePath
from luthier.core.errors import Refused, sentence
from luthier.diffusion.schedules._kinds import kind_of, to_eps, to_x0
from luthier.diffusion.schedules._path import level

Condition = Mapping[str, Tensor] | None


def bounded(path: NoisePath, x: Tensor, x0: Tensor, t: Tensor, spread: float = 0.5) -> Tensor:
    """An x0 estimate that is x at the clean end: c_skip x + c_out x0, (B, ...), for networks that predict x0.

    c_skip = spread^2 / (r^2 + spread^2), c_out = r / sqrt(r^2 + spread^2), r = sigma / alpha from the path's t_min on.
    arXiv 2303.01469, appendix C, with the network's x0 in place of its raw output.
    """
    at, end = level(path, t, x), level(path, torch.full_like(t, path.t_min), x)
    r = (at.sigma / at.alpha - end.sigma / end.alpha).clamp_min(0)
    total = r.square() + spread**2
    return spread**2 / total * (x / at.alpha) + r.square() / total * x0


def estimates(model: Any, x: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """(x0, eps) that the model sees at x (B, ...), t (B,); together they are x: alpha x0 + sigma eps = x."""
    kind, at = kind_of(model.kind), level(model.path, t, x)
    out = model(x, t, condition)
    if kind != "x0":
        return to_x0(x, out, at, kind), to_eps(x, out, at, kind)
    x0 = bounded(model.path, x, out, t)
    return x0, to_eps(x, x0, at, "x0")


def land(path: NoisePath, x0: Tensor, eps: Tensor, s: Tensor) -> Tensor:
    """alpha(s) x0 + sigma(s) eps, (B, ...): where a jump with these estimates ends at times s (B,)."""
    at = level(path, s, x0)
    return at.alpha * x0 + at.sigma * eps


def jump(model: Any, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Tensor:
    """f(x, t, s), (B, ...)."""
    return land(model.path, *estimates(model, x, t, condition), s)


def guided_step(model: Any, x: Tensor, t: Tensor, r: Tensor, condition: Condition, scale: float) -> Tensor:
    """One DDIM step of the teacher from t to r, (B, ...), with classifier-free guidance where scale is not 1; no gradient."""
    with torch.no_grad():
        x0, eps = estimates(model, x, t, condition)
        if scale != 1.0:
            if not condition:
                raise Refused(
                    sentence(
                        "guidance of the teacher", "a conditional model", "one without conditions", "Set guidance to 1"
                    )
                )
            x0n, epsn = estimates(model, x, t, None)
            x0, eps = x0n + scale * (x0 - x0n), epsn + scale * (eps - epsn)
        return land(model.path, x0, eps, r)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c per row, (B,); c = 0.00054 sqrt(numbers per row) if None. arXiv 2310.14189, eq. 7.

    >>> float(pseudo_huber(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 0.0))
    5.0
    """
    size = a[0].numel()
    c = 0.00054 * size**0.5 if c is None else c
    return ((a - b).square().flatten(1).sum(1) + c * c).sqrt() - c


def pick(uniform: Tensor, count: int) -> Tensor:
    """Integers 0 .. count - 1 from uniform numbers in (0, 1), of their shape."""
    return (uniform * count).floor().clamp(0, count - 1).long()
