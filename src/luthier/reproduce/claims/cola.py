"""Does a chain of low-rank updates reach what one of the same rank cannot, at equal steps?

A linear map has to change by a matrix of four times the rank. The risk is exact, and so is that of the best update of each rank.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import nn

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.cola import Cola
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Adaptation, Context, stream
from luthier.lab.micro.linear import LinearWorld
from luthier.reproduce.claim import TUNING_SEED, Claim

WIDTH, RANK, TIMES, ROWS, NOISE, STEPS = 24, 2, 4, 300, 0.1, 240
RATES = (0.01, 0.03, 0.1)
ARMS: Mapping[str, Adaptation] = {
    "cola": Cola(rank=RANK, alpha=RANK, links=TIMES),
    "longer": Cola(rank=RANK, alpha=RANK, links=2 * TIMES),
    "lora": LoRA(rank=RANK, alpha=RANK),
    "high": LoRA(rank=RANK * TIMES, alpha=RANK * TIMES),
    "full": Full(),
}


def excess(arm: str, seed: int, lr: float) -> float:
    """Risk above the floor after full-batch Adam, as a share of the base's."""
    world = LinearWorld.random(WIDTH, WIDTH, seed, rank=RANK * TIMES, noise=NOISE)
    x, y = world.sample(ROWS, stream(seed, "claim.cola.rows"))
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False, dtype=x.dtype))
    with torch.no_grad():
        model[0].weight.copy_(world.base)  # type: ignore[operator]
    handle = attach(model, ARMS[arm], "0", seed)
    named = list(handle.named_parameters())
    search = torch.optim.Adam([p for _, p in named], lr=lr)
    hooks = handle.hooks()
    for step in range(STEPS):
        search.zero_grad()
        (model(x) - y).square().sum(1).mean().backward()
        search.step()
        for hook in hooks:
            hook.stepped(named, Context(step, STEPS, seed, model, handle, optimiser=search))
    floor = world.risk(world.weight)
    return float((world.risk(handle.merged()["0.weight"]) - floor) / (world.risk(world.base) - floor))


@functools.cache
def tuned(arm: str) -> float:
    """The learning rate of least excess risk on worlds that are not reported."""
    return min(RATES, key=lambda lr: sum(excess(arm, TUNING_SEED + i, lr) for i in range(2)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best learning rate, and the best update of rank r there is."""
    world = LinearWorld.random(WIDTH, WIDTH, seed, rank=RANK * TIMES, noise=NOISE)
    floor = world.risk(world.weight)
    best = (world.risk(world.base + world.best_rank(RANK)) - floor) / (world.risk(world.base) - floor)
    return {"best_rank": {"excess": float(best)}} | {arm: {"excess": excess(arm, seed, tuned(arm))} for arm in ARMS}


CLAIM = Claim(
    component="cola",
    papers=(52,),
    source="arXiv 2401.04151",
    says="A chain of LoRAs reaches lower error than one LoRA of the same rank at equal steps, and approaches full fine-tuning.",
    world="linear regression, 24 x 24; the true change has rank 8; 300 rows, noise 0.1; 240 steps in every arm; exact risk",
    expect="cola < lora",
    also=("cola < best_rank", "longer < cola", "cola > high"),
    measure="excess",
    seeds=tuple(range(10)),
    run=run,
    note="Links of rank 2, four or eight of them; `high` is one LoRA of rank 8, `best_rank` the best update of rank 2 in closed "
    "form. The change has four times the rank of a link by construction. Learning rates chosen for each arm from the same three.",
)
