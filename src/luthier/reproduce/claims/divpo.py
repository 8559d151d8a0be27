"""Do pairs that prefer rare good answers keep a policy diverse where best against worst makes it narrow?

A policy over 48 answers, twelve of them right, draws sixteen answers a row; scores say what is right and like some right answers
a little more than others. Both arms train the same loss on pairs of the same samples, for three rounds.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from luthier.core import Build, DataContext, stream
from luthier.data.pairs.divpo import DivPO
from luthier.objectives.preference.dpo import DPO
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._answers import ANSWERS, F64, SAMPLES, Question
from luthier.reproduce.claims._bandit import descend, of_pairs, total

ROWS, ROUNDS, PARTS = 64, 3, ("chosen", "rejected")
RATES, STEPS, BETAS = (0.03, 0.1), (10, 30), (0.1, 0.5)
ARMS: dict[str, Build] = {
    "divpo": DivPO(pool=0.25, by="probability"),
    "divpo_words": DivPO(pool=0.25, by="words"),
    "best_worst": DivPO(pool=0.01, by="words"),
}


def pairs(arm: str, logits: Tensor, score: Tensor, seed: int, turn: int) -> tuple[Tensor, Tensor]:
    """(chosen, rejected) answers of one round, by the component."""
    drawn = torch.multinomial(logits.softmax(0).repeat(ROWS, 1), SAMPLES, replacement=True,
                              generator=stream(seed, "claim.divpo.samples", turn))  # fmt: skip
    rows = [{"prompt": "", "responses": [f"a{i}" for i in d.tolist()], "scores": score[d].tolist()} for d in drawn]
    logp = logits.log_softmax(0)
    ctx = DataContext(score=lambda asked: torch.stack([logp[int(str(r["response"])[1:])] for r in asked]))
    made = ARMS[arm](rows, ctx).rows
    won, lost = (torch.tensor([int(str(r[p])[1:]) for r in made]) for p in PARTS)
    return won, lost


def figures(arm: str, seed: int, lr: float, steps: int, beta: float) -> dict[str, float]:
    """Figures of the policy after all rounds, each round's start being its reference."""
    question = Question.random(seed)
    liking = torch.randn(ANSWERS, generator=stream(seed, "claim.divpo.liking"), dtype=F64)
    score, logits = question.reward(torch.arange(ANSWERS)) + 0.1 * liking, question.start
    for turn in range(ROUNDS):
        won, lost = pairs(arm, logits, score, seed, turn)
        before = logits
        loss = lambda z, _: total(DPO(beta=beta), "preference", PARTS, of_pairs(z, before, won, lost))  # noqa: E731, B023
        logits = descend(before, loss, lr, (steps,))[steps]
    return {**question.figures(logits), "score": float((logits.softmax(0) * score).sum())}


@functools.cache
def tuned(arm: str) -> tuple[float, int, float]:
    """Learning rate, steps a round and beta of the highest mean score plus share of right answers seen, on other questions."""

    def worth(at: tuple[float, int, float]) -> float:
        found = [figures(arm, TUNING_SEED + i, *at) for i in range(3)]
        return sum(f["score"] + f["distinct"] / 12 for f in found)

    return max(itertools.product(RATES, STEPS, BETAS), key=worth)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings."""
    return {arm: figures(arm, seed, *tuned(arm)) for arm in ARMS}


CLAIM = Claim(
    component="divpo",
    papers=(297,),
    source="arXiv 2501.18101",
    says="DPO on DivPO's pairs gives more diverse answers than on best-against-worst pairs, at much the same quality.",
    world="bandit of 48 answers, 12 of them right; 64 rows of 16 own samples a round, three rounds, exact expectations",
    expect="divpo > best_worst",
    also=("divpo > best_worst : score", "divpo_words > best_worst", "divpo_words > best_worst : score"),
    measure="distinct",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="`distinct` is the expected number of different right answers in 16 samples, at most 12; `score` the mean score. Rate, "
    "steps and beta are chosen for each arm from the same eight settings by `score` + `distinct` / 12 on questions that are not "
    "reported.",
)
