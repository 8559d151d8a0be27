"""Does a measured consistency protect a model that ranks its own answers from its own errors?

A linear policy is trained for four rounds on pairs that its own ranking makes: the true worth with noise that grows from round
to round. The ranking of the round before, with its own noise, is the second opinion.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

from luthier.core import DataContext, Objective, stream
from luthier.data.pairs.cream_pairs import CreamPairs
from luthier.objectives.preference.cream import CREAM
from luthier.objectives.preference.dpo import DPO
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._questions import Questions, round_of, said

ROUNDS, SAMPLES = 4, 5
NOISE = (2.0, 2.0, 4.0, 8.0, 16.0)
RATES, STEPS, BETAS = (0.01, 0.03), (20, 60), (0.1, 0.5)
ARMS: dict[str, Callable[[float, float], Objective]] = {
    "cream": lambda beta, _: CREAM(beta=beta),
    "cream_each": lambda beta, _: CREAM(beta=beta),
    "dpo": lambda beta, _: DPO(beta=beta),
    "smoothed": lambda beta, smoothing: DPO(beta=beta, smoothing=smoothing),
}
SMOOTHINGS = {"smoothed": (0.15, 0.35)}


def trained(arm: str, seed: int, lr: float, steps: int, beta: float, smoothing: float) -> float:
    """True worth of the policy's answers on held-out questions after all rounds."""
    world = Questions.random(seed)
    weights, worth = world.start, world.worth()
    judged = [worth + sigma * torch.randn(worth.shape, generator=stream(seed, "claim.cream.noise", t), dtype=worth.dtype)
              for t, sigma in enumerate(NOISE)]  # fmt: skip
    for turn in range(1, ROUNDS + 1):
        drawn = world.samples(weights, SAMPLES, stream(seed, "claim.cream.samples", turn))
        rows = [{"prompt": str(i), "responses": [said(a) for a in d], "scores": now[d].tolist(), "scores_before": before[d].tolist()}
                for i, (d, now, before) in enumerate(zip(drawn, judged[turn], judged[turn - 1], strict=True))]  # fmt: skip
        built = CreamPairs(over="row" if arm == "cream_each" else "all")(rows, DataContext())
        weights = round_of(world, weights, built.rows, built.source, ARMS[arm](beta, smoothing), lr, steps)
    return world.figures(weights)["reward"]


@functools.cache
def tuned(arm: str) -> tuple[float, int, float, float]:
    """Learning rate, steps a round, beta and smoothing of the highest true worth on worlds that are not reported."""
    grid = itertools.product(RATES, STEPS, BETAS, SMOOTHINGS.get(arm, (0.0,)))
    return max(grid, key=lambda at: sum(trained(arm, TUNING_SEED + i, *at) for i in range(3)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings, and the policy before training."""
    world = Questions.random(seed)
    return {"start": {"reward": world.figures(world.start)["reward"]}} | {
        a: {"reward": trained(a, seed, *tuned(a))} for a in ARMS
    }


CLAIM = Claim(
    component="cream",
    papers=(236,),
    source="arXiv 2410.12735",
    says="With a measured consistency a self-rewarding model keeps improving where plain preference training follows its own "
    "growing errors.",
    world="linear policy on 100 questions with 24 answers; four rounds, ranking noise doubles each; worth on 500 others",
    expect="cream > dpo",
    also=("cream > smoothed", "cream_each > dpo", "cream > start"),
    measure="reward",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="Rate, steps and beta are chosen for each arm from the same eight settings on worlds that are not reported; `smoothed` "
    "is dpo with one label smoothing, tuned besides. `cream` shares one consistency over all rows of a round, `cream_each` takes "
    "each row's own.",
)
