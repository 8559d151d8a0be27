"""What the tests of sparse updates share: a calibration over given losses, and full training beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class GivenLosses:
    """A calibration whose step t has the gradient of `losses[t]()`."""

    losses: Sequence[Callable[[], Tensor]]
    seed: int = 0

    def forwards(self) -> Iterator[Any]:
        """Each loss's forward pass, without gradient."""
        for loss in self.losses:
            with torch.no_grad():
                yield loss()

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[int]:
        """As the engine's: exactly these parameters, fresh at each turn, flags as before at the end."""
        before = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_(True)
        for step, loss in enumerate(self.losses):
            for p in parameters:
                p.grad = None
            loss().backward()
            yield step
        for p, flag in zip(parameters, before, strict=True):
            p.requires_grad_(flag)
            p.grad = None


def trained(model: nn.Module, run: Callable[[nn.Module], Tensor], optimiser: Any, steps: int = 3, **given: Any) -> None:
    """Full-batch steps on what requires a gradient."""
    search = optimiser([p for p in model.parameters() if p.requires_grad], **given)
    for _ in range(steps):
        search.zero_grad()
        run(model).square().mean().backward()
        search.step()
