"""Kullback-Leibler divergence of next-token distributions over the whole vocabulary, at the tokens that count."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_of_logits(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q) in nats over the last axis, (..., V), (..., V) -> (...); words with p = 0 add nothing.

    >>> kl_of_logits(torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0])).exp()
    tensor(2.)
    """
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * torch.where(log_p > -torch.inf, log_p - log_q, 0)).sum(-1)


def token_kl(p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    """KL(softmax p || softmax q) at tokens with mask 1, 0 elsewhere: (B, T, V), (B, T, V), (B, T) -> (B, T).

    Logits of other tokens get no gradient.
    """
    return torch.where(mask != 0, kl_of_logits(p, q), 0)
