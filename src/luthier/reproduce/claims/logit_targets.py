"""Do a teacher's three most probable classes teach more than the label alone, and nearly as much as all eight?

The teacher is the same linear softmax model, fitted to many more rows of the same careless labels.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from luthier.core import Objective, stream
from luthier.objectives.distil.logit_targets import LogitTargets
from luthier.objectives.supervised.nll import NLL
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._softmax import CLASSES, SoftmaxWorld, descend, signals, total

ROWS, MANY, TOP = 100, 5000, 3
RATES, STEPS, LABELS = (0.01, 0.03, 0.1), (30, 100, 300), (0.1, 0.5, 0.9)
ARMS: dict[str, int] = {"top3": TOP, "all": CLASSES, "label": 0}


@functools.cache
def teacher(seed: int) -> Tensor:
    """Weights fitted to many careless rows."""
    world = SoftmaxWorld.random(seed)
    x, label = world.rows(MANY, stream(seed, "claim.logit_targets.many"))
    return descend(world.base, lambda w: torch.nn.functional.cross_entropy(x @ w.T, label), 0.1, (200,))[200]


@functools.cache
def trained(arm: str, seed: int, share: float, lr: float) -> dict[int, dict[str, float]]:
    """Figures after each number of steps."""
    world = SoftmaxWorld.random(seed)
    x, label = world.rows(ROWS, stream(seed, "claim.logit_targets.rows"))
    words = ARMS[arm]
    top = (x @ teacher(seed).T).log_softmax(-1).topk(max(words, 1), -1)
    more = {"topk_id": top.indices[:, None], "topk_logp": top.values[:, None]}
    objective: Objective = LogitTargets(label=share, top=words) if words else NLL()
    path = descend(world.base, lambda w: total(objective, signals(x @ w.T, x @ world.base.T, label, **more)), lr, STEPS)
    return {steps: world.figures(w, seed) for steps, w in path.items()}


@functools.cache
def tuned(arm: str) -> tuple[float, float, int]:
    """Share of the label, learning rate and steps of the highest accuracy on worlds that are not reported."""
    grid = itertools.product(LABELS if ARMS[arm] else (1.0,), RATES, STEPS)
    return max(grid, key=lambda at: sum(trained(arm, TUNING_SEED + i, at[0], at[1])[at[2]]["new"] for i in range(3)))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings, and the teacher."""
    settings = {arm: tuned(arm) for arm in ARMS}
    out = {arm: trained(arm, seed, share, lr)[steps] for arm, (share, lr, steps) in settings.items()}
    return {**out, "teacher": SoftmaxWorld.random(seed).figures(teacher(seed), seed)}


CLAIM = Claim(
    component="logit_targets",
    papers=(87,),
    source="arXiv 2505.24461",
    says="Labels with a teacher's few stored probabilities teach more than labels alone, and nearly as much as its whole "
    "distribution.",
    world="linear softmax, 8 classes, 16 inputs, 100 rows of which three in ten are careless; a teacher of 5000 such rows",
    expect="top3 > label",
    also=("top3 > all", "top3 < teacher"),
    measure="new",
    seeds=tuple(range(10)),
    run=run,
    budget_s=60,
    note="Learning rate and number of steps are chosen for each arm from the same nine settings on three worlds that are not "
    "reported; the two arms with a teacher also choose the share of the label of three.",
)
