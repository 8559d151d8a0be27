"""Do a collapsed tuned model and its base, taking turns, say more different things than the tuned model made warmer?

Sequences of a token tree have rewards. The tuned model starts as the base and imitates a hundred good sequences until it
says little else. Probabilities, expected reward and the expected number of different sequences among ten are exact sums; each
arm's front is walked at the same number of settings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.core import stream
from luthier.decode.guidance.baco import base_speaks, certainty, mixture
from luthier.lab.micro.token_tree import TokenTree
from luthier.reproduce.claim import Claim

TREE = TokenTree(vocabulary=6, depth=4)
BETA, SHOWN, STEPS, RATE = 0.25, 100, 60, 0.1
DRAWS, SETTINGS, SHARES = 10, 60, (0.25, 0.5, 0.75)


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


def figures(logits: Tensor, reward: Tensor) -> tuple[float, float]:
    """(expected reward, expected number of different sequences among the draws)."""
    p = TREE.log_probs(logits).exp()
    return float(p @ reward), float((1 - (1 - p) ** DRAWS).sum())


def fronts(base: Tensor, tuned: Tensor) -> dict[str, list[Tensor]]:
    """The policies that each arm can be set to."""
    steps = torch.linspace(0, 1, SETTINGS, dtype=torch.float64)
    sure = {"probability": certainty(tuned), "entropy": certainty(tuned, "entropy")}
    routed = {by: [mixture(tuned, base, base_speaks(c, float(t)).double()) for t in c.quantile(steps).tolist()]
              for by, c in sure.items()}  # fmt: skip
    warm = [tuned * (1 - float(t)) for t in steps]
    return {"baco": routed["probability"], "baco_entropy": routed["entropy"], "temperature": warm}


def run(seed: int) -> dict[str, dict[str, float]]:
    """Different sequences among ten at no less reward than shares of the way from the base to the tuned model, averaged."""
    base, reward = TREE.random(seed)
    tuned = imitated(base, reward, stream(seed, "claim.baco"))
    low, high = figures(base, reward)[0], figures(tuned, reward)[0]
    out: dict[str, dict[str, float]] = {}
    for arm, policies in fronts(base, tuned).items():
        seen = [figures(p, reward) for p in [tuned, *policies]]
        best = [max(d for r, d in seen if r >= low + share * (high - low)) for share in SHARES]
        out[arm] = {"distinct": sum(best) / len(best)}
    return out


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
    note="Quality is expected reward, variety the expected number of different sequences among ten, each the best that an arm "
    "reaches at 25, 50 and 75 % of the way from the base's reward to the tuned model's. Every arm has 60 settings. Were the "
    "tuned model the exact optimum, warming it would be nearly the best trade there is; one that imitates has forgotten what it "
    "was not shown. Every token bears on the reward "
    "here, and tokens have no roles: no part of a text is form alone, and content routers are not tried.",
)
