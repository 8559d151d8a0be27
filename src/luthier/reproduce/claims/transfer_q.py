"""Whose roll-outs tell a decoder best which token to choose: an aligned model's, or those of the model that is decoded?

Token trees with an SFT policy and a target reward. The baseline is the exact optimum for another, like reward. Values of
all choices are estimated from the same number of roll-outs each; what the decoder then earns, and how far it goes from the SFT
policy, are exact sums.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from luthier.core import stream
from luthier.decode.guidance.transfer_q import guided, value
from luthier.lab.micro.token_tree import TokenTree
from luthier.reproduce.claim import TUNING_SEED, Claim

TREE = TokenTree(vocabulary=4, depth=4)
ROLLOUTS, BETA, LIKE = 4, 0.5, 0.7
ALPHAS = (0.1, 0.2, 0.4, 0.8, 1.6)
NODE, TOKEN, _ = TREE.paths
CHOICES = len(TREE.nodes) * TREE.vocabulary
BELOW = torch.zeros(CHOICES, len(TREE.leaves), dtype=torch.bool).index_put(
    ((NODE * TREE.vocabulary + TOKEN).flatten(), torch.arange(len(TREE.leaves)).repeat_interleave(TREE.depth)),
    torch.tensor(True),
)
EVERY = torch.arange(TREE.vocabulary).expand(len(TREE.nodes), -1)


def rolled(policy: Tensor, generator: torch.Generator) -> Tensor:
    """Leaves that the policy ends at after each choice, (nodes, tokens, roll-outs)."""
    p = TREE.log_probs(policy).exp() * BELOW
    return torch.multinomial(p, ROLLOUTS, replacement=True, generator=generator).view(*EVERY.shape, ROLLOUTS)


def values(seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(SFT logits, rewards of leaves, estimated values (nodes, tokens) of each arm)."""
    sft, reward = TREE.random(seed)
    noise = torch.randn(reward.shape, generator=stream(seed, "claim.transfer_q.other"), dtype=reward.dtype)
    other = LIKE * reward + (1 - LIKE**2) ** 0.5 * noise
    aligned, _ = TREE.soft_optimum(other, sft, BETA)
    theirs, own = (rolled(p, stream(seed, "claim.transfer_q.rolls")) for p in (aligned, sft))
    return sft, reward, {"transfer": value(reward[theirs]), "indirect": value(reward[theirs], other[theirs], BETA),
                         "controlled": value(reward[own])}  # fmt: skip


def best_of(sft: Tensor, reward: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Exact (probabilities of leaves, their logarithms) of the best of n drawn sequences."""
    order = reward.argsort()
    p = TREE.log_probs(sft).exp()[order]
    up = p.cumsum(0).clamp(max=1)
    made = torch.zeros_like(p).index_put((order,), up**n - (up - p).clamp(min=0) ** n)
    return made, made.clamp_min(1e-300).log()


def worth(sft: Tensor, reward: Tensor, p: Tensor, log_p: Tensor) -> dict[str, float]:
    """Reward, distance from the SFT policy in nats, and reward less BETA times the distance."""
    kl = float((p * (log_p - TREE.log_probs(sft))).sum())
    earned = float(p @ reward)
    return {"reward": earned, "kl": kl, "worth": earned - BETA * kl}


def figures(seed: int, arm: str, setting: float) -> dict[str, float]:
    """What an arm earns at an alpha; best_of takes a number of sequences instead."""
    sft, reward, q = values(seed)
    if arm == "best_of":
        return worth(sft, reward, *best_of(sft, reward, int(setting)))
    log_p = TREE.log_probs(guided(sft, EVERY, q[arm], setting))
    return worth(sft, reward, log_p.exp(), log_p)


@functools.cache
def setting_of(arm: str) -> float:
    """The setting that serves an arm best on five worlds that are not reported."""
    tries = (1.0, 2.0, 4.0, 16.0, 64.0) if arm == "best_of" else ALPHAS
    return max(tries, key=lambda s: sum(figures(TUNING_SEED + i, arm, s)["worth"] for i in range(5)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm with the setting that serves it best."""
    return {arm: figures(seed, arm, setting_of(arm)) for arm in ("transfer", "indirect", "controlled", "best_of")}


CLAIM = Claim(
    component="transfer_q",
    papers=(237,),
    source="arXiv 2405.20495",
    says="Roll-outs of an aligned model lead a decoder to more reward for its distance than roll-outs of the SFT model.",
    world="token tree of 256 sequences; the baseline is optimal for a reward that correlates 0.7 with the target; 4 roll-outs",
    expect="transfer > controlled",
    also=("indirect > controlled", "indirect > transfer", "transfer > best_of", "transfer > controlled : reward"),
    measure="worth",
    seeds=tuple(range(20)),
    run=run,
    budget_s=30,
    note="Worth is expected reward less 0.5 times the KL from the SFT policy, exact. alpha is chosen for each arm on worlds that "
    "are not reported, and so is the number of sequences of best_of, up to 64: four for each token tried along a sequence.",
)
