"""What preference losses of denoisers share: how much better than the reference a model denoises each image of a pair.

With e_m(x) = mean over pixels of (prediction of m at x_t - target)^2, the gain of an image is e_reference - e_policy, and the
loss of a pair is -log sigmoid(beta / 2 * (gain(chosen) - gain(rejected))). Members differ in which noise leads to x_t and in
where the two images come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.diffusion.schedules._kinds import from_pair, kind_of
from luthier.diffusion.schedules._path import level

Condition = Mapping[str, Tensor] | None


def error(model: Any, x0: Tensor, eps: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Mean squared error (B,) of the model's prediction where x0 and eps, (B, ...), are mixed at times t (B,)."""
    at = level(model.path, t, x0)
    out = model(at.alpha * x0 + at.sigma * eps, t, condition)
    return (out - from_pair(x0, eps, at, kind_of(model.kind))).square().flatten(1).mean(1)


def gain(policy: Any, reference: Any, x0: Tensor, eps: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """How much better than the reference the policy denoises, (B,): the error of the reference less its own."""
    with torch.no_grad():
        base = error(reference, x0, eps, t, condition)
    return base - error(policy, x0, eps, t, condition)


def pair_loss(chosen: Tensor, rejected: Tensor, strength: Tensor | float) -> Tensor:
    """-log sigmoid(strength / 2 * (chosen - rejected)), (B,), from gains (B,). arXiv 2311.12908, eq. 14.

    >>> pair_loss(torch.zeros(1), torch.zeros(1), 5000.0)
    tensor([0.6931])
    """
    return -F.logsigmoid(strength / 2 * (chosen - rejected))
