"""LCSC: mixes the checkpoints of one run by searched coefficients, negative ones among them.

Paper: arXiv 2404.02241.   Formula: theta = sum_i a_i theta_i with sum_i a_i = 1; a is bred: children take each coefficient from
one of two good parents, are moved by normal numbers, and replace the worst.
Takes: checkpoints in their order, any score of weights (higher is better).   Gives: a mix at least as good there as the last
checkpoint, their uniform soup, and every average of `decays`.
Choose it when: a run kept many checkpoints, and what counts has no gradient (sample quality).
Rather not when: the score is noisy or dear: hundreds are asked for, and their noise is fitted.
Relatives: greedy_soup (weights 0 or equal), learned_soup (by gradient, weights positive), optim.averages.ema (fixed weights).

>>> models = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}]
>>> found = lcsc(models, lambda w: -abs(w["w"].item() - 2.5))
>>> round(sum(found.weights), 6), round(found.weights[0], 1)
(1.0, -0.5)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Generator, Tensor

from luthier.core import Card, Needs, component, stream
from luthier.core.errors import ConfigError, NonFinite, sentence
from luthier.merge._rule import wide
from luthier.merge._search import Found, MergeSearch, Score, Trial, Weights, need_some
from luthier.merge.average.linear import Linear, linear

CARD = Card(
    name="LCSC",
    source="arXiv 2404.02241",
    papers=(174,),
    needs=Needs(handles=("score",)),
    cost="`trials` scores, each after one pass over all checkpoints; memory of one set of weights",
    limits=(
        "coefficients sum to 1",
        "one-hot coefficients give that checkpoint, uniform ones the soup, geometric ones the running average",
        "the score never drops below that of the last checkpoint, the uniform soup and the best of `decays`",
    ),
    differs=(
        "the authors released no search code; the operators are written after the paper's description and not checked against theirs",
        "the sum is kept by spreading what is over evenly, so that no checkpoint is special",
        "moves shrink from `step` to a tenth of it over the run",
    ),
    use_when="a run kept many checkpoints and sample quality can be scored",
    avoid_when="scores are dear or noisy",
    relatives=("merge.search.greedy_soup", "merge.search.learned_soup", "optim.averages.ema"),
    mechanism="merge",
)


def ema_coefficients(count: int, decay: float) -> Tensor:
    """Coefficients (count,) of the running average that begins at the first checkpoint, float64; they sum to 1.

    >>> ema_coefficients(3, 0.5).tolist()
    [0.25, 0.25, 0.5]
    """
    ages = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    out = (1 - decay) * decay**ages
    out[0] = decay ** (count - 1)
    return out


def combined(models: Sequence[Weights], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """sum_i a_i theta_i in the first model's dtypes, added one precision step above; integer tensors are the last's.

    The models may be folders that are read tensor by tensor (`merge.FolderTensors`).
    """
    out = {}
    for name in models[0]:
        last = models[-1][name]
        dtype = wide(last.dtype)
        given = (m[name].to(dtype) for m in models)
        out[name] = linear(given, coefficients, normalise=False).to(last.dtype) if last.is_floating_point() else last
    return out


def whole(a: Tensor) -> Tensor:
    """The nearest coefficients (..., k) whose sum is 1."""
    return a + (1 - a.sum(-1, keepdim=True)) / a.shape[-1]


def child(parents: Tensor, step: float, mutation: float, g: Generator) -> Tensor:
    """New coefficients (k,) from good ones (n, k): each from one of two parents, some moved by step times normal numbers."""
    pair = parents[torch.randint(len(parents), (2,), generator=g)]
    made = torch.where(torch.rand(pair.shape[1], generator=g) < 0.5, pair[0], pair[1])
    moved = torch.rand(pair.shape[1], generator=g) < mutation
    return whole(made + moved * step * torch.randn(pair.shape[1], generator=g, dtype=made.dtype))


def lcsc(
    models: Sequence[Weights],
    score: Score,
    *,
    trials: int = 400,
    population: int = 24,
    parents: int = 8,
    step: float = 0.3,
    mutation: float = 0.5,
    decays: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9),
    seed: int = 0,
) -> Found:
    """Search coefficients of checkpoints, given oldest first; higher scores are better.

    trials: scores in all; population: how many coefficient vectors live; parents: how many of the best breed; step: of a move;
    mutation: how often a coefficient moves; decays: running averages that the population begins with. Raises NonFinite for
    a score that is no number, ConfigError for fewer trials than there are to begin with, Refused without models.
    """
    need_some("lcsc", models)
    k, g, everyone = len(models), stream(seed, "merge.lcsc"), tuple(range(len(models)))
    uniform = torch.full((k,), 1 / k, dtype=torch.float64)
    begin = [ema_coefficients(k, 0.0), uniform, *(ema_coefficients(k, d) for d in decays)]
    if trials < len(begin):
        raise ConfigError(sentence("lcsc", f"at least {len(begin)} trials to begin with", str(trials), "Raise trials"))
    pool: list[tuple[float, Tensor]] = []
    told: list[Trial] = []
    for trial in range(trials):
        size = step * 0.1 ** (trial / trials)
        good = torch.stack([a for _, a in pool[:parents]]) if trial >= len(begin) else uniform
        tried = begin[trial] if trial < len(begin) else child(good, size, mutation, g)
        now = float(score(combined(models, tried.tolist())))
        if math.isnan(now):
            raise NonFinite(
                sentence("lcsc", "scores that are numbers", f"nan in trial {trial + 1}", "Give -inf for what fails")
            )
        told.append(Trial(everyone, now, not pool or now > pool[0][0]))
        pool = sorted([*pool, (now, tried)], key=lambda one: -one[0])[:population]
    best, found = pool[0]
    weights = tuple(found.tolist())
    return Found(Linear(weights=weights, normalise=False), weights, best, tuple(told))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LCSC(MergeSearch):
    """trials: scores in all; population: vectors that live, of which the `parents` best breed; step: size of a move, at first.

    mutation: how often a coefficient moves; decays: running averages to begin with, beside the last and the uniform soup.
    """

    trials: Annotated[int, Ge(2)] = 400
    population: Annotated[int, Ge(2)] = 24
    parents: Annotated[int, Ge(1)] = 8
    step: Annotated[float, Gt(0)] = 0.3
    mutation: Annotated[float, Gt(0), Le(1)] = 0.5
    decays: tuple[Annotated[float, Gt(0), Lt(1)], ...] = (0.3, 0.5, 0.7, 0.8, 0.9)
    seed: int = 0

    def __call__(self, models: Sequence[Weights], score: Score) -> Found:
        return lcsc(models, score, trials=self.trials, population=self.population, parents=self.parents, step=self.step,
                    mutation=self.mutation, decays=self.decays, seed=self.seed)  # fmt: skip
