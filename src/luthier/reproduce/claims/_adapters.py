"""A frozen residual network moved to a new task by adaptations of equal size: shared by claims on bottleneck adapters.

Two blocks x + fc2(relu(fc1(norm(x)))) and a readout. The new task is a network whose feed-forward weights moved by random
matrices of full rank, as if it had been tuned as a whole. Errors are means over 2000 held-out inputs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt.attach import attach
from luthier.adapt.lowrank.lora import LoRA
from luthier.adapt.modules.parallel_adapter import ParallelAdapter
from luthier.adapt.modules.series_adapter import SeriesAdapter
from luthier.core import Adaptation, stream
from luthier.reproduce.claim import TUNING_SEED

WIDTH, HIDDEN, OUTPUTS, ROWS, HELD, MOVE, STEPS = 16, 32, 4, 512, 2000, 0.5, 200
RATES = (0.01, 0.03, 0.1)
ARMS: Mapping[str, Adaptation | None] = {
    "series": SeriesAdapter(bottleneck=6),
    "parallel": ParallelAdapter(bottleneck=6),
    "scaled_parallel": ParallelAdapter(bottleneck=6, scaling=4.0),
    "lora": LoRA(rank=2, alpha=2.0),
    "head": None,
}


class FeedForward(nn.Module):
    """fc2(relu(fc1(x)))."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = (
            nn.Linear(WIDTH, HIDDEN, dtype=torch.float64),
            nn.Linear(HIDDEN, WIDTH, dtype=torch.float64),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, WIDTH) -> (n, WIDTH)."""
        return self.fc2(torch.relu(self.fc1(x)))


class Block(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        """(n, WIDTH) -> (n, WIDTH)."""
        return x + self.mlp(nn.functional.layer_norm(x, (WIDTH,)))


class Net(nn.Module):
    """Two blocks and a readout, with normal weights of unit gain."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, OUTPUTS, dtype=torch.float64)
        g = stream(seed, "claim.adapters.net")
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) / p.shape[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, WIDTH) -> (n, OUTPUTS)."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def moved(self, seed: int) -> Net:
        """The network of the new task."""
        other, g = copy.deepcopy(self), stream(seed, "claim.adapters.task")
        with torch.no_grad():
            for p in other.blocks.parameters():
                p.add_(MOVE * torch.randn(p.shape, generator=g, dtype=p.dtype) / p.shape[-1] ** 0.5)
        return other


def error(arm: str, seed: int, lr: float) -> float:
    """Squared error on the new task after full-batch Adam, as a share of the frozen network's."""
    base = Net(seed)
    goal, g = base.moved(seed), stream(seed, "claim.adapters.rows")
    x, held = (torch.randn(n, WIDTH, generator=g, dtype=torch.float64) for n in (ROWS, HELD))
    with torch.no_grad():
        y, want = goal(x), goal(held)
        frozen = (base(held) - want).square().mean()
    adaptation = ARMS[arm]
    if adaptation is None:
        trained: list[Any] = list(base.head.parameters())
    else:
        sites = "mlp" if isinstance(adaptation, LoRA) else None
        trained = [p for _, p in attach(base, adaptation, sites, seed).named_parameters()]
    search = torch.optim.Adam(trained, lr=lr)
    for _ in range(STEPS):
        search.zero_grad()
        (base(x) - y).square().mean().backward()
        search.step()
    with torch.no_grad():
        return float((base(held) - want).square().mean() / frozen)


@functools.cache
def tuned(arm: str) -> float:
    """The learning rate of least error on worlds that are not reported."""
    return min(RATES, key=lambda lr: sum(error(arm, TUNING_SEED + i, lr) for i in range(2)))


def run(seed: int, arms: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Each arm at its own best learning rate, and the frozen network."""
    return {"frozen": {"error": 1.0}} | {arm: {"error": error(arm, seed, tuned(arm))} for arm in arms}
