"""Full-batch training of sparse adaptations on micro worlds: their calibration and their schedules, without the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core import Batch, Context

Loss = Callable[[], Tensor]


@dataclass
class FullBatch:
    """A calibration of `steps` looks at one loss."""

    loss: Loss
    steps: int
    seed: int = 0

    def forwards(self) -> Iterator[Any]:
        """Forward passes without gradient."""
        for _ in range(self.steps):
            with torch.no_grad():
                yield self.loss()

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[int]:
        """`p.grad` of exactly these parameters at each turn; flags as before at the end."""
        before = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_(True)
        for step in range(self.steps):
            for p in parameters:
                p.grad = None
            self.loss().backward()
            yield step
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)
            p.grad = None


def driven(handle: Any, loss: Loss, steps: int, lr: float) -> Iterator[int]:
    """Adam on what the handle trains, its hooks run as in the engine; yields the number of steps done."""
    named = list(handle.named_parameters())
    search = torch.optim.Adam([p for _, p in named], lr=lr)
    hooks = handle.hooks()
    for step in range(steps):
        ctx = Context(step, steps, 0, handle.model, handle, optimiser=search)
        for hook in hooks:
            hook.batch(Batch("", {}, ()), ctx)
        search.zero_grad()
        loss().backward()
        for hook in hooks:
            hook.gradients(named, ctx)
        search.step()
        for hook in hooks:
            hook.stepped(named, ctx)
        yield step + 1
