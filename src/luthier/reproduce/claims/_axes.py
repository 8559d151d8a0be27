"""The five axes on which every claim on images reports, for point clouds with a known density: shared by claims.

fidelity/inside: share of samples within the support. fidelity/log_density: their mean log density less that of true samples, in
nats. diversity/entropy: the effective number of modes drawn (exp of the entropy of their shares among what is inside) over the true one.
diversity/vendi: the Vendi score over that of as many true samples. alignment/reward: mean reward. drift/base: 1000 x squared
discrepancy from the base. cost/seconds: of the processor, with training. A sample of the truth has 1, 0, 1 and 1.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from luthier.core import stream
from luthier.lab.micro.mixture import Mixture, mmd, mmd_to
from luthier.ops.vendi import effective_number, vendi_of_distances
from luthier.reproduce.claim import Figures

SEEDS = tuple(range(10))
"""Of every claim of the room diffusion on a world of points, whatever its verdict."""
SHOWN, TRUE, FAR = 500, 2000, 1e6
NO_REWARD = "nothing is rewarded in this world"
NO_BASE = "the networks are trained from nothing"
P = ParamSpec("P")


def vendi_of(x: Tensor, length: float = 1.0) -> float:
    """Vendi score of points (n, d) under exp(-|x - y|^2 / (2 length^2))."""
    return float(vendi_of_distances(torch.cdist(x, x).square(), length))


@torch.no_grad()
def axes(
    x: Tensor,
    truth: Mixture,
    *,
    base: Mixture | Tensor | None = None,
    reward: Callable[[Tensor], Tensor] | None = None,
    length: float = 1.0,
    radius: float = 4.0,
) -> dict[str, float]:
    """All axes but cost of samples (n, d) of what should be `truth`; without a base or a reward theirs are left out.

    base: the mixture that the base draws from, or its samples (m, d). radius: of the support, in deviations of a mode; length:
    of the kernels. Coordinates that are not finite count as far away.
    """
    x, g = x.to(truth.means).nan_to_num(FAR, FAR, -FAR), stream(len(x), "claim.axes")
    mode = truth.assign(x, radius)
    drawn = torch.bincount(mode[mode >= 0], minlength=len(truth.weights)).to(x)
    same = truth.sample(TRUE, g)[0]
    n = min(len(x), SHOWN)
    entropy = float(effective_number(drawn / drawn.sum()) / effective_number(truth.weights)) if drawn.sum() else 0.0
    out = {
        "fidelity/inside": float((mode >= 0).double().mean()),
        "fidelity/log_density": float(truth.log_density(x).mean() - truth.log_density(same).mean()),
        "diversity/entropy": entropy,
        "diversity/vendi": vendi_of(x[:n], length) / vendi_of(same[:n], length),
    }
    if reward is not None:
        out["alignment/reward"] = float(reward(x).mean())
    if base is not None:
        out["drift/base"] = 1000 * (mmd_to if isinstance(base, Mixture) else mmd)(x, base, length)  # type: ignore[arg-type]
    return out


def timed(figures: Callable[P, Figures]) -> Callable[P, dict[str, float]]:
    """The function with cost/seconds among its figures: seconds of the processor that the call took."""

    @functools.wraps(figures)
    def watched(*args: P.args, **named: P.kwargs) -> dict[str, float]:
        began = time.process_time()
        found = figures(*args, **named)
        return {**found, "cost/seconds": time.process_time() - began}

    return watched
