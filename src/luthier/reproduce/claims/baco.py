"""Do a collapsed tuned model and its base, taking turns, say more different things than the tuned model made warmer?

Sequences of a token tree are good where their reward is high and the base finds them likely. The tuned model starts as the base
and imitates a hundred good sequences until it says little else. Quality and the expected number of different sequences among ten
are exact sums; each arm's front is walked at the same number of settings.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from luthier.core import stream
from luthier.decode.guidance.baco import base_speaks, certainty, mixture
from luthier.lab.micro.token_tree import TokenTree
from luthier.reproduce.claim import TUNING_SEED, Claim

TREE = TokenTree(vocabulary=6, depth=4)
BETA, SHOWN, STEPS, RATE = 0.25, 100, 60, 0.1
DRAWS, SETTINGS, SHARES = 10, 60, (0.25, 0.5, 0.75)
ROUTERS: dict[str, Any] = {"baco": "probability", "baco_entropy": "entropy"}
TURNS: tuple[tuple[Any, Any], ...] = (
    ("tuned", "uncertain"), ("tuned", "certain"), ("base", "uncertain"), ("base", "certain"),
)  # fmt: skip
"""Whose certainty is read, and when the base speaks."""


def imitated(base: Tensor, reward: Tensor, generator: torch.Generator) -> Tensor:
    """Logits of the base after full-batch Adam on sequences of the best policy for the reward, (nodes, tokens)."""
    good, _ = TREE.soft_optimum(reward, base, BETA)
    leaves = torch.multinomial(TREE.log_probs(good).exp(), SHOWN, replacement=True, generator=generator)
    logits = base.clone().requires_grad_()
    search = torch.optim.Adam([logits], lr=RATE)
    for _ in range(STEPS):
        search.zero_grad()
        (-TREE.log_probs(logits)[leaves].mean()).backward()
        search.step()
    return logits.detach()


def figures(logits: Tensor, quality: Tensor) -> tuple[float, float]:
    """(expected quality, expected number of different sequences among the draws)."""
    p = TREE.log_probs(logits).exp()
    return float(p @ quality), float((1 - (1 - p) ** DRAWS).sum())


def front(arm: str, base: Tensor, tuned: Tensor, turns: tuple[Any, Any]) -> list[Tensor]:
    """The policies that an arm can be set to; turns: whose certainty a router reads, and when the base speaks."""
    steps = torch.linspace(0, 1, SETTINGS, dtype=torch.float64)
    if arm == "temperature":
        return [tuned * (1 - float(t)) for t in steps]
    reads, when = turns
    sure = certainty(tuned if reads == "tuned" else base, ROUTERS[arm])
    return [mixture(tuned, base, base_speaks(sure, float(t), when).double()) for t in sure.quantile(steps)]


@functools.cache
def world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(logits of the base, logits of the tuned model, quality of every sequence)."""
    base, reward = TREE.random(seed)
    return base, imitated(base, reward, stream(seed, "claim.baco")), reward + BETA * TREE.log_probs(base)


def distinct(arm: str, seed: int, turns: tuple[Any, Any] = TURNS[0]) -> float:
    """Different sequences among ten at no less quality than shares of the way from the base to the tuned model, averaged."""
    base, tuned, quality = world(seed)
    low, high = figures(base, quality)[0], figures(tuned, quality)[0]
    seen = [figures(p, quality) for p in [tuned, *front(arm, base, tuned, turns)]]
    best = [max(d for q, d in seen if q >= low + share * (high - low)) for share in SHARES]
    return sum(best) / len(best)


@functools.cache
def turns_of(arm: str) -> tuple[Any, Any]:
    """The way of taking turns that gives most on five worlds that are not reported."""
    return max(TURNS, key=lambda turns: sum(distinct(arm, TUNING_SEED + i, turns) for i in range(5)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Variety of each arm at equal quality."""
    routed = {arm: {"distinct": distinct(arm, seed, turns_of(arm))} for arm in ROUTERS}
    return {**routed, "temperature": {"distinct": distinct("temperature", seed)}}


CLAIM = Claim(
    component="baco",
    papers=(295,),
    source="arXiv 2511.05650",
    says="Letting base and tuned model take turns gives more variety at the same quality than one model can.",
    world="token tree of 1296 sequences with a random base and reward; tuned: imitates 100 good ones; all figures exact",
    expect="baco > temperature",
    also=("baco_entropy > temperature",),
    measure="distinct",
    seeds=tuple(range(10)),
    run=run,
    budget_s=100,
    note="Quality is what the model is tuned for: expected reward plus beta times the base's log-probability, without which "
    "a text that the base finds absurd would be as good as one that it finds natural, and the base no better a source of variety "
    "than noise. Variety is the expected number of different sequences among ten, the best that an arm reaches at 25, 50 and "
    "75 % of the way from the base's quality to the tuned model's. Every arm has 60 settings; whose certainty a router reads and "
    "which model then speaks, which is not verified, is chosen on five worlds that are not reported. Were the tuned "
    "model the exact optimum, warming it would be the best trade there is; one that imitates has forgotten what it was not "
    "shown. Tokens have no roles: content routers are not tried.",
)
