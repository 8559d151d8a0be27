"""Small networks trained on tasks of the feature world, whose risk is exact: shared by claims on weight differences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.core import stream
from luthier.lab.micro.features import FeatureWorld, Task, TwoLayer

INPUTS, KNOWN, HIDDEN = 16, 12, 48
Weights = Mapping[str, Tensor]
Data = tuple[Tensor, Tensor]


def weights_of(net: TwoLayer) -> dict[str, Tensor]:
    """Copies of a net's weights by name."""
    return {k: v.detach().clone() for k, v in net.state_dict().items()}


def net_of(weights: Weights) -> TwoLayer:
    """A net with these weights."""
    return TwoLayer(weights["first.weight"], weights["head.weight"][0])


def fresh(seed: int, role: str = "claim.nets.fresh") -> dict[str, Tensor]:
    """Random weights of a net with 48 hidden units."""
    g = stream(seed, role)
    first = torch.randn(HIDDEN, INPUTS, generator=g, dtype=torch.float64) / INPUTS**0.5
    head = torch.randn(1, HIDDEN, generator=g, dtype=torch.float64) / HIDDEN**0.5
    return {"first.weight": first, "head.weight": head}


def trained(start: Weights, data: Data, steps: int, lr: float) -> dict[str, Tensor]:
    """The net after full-batch Adam on the squared error of x (n, d) and y (n,)."""
    net, (x, y) = net_of(start), data
    search = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps):
        search.zero_grad()
        (net(x) - y).square().mean().backward()
        search.step()
    return weights_of(net)


def risk(world: FeatureWorld, weights: Weights, task: Task) -> float:
    """Expected squared error as a share of that of answering 0."""
    zero = {k: torch.zeros_like(v) for k, v in weights.items()}
    with torch.no_grad():
        return float(world.risk(net_of(weights), task) / world.risk(net_of(zero), task))


def mixed(one: Task, other: Task, share: float) -> Task:
    """A task whose answers are (1 - share) of one and share of the other."""
    return Task((1 - share) * one.coefficients + share * other.coefficients)
