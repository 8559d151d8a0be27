"""Training tabular policies on a bandit by the components themselves, for claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from luthier.core import Batch, Objective, Signals
from luthier.core.terms import as_terms


def total(objective: Objective, kind: str, parts: tuple[str, ...], signals: Mapping[str, tuple[Tensor, ...]]) -> Tensor:
    """The loss that the engine makes of the objective's terms, a scalar."""
    terms = as_terms(objective(Batch(kind, {}, parts), Signals(signals, parts)))
    sums = [(t.scale, *t.sums()) for t in terms]
    return torch.stack([scale * value / count for scale, value, count in sums]).sum()


def of_actions(logits: Tensor, reference: Tensor, actions: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Signals of sequences of one token, the actions (n,), under both logits (A,)."""
    now, before = logits.log_softmax(-1)[actions][:, None], reference.log_softmax(-1)[actions][:, None]
    return {"token_logp": (now,), "ref_token_logp": (before,), "old_token_logp": (now.detach(),),
            "token_mask": (torch.ones_like(before),)}  # fmt: skip


def of_pairs(logits: Tensor, reference: Tensor, won: Tensor, lost: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Signals of pairs of actions, (n,) each."""
    one, two = of_actions(logits, reference, won), of_actions(logits, reference, lost)
    return {k: (one[k][0], two[k][0]) for k in one}


def descend(start: Tensor, loss: Callable[[Tensor, int], Tensor], lr: float, stops: Sequence[int]) -> dict[int, Tensor]:
    """The logits after each number of Adam steps in `stops`, on loss(logits, step)."""
    logits, out = start.detach().clone().requires_grad_(), dict[int, Tensor]()
    search = torch.optim.Adam([logits], lr=lr)
    for step in range(max(stops)):
        search.zero_grad()
        loss(logits, step).backward()
        search.step()
        if step + 1 in stops:
            out[step + 1] = logits.detach().clone()
    return out
