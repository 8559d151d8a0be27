"""Does written criticism that points at the wrong words unlearn them, and leaves the rest alone?

A softmax model over single words writes answers of five. It has a habit of saying some of them wrongly. A judgment marks the
wrong words as an input of its own, whose use the model has to learn. What is left of the habit is exact up to the contexts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from luthier.core import Batch, Signals, stream
from luthier.core.terms import as_terms
from luthier.objectives.preference._margin import log1mexp
from luthier.objectives.supervised.cut import CUT
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._softmax import CLASSES, F64, WIDTH

ROWS, WORDS, HABIT, FRESH = 200, 5, 0.3, 2000
RATES, STEPS, STRENGTHS = (0.01, 0.03, 0.1), (30, 100, 300), (0.3, 1.0)


class World:
    """What is right, what the model wrongly says instead, and answers of it."""

    def __init__(self, seed: int) -> None:
        g = stream(seed, "claim.cut.world")
        self.right, self.habit = torch.randn(2, CLASSES, WIDTH, generator=g, dtype=F64)
        self.x, self.said, self.wrong = self.answers(ROWS, g)
        self.fresh, _, _ = self.answers(FRESH, g)
        self.start = torch.zeros(2, CLASSES, WIDTH, dtype=F64)
        self.start[0] = self._taught(stream(seed, "claim.cut.taught"))

    def answers(self, n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Contexts (n, WORDS, WIDTH), words (n, WORDS), and which of them are wrong: in half of the answers, by habit."""
        x = torch.randn(n, WORDS, WIDTH, generator=g, dtype=F64)
        right, habit = (x @ self.right.T).argmax(-1), (x @ self.habit.T).argmax(-1)
        slips = (torch.rand(n, WORDS, generator=g) < HABIT) & (torch.rand(n, 1, generator=g) < 0.5) & (right != habit)
        return x, torch.where(slips, habit, right), slips

    def _taught(self, g: torch.Generator) -> Tensor:
        """Weights of a model that was taught by 2000 such answers, 100 full-batch Adam steps."""
        x, said, _ = self.answers(2000, g)
        weight = torch.zeros(CLASSES, WIDTH, dtype=F64, requires_grad=True)
        search: Any = torch.optim.Adam([weight], lr=0.1)
        for _ in range(100):
            search.zero_grad()
            torch.nn.functional.cross_entropy((x @ weight.T).flatten(0, 1), said.flatten()).backward()
            search.step()
        return weight.detach()

    def logp(self, weight: Tensor, told: bool) -> Tensor:
        """Log-probs (ROWS, WORDS) of the words said; told: with the judgment among the inputs."""
        z = self.x @ weight[0].T + (self.wrong[..., None] * (self.x @ weight[1].T) if told else 0)
        return z.log_softmax(-1).gather(-1, self.said[..., None])[..., 0]

    def figures(self, weight: Tensor) -> dict[str, float]:
        """Probability of the right word and of the habit's (where it is wrong) in fresh contexts, without a judgment; and
        precision and recall of the flags on the rows."""
        right, habit = (self.fresh @ self.right.T).argmax(-1), (self.fresh @ self.habit.T).argmax(-1)
        p = (self.fresh @ weight[0].T).softmax(-1)
        slips = p.gather(-1, habit[..., None])[..., 0][right != habit]
        flags = self.logp(weight, True) > self.logp(weight, False) + torch.tensor(1.1).log()
        hits = (flags & self.wrong).sum()
        return {"right": float(p.gather(-1, right[..., None]).mean()), "slips": float(slips.mean()),
                "precision": float(hits / flags.sum().clamp(min=1)), "recall": float(hits / self.wrong.sum())}  # fmt: skip


def _cut(world: World, weight: Tensor, strength: float) -> Tensor:
    both = (world.logp(weight, True), world.logp(weight, False))
    ones = (torch.ones(ROWS, WORDS, dtype=F64),) * 2
    s = Signals({"token_logp": both, "token_mask": ones}, ("judged", "plain"))
    terms = as_terms(CUT(strength=strength)(Batch("judged", {}, s.parts), s))
    return torch.stack([t.scale * t.sums()[0] / t.sums()[1] for t in terms]).sum()


def _sequence(world: World, weight: Tensor, strength: float) -> Tensor:
    """Likelihood of answers without fault, unlikelihood of every word of the others."""
    logp, bad = world.logp(weight, False), world.wrong.any(-1, keepdim=True)
    return torch.where(bad, -strength * log1mexp(logp.clamp(max=-1e-12)), -logp).mean()


def _fine(world: World, weight: Tensor, strength: float) -> Tensor:
    return -world.logp(weight, False)[~world.wrong.any(-1)].mean()


ARMS: dict[str, Callable[[World, Tensor, float], Tensor]] = {"cut": _cut, "sequence": _sequence, "fine_only": _fine}
world_of = functools.cache(World)


@functools.cache
def trained(arm: str, seed: int, strength: float, lr: float) -> dict[int, dict[str, float]]:
    """Figures after each number of full-batch Adam steps."""
    world = world_of(seed)
    weight = world.start.clone().requires_grad_()
    search: Any = torch.optim.Adam([weight], lr=lr)
    out = {}
    for step in range(1, max(STEPS) + 1):
        search.zero_grad()
        ARMS[arm](world, weight, strength).backward()
        search.step()
        if step in STEPS:
            out[step] = world.figures(weight.detach())
    return out


@functools.cache
def tuned(arm: str) -> tuple[float, float, int]:
    """Strength, learning rate and steps of the highest probability of right words on worlds that are not reported."""
    grid = itertools.product((1.0,) if arm == "fine_only" else STRENGTHS, RATES, STEPS)
    return max(grid, key=lambda at: sum(trained(arm, TUNING_SEED + i, at[0], at[1])[at[2]]["right"] for i in range(2)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings."""
    out = {}
    for arm in ARMS:
        strength, lr, steps = tuned(arm)
        out[arm] = trained(arm, seed, strength, lr)[steps]
    return out


CLAIM = Claim(
    component="cut",
    papers=(233,),
    source="arXiv 2312.14591",
    says="Judgments that let the model flag the wrong words make it unlearn them better than unlikelihood of whole answers and "
    "than imitating the faultless answers alone.",
    world="softmax over 8 words, answers of five, 200 answers, half of them with slips of habit that the judgment marks",
    expect="cut > fine_only",
    also=("cut > sequence", "cut < fine_only : slips", "cut < sequence : slips"),
    measure="right",
    seeds=tuple(range(10)),
    run=run,
    budget_s=90,
    note="The judgment marks wrong words plainly; what the model must learn is to say worse words under it. Learning rate and "
    "steps are chosen for each arm from the same nine settings on two worlds that are not reported, the strength of "
    "unlikelihood from two.",
)
