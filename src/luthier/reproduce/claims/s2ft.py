"""Do a few whole channels learn a new task as well as a low-rank update, and forget less than full fine-tuning?

A two-layer net with 32 hidden channels and 8 outputs meets a task of which its own function is a noisy relative. Both sparse and
low-rank arms train the second layer with equally many parameters. The error on the new and on the old task is exact.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.lora import LoRA
from luthier.adapt.sparse.s2ft import S2FT
from luthier.core import stream
from luthier.lab.micro.features import relu_kernel
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._sparse import FullBatch, driven

INPUTS, HIDDEN, OUTPUTS, ROWS, NOISE, SHIFT = 16, 32, 8, 200, 0.3, 0.5
RATES, STEPS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), (30, 100, 300)
ARMS: dict[str, tuple[Any, str]] = {  # 80 parameters: 10 channels of 8 outputs, rank 2 of 32 + 8
    "s2ft": (S2FT(ratio=10 / HIDDEN), "1"),
    "activation": (S2FT(ratio=10 / HIDDEN, choose="activation", batches=1), "1"),
    "lora": (LoRA(rank=2), "1"),
    "full": (Full(), "0,1"),
}
Net = tuple[Tensor, Tensor]


def error(one: Net, other: Net) -> float:
    """E |A relu(W x) - A' relu(W' x)|^2 over x ~ N(0, I), as a share of E |A' relu(W' x)|^2."""
    (w, a), (v, b) = one, other
    own, cross, true = ((p @ relu_kernel(u, t) * q).sum() for p, u, t, q in ((a, w, w, a), (a, w, v, b), (b, v, v, b)))
    return float((own - 2 * cross + true) / true)


def nets(seed: int) -> tuple[Net, Net]:
    """First and second layer of the old function and of the new one, every weight of which has moved a little."""
    g = stream(seed, "claim.s2ft.world")

    def layer(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=g, dtype=torch.float64) / columns**0.5

    old = layer(HIDDEN, INPUTS), layer(OUTPUTS, HIDDEN)
    return old, (old[0] + SHIFT * layer(HIDDEN, INPUTS), old[1] + SHIFT * layer(OUTPUTS, HIDDEN))


def curve(arm: str, seed: int, lr: float) -> list[dict[str, float]]:
    """Errors on the new and on the old task after each number of steps of full-batch Adam."""
    old, new = nets(seed)
    g = stream(seed, "claim.s2ft.rows")
    x = torch.randn(ROWS, INPUTS, generator=g, dtype=torch.float64)
    y = torch.relu(x @ new[0].T) @ new[1].T
    y = y + NOISE * torch.randn(y.shape, generator=g, dtype=y.dtype)
    model = nn.ModuleList([nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(HIDDEN, OUTPUTS, bias=False)]).double()
    with torch.no_grad():
        for layer, w in zip(model, old, strict=True):
            layer.weight.copy_(w)  # type: ignore[operator, union-attr]

    def loss() -> Tensor:
        return (model[1](torch.relu(model[0](x))) - y).square().sum(1).mean()

    adaptation, sites = ARMS[arm]
    handle, out = attach(model, adaptation, sites, seed), []
    if arm == "activation":
        handle.calibrate(FullBatch(loss, 1))
    for done in driven(handle, loss, max(STEPS), lr):
        if done in STEPS:
            merged = handle.merged()
            net = merged.get("0.weight", old[0]), merged["1.weight"]
            out.append({"new": error(net, new), "old": error(net, old)})
    return out


@functools.cache
def tuned(arm: str) -> tuple[float, int]:
    """Learning rate and index of the steps of least error on the new task, on worlds that are not reported."""
    found: dict[tuple[float, int], float] = {}
    for lr in RATES:
        curves = [curve(arm, TUNING_SEED + i, lr) for i in range(2)]
        for at in range(len(STEPS)):
            found[lr, at] = sum(c[at]["new"] for c in curves)
    return min(found, key=lambda k: found[k])


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings."""
    return {arm: curve(arm, seed, tuned(arm)[0])[tuned(arm)[1]] for arm in ARMS}


CLAIM = Claim(
    component="s2ft",
    papers=(164,),
    source="arXiv 2412.06289",
    says="Training a few whole channels learns the new task better than LoRA of the same size and forgets less than full "
    "fine-tuning.",
    world="two-layer net, 32 channels, 8 outputs; every weight of the new task's net has moved; 200 noisy rows; exact error",
    expect="s2ft < lora",
    also=("s2ft < full : old", "s2ft < lora : old", "activation < s2ft"),
    measure="new",
    seeds=tuple(range(12)),
    run=run,
    note="`old` is the error on the function before tuning. S2FT and LoRA train 80 parameters of the second layer. Learning rate "
    "and steps are chosen for each arm by the error on the new task. `activation` takes the most active channels.",
)
