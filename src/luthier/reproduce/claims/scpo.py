"""Does a model get better by preferring what most of its own samples agree on, and does it help to weigh pairs by the vote?

A linear policy answers many questions wrongly, in part because it likes some ways to an answer without reason. Two rounds
without labels: eight samples of each question, pairs by vote, training with the policy before the round as reference.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

from luthier.core import DataContext, Objective, Row, stream
from luthier.data.pairs.vote_pairs import VotePairs
from luthier.objectives.preference.dpo import DPO
from luthier.objectives.preference.scpo import ScPO
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._questions import Questions, round_of, said

SAMPLES, ROUNDS = 8, 2
RATES, STEPS, BETAS, LEASTS = (0.01, 0.03), (20, 60), (0.1, 0.5), (0.0, 0.5)
ARMS: dict[str, Callable[[float], Objective]] = {
    "scpo": lambda beta: ScPO(beta=beta),
    "unweighted": lambda beta: ScPO(beta=beta),
    "random_pairs": lambda beta: DPO(beta=beta),
}


def pairs(
    arm: str, world: Questions, weights: torch.Tensor, least: float, seed: int, turn: int
) -> tuple[list[Row], list[int]]:
    """(pairs, their questions) of one round."""
    g = stream(seed, "claim.scpo.samples", turn)
    rows = [
        {"prompt": str(i), "responses": [said(a) for a in one]}
        for i, one in enumerate(world.samples(weights, SAMPLES, g))
    ]
    if arm == "random_pairs":
        coins = torch.randint(2, (len(rows),), generator=g).tolist()
        mixed = [(i, list(dict.fromkeys(r["responses"]))) for i, r in enumerate(rows)]
        kept = [(i, {"chosen": d[coins[i]], "rejected": d[1 - coins[i]]}) for i, d in mixed if len(d) > 1]
        return [r for _, r in kept], [i for i, _ in kept]
    built = VotePairs(pattern=r"#(\d+)", least=least)(rows, DataContext())
    made = [{**r, "weight": 1.0} for r in built.rows] if arm == "unweighted" else built.rows
    return list(made), built.source


def trained(arm: str, seed: int, lr: float, steps: int, beta: float, least: float) -> dict[str, float]:
    """Figures on held-out questions after two rounds."""
    world = Questions.random(seed)
    weights = world.start
    for turn in range(ROUNDS):
        made, at = pairs(arm, world, weights, least, seed, turn)
        weights = round_of(world, weights, made, at, ARMS[arm](beta), lr, steps)
    return world.figures(weights)


@functools.cache
def tuned(arm: str) -> tuple[float, int, float, float]:
    """Learning rate, steps a round, beta and threshold of the highest accuracy on worlds that are not reported."""
    grid = itertools.product(RATES, STEPS, BETAS, LEASTS if arm != "random_pairs" else (0.0,))
    return max(grid, key=lambda at: sum(trained(arm, TUNING_SEED + i, *at)["greedy"] for i in range(3)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings, and the policy before training."""
    world = Questions.random(seed)
    return {"start": world.figures(world.start)} | {a: trained(a, seed, *tuned(a)) for a in ARMS}


CLAIM = Claim(
    component="scpo",
    papers=(105,),
    source="arXiv 2411.04109",
    says="Two rounds of pairs by vote raise accuracy without labels, and weighing them by the vote is better than not.",
    world="linear policy on 100 questions of 6 answers by 4 paths each; 8 samples, two rounds; 500 other questions",
    expect="scpo > start",
    also=("scpo > unweighted", "scpo > random_pairs", "scpo > start : sampled"),
    measure="greedy",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="Rate, steps, beta and the threshold of the vote are chosen for each arm from the same settings on worlds that are not "
    "reported. `greedy`: the likeliest path ends in the right answer; `sampled`: probability of that end. `unweighted` has the same "
    "loss with all weights 1.",
)
