"""First-order learning dynamics: how one gradient step on one example moves the log-probabilities at another.

Delta log pi(. | x_o) = -lr A(x_o) K(x_o, x_u) G(x_u) + O(lr^2), with A = I - 1 pi^T, K = J_o J_u^T the empirical tangent
kernel of the logits, and G the derivative of the loss in the logits of the example that is learned (arXiv 2407.10490, sec. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vjp  # pyright: ignore[reportPrivateImportUsage]

Parameters = Mapping[str, Tensor]
Logits = Callable[[Any], Tensor]


def residual_nll(logits: Tensor, target: Tensor) -> Tensor:
    """G of -sum_t log pi(target_t): pi - onehot; logits (..., V), target (...) -> (..., V)."""
    return logits.softmax(-1) - torch.nn.functional.one_hot(target, logits.shape[-1]).to(logits.dtype)


def residual_dpo(
    logits: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], margin: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """G of -log sigmoid(margin) in the logits of the chosen and of the rejected text.

    +-beta (1 - a) (pi - onehot), a = sigmoid(margin); logits (T, V) and target (T,) of (chosen, rejected), margin: beta times
    the difference of their summed log-ratios to the reference, a scalar.
    """
    scale = beta * torch.sigmoid(-margin)
    return scale * residual_nll(logits[0], target[0]), -scale * residual_nll(logits[1], target[1])


def predicted_change(
    observed: Logits, learned: Callable[[Any], Any], parameters: Any, residual: Any, lr: float
) -> Tensor:
    """Change of all log-probabilities of `observed(parameters)` (..., V) by one step of plain gradient descent.

    learned: parameters -> logits of what is learned (one tensor or a tuple), residual: G of the same structure. The kernel is
    never formed: one backward and one forward derivative, which fused attention kernels do not have; load models with
    `attn_implementation="eager"`.
    """
    differentiated: Any = vjp(learned, parameters)
    both: Any = jvp(observed, (parameters,), differentiated[1](residual))
    logits, tangent = both
    moved = -lr * tangent
    return moved - (logits.softmax(-1) * moved).sum(-1, keepdim=True)


def tangent_kernel(observed: Logits, learned: Logits, parameters: Parameters) -> Tensor:
    """K = J_o J_u^T explicitly, (all logits observed, all logits learned); for small models."""

    def jacobian(f: Logits) -> Tensor:
        made: Any = jacrev(f)(parameters)
        count = f(parameters).numel()
        return torch.cat([j.reshape(count, -1) for j in made.values()], 1)

    return jacobian(observed) @ jacobian(learned).T
