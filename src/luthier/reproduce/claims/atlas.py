"""Do learned factors for each tensor of a bank of models teach a new task from few rows?

A small net is tuned on four tasks. A fifth one is a mixture of two of them with something new, and shows sixteen rows.
Arms: learned factors, one factor for the sum of all differences, a new head on frozen features, and plain tuning.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from luthier.core import stream
from luthier.lab.micro.features import FeatureWorld, Task
from luthier.lab.micro.linear import ridge
from luthier.merge.executor import merge_tensors
from luthier.merge.search.atlas import ATLAS
from luthier.merge.task_vectors.task_arithmetic import TaskArithmetic
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._nets import INPUTS, KNOWN, Data, Weights, fresh, mixed, net_of, risk, trained

SHOTS, MANY = 16, 1000
GRIDS: dict[str, list[tuple[float, ...]]] = {
    "atlas": list(itertools.product((0.01, 0.03, 0.1), (50, 200), (1, 8))),
    "one_factor": [(s,) for s in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)],
    "head": [(p,) for p in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)],
    "tuned": list(itertools.product((0.0003, 0.001, 0.003, 0.01), (10, 50, 200))),
}


@functools.cache
def bank(seed: int) -> tuple[FeatureWorld, Weights, tuple[Weights, ...], Task, Data]:
    """The world, the base, four models tuned from it, the new task and its few rows."""
    world, g = FeatureWorld.random(INPUTS, KNOWN, 0, seed), stream(seed, "claim.atlas")
    broad = world.task(tuple(range(KNOWN)), seed * 10)
    base = trained(fresh(seed), world.sample(broad, MANY, g), 400, 0.01)
    tasks = [mixed(broad, world.task(tuple(range(3 * i, 3 * i + 3)), seed * 10 + i + 1), 0.6) for i in range(4)]
    models = tuple(trained(base, world.sample(t, MANY, g), 200, 0.003) for t in tasks)
    new = mixed(mixed(tasks[0], tasks[1], 0.4), world.task(tuple(range(KNOWN)), seed * 10 + 9), 0.1)
    return world, base, models, new, world.sample(new, SHOTS, g)


def loss_on(data: Data, like: Weights) -> Callable[[Weights], Tensor]:
    """Mean squared error on the rows, differentiable in the weights."""
    net, (x, y) = net_of(like), data
    return lambda weights: (functional_call(net, dict(weights), (x,)) - y).square().mean()


def head(base: Weights, data: Data, penalty: float) -> Weights:
    """The base's features with a head of its own by ridge regression towards the base's head."""
    x, y = data
    features = torch.relu(x @ base["first.weight"].T)
    return {**base, "head.weight": ridge(features, y[:, None], penalty, base["head.weight"])}


@functools.cache
def figure(seed: int, arm: str, at: tuple[float, ...]) -> float:
    """Exact risk on the new task."""
    world, base, models, new, data = bank(seed)
    match arm:
        case "atlas":
            found = ATLAS(lr=at[0], steps=int(at[1]), parts=int(at[2]))(base, models, loss_on(data, base))
            made = merge_tensors(found.rule, base, list(models))
        case "one_factor":
            made = merge_tensors(TaskArithmetic(scale=at[0]), base, list(models))
        case "head":
            made = head(base, data, at[0])
        case _:
            made = trained(base, data, int(at[1]), at[0])
    return risk(world, made, new)


@functools.cache
def tuned(arm: str) -> tuple[float, ...]:
    """The setting of the lowest risk on worlds that are not reported."""
    return min(GRIDS[arm], key=lambda at: sum(figure(TUNING_SEED + i, arm, at) for i in range(3)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best setting, and the base."""
    world, base, _, new, _ = bank(seed)
    return {arm: {"risk": figure(seed, arm, tuned(arm))} for arm in GRIDS} | {"base": {"risk": risk(world, base, new)}}


CLAIM = Claim(
    component="atlas",
    papers=(153,),
    source="arXiv 2407.02880",
    says="From few rows, learned factors for each tensor of a bank of task vectors beat one factor for all and a linear probe.",
    world="feature world: net of 48 units and four tuned models, a fifth task of 16 rows made of two of them; exact risk",
    expect="atlas < one_factor",
    also=("atlas < head", "atlas < tuned", "atlas < base"),
    measure="risk",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="Twelve settings for each arm (learning rate, steps and 1 or 8 parts a tensor of atlas; the factor; the ridge of the head "
    "towards the base's; learning rate and steps of plain tuning), chosen on three worlds that are not reported.",
)
