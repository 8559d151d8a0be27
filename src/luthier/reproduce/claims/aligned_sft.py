"""Do two absolute goals beat one goal for the difference of a pair?

Tabular policies on a tree whose sequences end early or late start at the same untuned policy and see the same pairs
of a careless writer. Expected reward and the likelihood of all texts are exact sums.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from luthier.core import Batch, Objective, Signals, stream
from luthier.core.terms import as_terms
from luthier.lab.micro.token_tree import TokenTree, TreePolicy
from luthier.objectives.preference.aligned_sft import AlignedSFT
from luthier.objectives.preference.dpo import DPO
from luthier.objectives.preference.orpo import ORPO
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._pairs import bradley_terry

TREE = TokenTree(vocabulary=4, depth=4, end=0)
PAIRS, HELD = 500, 500
WEIGHTS, RATES, STEPS = (0.03, 0.1, 1.0, 10.0), (0.01, 0.03, 0.1), (50, 150, 400)
ARMS: dict[str, Callable[[float], Objective]] = {
    "aligned_sft": lambda weight: AlignedSFT(strength=weight),
    "orpo": lambda weight: ORPO(beta=weight),
    "dpo": lambda weight: DPO(beta=weight),
}


def trained(objective: Objective, start: Tensor, won: Tensor, lost: Tensor, lr: float, steps: int) -> Tensor:
    """Token log-probs of all leaves (leaves, depth) after full-batch Adam steps on the component's terms."""
    policy, mask = TreePolicy(TREE, start), TREE.paths[2].to(start.dtype)
    reference = policy().detach()
    search = torch.optim.Adam(policy.parameters(), lr=lr)
    for _ in range(steps):
        search.zero_grad()
        token = policy()
        values = {"token_logp": token, "ref_token_logp": reference, "token_mask": mask}
        signals = Signals({k: (v[won], v[lost]) for k, v in values.items()}, ("chosen", "rejected"))
        terms = as_terms(objective(Batch("preference", {}, signals.parts), signals))
        sum(t.scale * t.sums()[0] / t.sums()[1] for t in terms).backward()
        search.step()
    return policy().detach()


def figures(arm: str, seed: int, weight: float, lr: float, steps: int) -> dict[str, float]:
    """Expected reward, and mean log-prob per token of held-out chosen and rejected texts."""
    start, reward = TREE.random(seed)
    writer = torch.randn(start.shape, generator=stream(seed, "claim.aligned_sft.writer"), dtype=start.dtype)
    p = TREE.log_probs(writer).exp()
    won, lost = bradley_terry(p, reward, PAIRS, stream(seed, "claim.aligned_sft.pairs"))
    held_won, held_lost = bradley_terry(p, reward, HELD, stream(seed, "claim.aligned_sft.held"))
    token = trained(ARMS[arm](weight), start, won, lost, lr, steps)
    mean = token.sum(-1) / TREE.paths[2].sum(-1)
    return {
        "reward": float((token.sum(-1).exp() * reward).sum()),
        "chosen": float(mean[held_won].mean()),
        "rejected": float(mean[held_lost].mean()),
    }


@functools.cache
def tuned(arm: str) -> tuple[float, float, int]:
    """Weight, learning rate and steps of the highest reward on worlds that are not reported."""
    worlds = [TUNING_SEED + i for i in range(3)]
    grid = itertools.product(WEIGHTS, RATES, STEPS)
    return max(grid, key=lambda at: sum(figures(arm, s, *at)["reward"] for s in worlds))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best weight, learning rate and number of steps."""
    return {arm: figures(arm, seed, *tuned(arm)) for arm in ARMS}


CLAIM = Claim(
    component="aligned_sft",
    papers=(162,),
    source="arXiv 2409.10571",
    says="Absolute goals for the chosen and the rejected answer give a better policy than ORPO and DPO, and chosen "
    "answers do not become unlikely as with DPO.",
    world="token tree of 121 sequences of 1 to 4 tokens, 500 Bradley-Terry pairs of another writer; exact reward",
    expect="aligned_sft > orpo",
    also=("aligned_sft > dpo", "aligned_sft > dpo : chosen", "aligned_sft < orpo : rejected"),
    measure="reward",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="Weight (beta in ORPO and DPO), learning rate and number of steps are chosen for each arm from the same "
    "thirty-six settings on three worlds that are not reported.",
)
