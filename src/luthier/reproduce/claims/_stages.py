"""Two stages, of which the policy knew the second before it was tuned, and reaches it only through the first.

A softmax policy on random features was taught what to do in stage 2. It is then tuned by REINFORCE from the beginning of
stage 1: the right action there pays 1 and opens stage 2, where the right action pays 2. Early samples hardly show stage 2,
but the weights are shared. All success rates are exact means over the contexts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from luthier.core import stream
from luthier.ops.divergence import kl_of_logits
from luthier.regularise.forgetting.ewc import mean_squared_scores
from luthier.reproduce.claim import TUNING_SEED

F64 = torch.float64
ACTIONS, WIDTH, CONTEXTS, EPISODES, STEPS, EVERY = 6, 32, 50, 64, 300, 10
RATES, STRENGTHS = (0.03, 0.1, 0.3), (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Stages:
    """Features (CONTEXTS, WIDTH) and right actions (CONTEXTS,) of both stages; start: weights (ACTIONS, WIDTH)."""

    features: tuple[Tensor, Tensor]
    right: tuple[Tensor, Tensor]
    start: Tensor

    def success(self, weight: Tensor, stage: int) -> Tensor:
        """Mean probability of the right action, a scalar."""
        return (self.features[stage] @ weight.T).softmax(-1).gather(-1, self.right[stage][:, None]).mean()


@functools.cache
def stages(seed: int) -> Stages:
    """Random contexts that know their stage, random right actions, and a policy that was taught stage 2."""
    g = stream(seed, "claim.stages")
    hidden = torch.randn(WIDTH, 9, generator=g, dtype=F64)
    x = torch.randn(2, CONTEXTS, 8, generator=g, dtype=F64)
    flag = torch.tensor([-1.0, 1.0], dtype=F64)[:, None, None].expand(2, CONTEXTS, 1)
    first, second = torch.relu(torch.cat([x, flag], -1) @ hidden.T) / WIDTH**0.5
    right = torch.randint(ACTIONS, (2, CONTEXTS), generator=g)
    weight = torch.zeros(ACTIONS, WIDTH, dtype=F64, requires_grad=True)
    search: Any = torch.optim.Adam([weight], lr=0.1)
    for _ in range(300):
        search.zero_grad()
        torch.nn.functional.cross_entropy(second @ weight.T, right[1]).backward()
        search.step()
    return Stages((first, second), (right[0], right[1]), weight.detach())


def reinforce(world: Stages, weight: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
    """(policy-gradient loss of some episodes, features of the contexts that they visited)."""
    at = torch.randint(CONTEXTS, (2, EPISODES), generator=g)
    chosen, paid, passed, seen = [], [], torch.ones(EPISODES, dtype=torch.bool), []
    for stage in (0, 1):
        x = world.features[stage][at[stage]]
        log_p = (x @ weight.T).log_softmax(-1)
        action = torch.multinomial(log_p.detach().exp(), 1, generator=g)
        fine = (action[:, 0] == world.right[stage][at[stage]]) & passed
        chosen.append(log_p.gather(-1, action)[:, 0])
        paid.append((1.0 + stage) * fine.to(F64))
        seen.append(x[passed])
        passed = fine if stage == 0 else passed
    gain = paid[0] + paid[1]
    loss = -((gain - gain.mean()) * chosen[0]).mean()
    if passed.any():
        loss = loss - ((paid[1] - paid[1][passed].mean()) * chosen[1])[passed].sum() / EPISODES
    return loss, torch.cat(seen)


Extra = Callable[[Tensor, Tensor, Generator], Tensor]


def penalty(arm: str, world: Stages, seed: int) -> Extra:
    """What an arm adds to the loss, from the weights, the visited features and a generator, at strength 1."""
    old, right = world.features[1], world.right[1]
    own = stream(seed, "claim.stages.own")

    def score(row: int) -> Tensor:
        log_p = (old[row] @ leaf.T).log_softmax(-1)
        return log_p[torch.multinomial(log_p.detach().exp(), 1, generator=own)[0]]

    leaf = world.start.clone().requires_grad_()
    fisher = mean_squared_scores(score, [leaf], CONTEXTS)[0]

    def kept(weight: Tensor, x: Tensor) -> Tensor:
        return kl_of_logits(x @ world.start.T, x @ weight.T).mean()

    def some(g: Generator) -> Tensor:
        return torch.randint(CONTEXTS, (EPISODES // 4,), generator=g)

    def replayed(weight: Tensor, seen: Tensor, g: Generator) -> Tensor:
        at = some(g)
        return torch.nn.functional.cross_entropy(old[at] @ weight.T, right[at])

    extras: Mapping[str, Extra] = {
        "plain": lambda weight, seen, g: torch.zeros((), dtype=F64),
        "ewc": lambda weight, seen, g: (fisher * (weight - world.start) ** 2).sum(),
        "bc_anchor": lambda weight, seen, g: kept(weight, old[some(g)]),
        "kickstarting": lambda weight, seen, g: kept(weight, seen),
        "replay": replayed,
    }
    return extras[arm]


@functools.cache
def tuning(arm: str, seed: int, lr: float, strength: float) -> dict[str, float]:
    """Final expected return; success in stage 2 at the end and at its lowest; mean return while tuning."""
    world = stages(seed)
    extra = penalty(arm, world, seed)
    weight = world.start.clone().requires_grad_()
    search: Any = torch.optim.Adam([weight], lr=lr)
    returns, second = [], []
    for step in range(STEPS):
        search.zero_grad()
        loss, seen = reinforce(world, weight, stream(seed, "claim.stages.play", step))
        (loss + strength * extra(weight, seen, stream(seed, "claim.stages.old", step))).backward()
        search.step()
        if step % EVERY == EVERY - 1:
            with torch.no_grad():
                p, q = float(world.success(weight, 0)), float(world.success(weight, 1))
            returns.append(p * (1 + 2 * q))
            second.append(q)
    return {"return": returns[-1], "kept": second[-1], "lowest": min(second), "along": sum(returns) / len(returns)}


@functools.cache
def tuned(arm: str) -> tuple[float, float]:
    """Learning rate and strength of the highest final return on worlds that are not reported."""
    grid = itertools.product(RATES, (0.0,) if arm == "plain" else STRENGTHS)
    return max(grid, key=lambda at: sum(tuning(arm, TUNING_SEED + i, *at)["return"] for i in range(3)))


def run_arms(arms: tuple[str, ...], seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best learning rate and strength."""
    return {arm: tuning(arm, seed, *tuned(arm)) for arm in arms}


WORLD = "two stages of 50 contexts, softmax policy on 32 random features taught stage 2; REINFORCE, 300 steps of 64 episodes"
NOTE = (
    "Learning rate (three) and strength (three) are chosen for final return on three worlds that are not reported; plain tuning "
    "has no strength to choose. `kept` and `lowest` are the success in stage 2 at the end and at its lowest."
)
