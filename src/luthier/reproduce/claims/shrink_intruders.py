"""Does weakening the intruders of a low-rank tuning bring old skills back at a small price on the new one?

LoRA of rank 1 learns a new skill. Its merged weights are judged as they are, with their intruders weakened, and moved back
evenly to the base (wise_ft); the factor of both edits is the one of least loss, old and new skills together, at a seed that
is not reported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from luthier.core import MergeRule
from luthier.merge.average.wise_ft import WiseFT
from luthier.merge.executor import merge_tensors
from luthier.merge.scale.shrink_intruders import ShrinkIntruders
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._language import NEW, OLD, Judge, Weights, rows
from luthier.reproduce.claims.intruder_dimensions import best_rate, tuned_model

FACTORS = (0.0, 0.25, 0.5, 0.75, 0.9)
EDITS: dict[str, Callable[[float], MergeRule]] = {
    "shrunk": lambda factor: ShrinkIntruders(scale=factor),
    "wise_ft": lambda factor: WiseFT(alpha=factor),
}


@functools.lru_cache(maxsize=1)
def merged(seed: int) -> Weights:
    """All weights of the model tuned by LoRA of rank 1."""
    return {**Judge().base, **tuned_model("rank_1", seed, best_rate("rank_1")).policy.attached.merged()}


def losses(weights: Weights, judge: Judge, split: str) -> dict[str, float]:
    """Nats per token on old skills, on the new one, and the mean of both."""
    old, new = (judge.nll(weights, rows(skills, split, 60)) for skills in (OLD, NEW))
    return {"old": old, "new": new, "both": (old + new) / 2}


@functools.cache
def best_factor(arm: str) -> float:
    """The factor of least loss on held-out rows, at a seed that is not reported."""
    judge, tuned = Judge(), merged(TUNING_SEED)
    edited = {f: merge_tensors(EDITS[arm](f), judge.base, [tuned]) for f in FACTORS}
    return min(FACTORS, key=lambda f: losses(edited[f], judge, "stop")["both"])


def run(seed: int) -> dict[str, dict[str, float]]:
    """Losses of the tuned model and of both edits."""
    factors, judge = {arm: best_factor(arm) for arm in EDITS}, Judge()
    base, tuned = judge.base, merged(seed)
    arms = {arm: merge_tensors(EDITS[arm](factors[arm]), base, [tuned]) for arm in EDITS} | {"tuned": tuned}
    return {name: losses(weights, judge, "test") for name, weights in arms.items()}


CLAIM = Claim(
    component="shrink_intruders",
    papers=(39,),
    source="arXiv 2410.21228",
    says="Scaling down the singular values of intruder dimensions after tuning brings back the modelling of what the base "
    "knew, with a small loss on the new task.",
    world="language: rotate learned by LoRA of rank 1 on all linear maps; old skills sort, reverse and copy",
    expect="shrunk < tuned",
    also=("shrunk < tuned : both", "shrunk < wise_ft : both", "tuned < shrunk : new"),
    measure="old",
    seeds=tuple(range(6)),
    run=run,
    note="`both` is the mean of the losses on old and new skills. The factor of each edit is chosen from the same five, of which "
    "none leaves the tuned model as it is.",
)
